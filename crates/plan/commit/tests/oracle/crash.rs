//! Power cuts, over all files together, data files among them: what is read through the overlay never changes, and a
//! second run completes.

use crate::ours;
use crate::random::{Files, can_grow, make, save_all};
use crate::run_of;
use instar_storage::MemStorage;
use instar_tests::joint::{Log, Recorded, cut, cuts};
use instar_tests::judge::check;
use instar_tests::rng::Rng;
use std::path::Path;

/// States of a case that the judge looks at.
const JUDGED: usize = 12;
/// States of a case from which a second run starts.
const AGAIN: usize = 8;

/// The judge finds no damage in any file; leaks may be.
fn sound(dir: &Path, images: &[MemStorage], files: &Files, told: &str) {
    save_all(dir, images, files);
    for name in files.qcow2() {
        let code = check(dir, name);
        assert!(
            code == 0 || code == 3,
            "{told}: check of {name} says {code}"
        );
    }
}

/// A second run from a state ends with the content where it belongs.
fn again(images: &[MemStorage], files: &Files, base: usize, old: &[u8], told: &str) {
    let log = Log::default();
    let stores = Recorded::all(images.iter().cloned(), &log);
    let done = ours::commit(&stores, &files.members, base, base == 1, 7);
    done.unwrap_or_else(|e| panic!("{told}: again: {e:?}"));
    let images: Vec<MemStorage> = stores.into_iter().map(|store| store.now).collect();
    let now = ours::content(&images, &files.members);
    assert!(now == old, "{told}: again");
    let below = ours::content(&images, &files.members[base..]);
    assert!(below.starts_with(old), "{told}: again, the base");
}

/// All power cuts of one commit: how many states, and how many of them were judged.
fn one(dir: &Path, files: &Files, base: usize, seed: u64, told: &str) -> (usize, usize) {
    let log = Log::default();
    let start = files.load(dir);
    let stores = Recorded::all(start.iter().cloned(), &log);
    let old = ours::content(&start, &files.members);
    let done = ours::commit(&stores, &files.members, base, base == 1, seed);
    done.unwrap_or_else(|e| panic!("{told}: {e:?}"));
    let steps = log.steps();
    let all = cuts(&steps, start.len(), seed);
    let judge = all.len().div_ceil(JUDGED).max(1);
    let rerun = all.len().div_ceil(AGAIN).max(1);
    let mut judged = 0;
    for (index, (end, fate)) in all.iter().enumerate() {
        let told = format!("{told}: cut before step {end} of {}, {fate:?}", steps.len());
        let images = cut(&start, &steps, *end, *fate);
        let now = ours::content(&images, &files.members);
        assert!(now == old, "{told}");
        if index % judge == 0 {
            sound(dir, &images, files, &told);
            judged += 1;
        }
        if index % rerun == 0 {
            again(&images, files, base, &old, &told);
        }
    }
    (all.len(), judged)
}

#[test]
fn a_power_cut_at_any_step_changes_nothing_that_is_read_through_the_overlay() {
    let (seed, cases) = run_of("power cuts", 24);
    let (mut states, mut judged) = (0, 0);
    // Data files of overlays, of bases, and of both.
    let mut data_files = [0; 3];
    for case in 0..cases {
        let mut rng = Rng::of(seed, case + 1000);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let files = make(dir, &mut rng);
        let base = 1 + rng.below(files.members.len() as u64 - 1) as usize;
        if !can_grow(dir, &files, base) {
            continue;
        }
        let told = format!("COMMIT_SEED={seed} case {case}: {files:?} to {base}");
        let of = |index: usize| usize::from(files.members[index].data.is_some());
        if let Some(kind) = (of(0) + 2 * of(base)).checked_sub(1) {
            data_files[kind] += 1;
        }
        let (more, looked) = one(dir, &files, base, rng.next_u64(), &told);
        states += more;
        judged += looked;
    }
    println!(
        "{states} states, {judged} of them judged by qemu-img; with data files: {data_files:?}"
    );
    assert!(states > 500 && judged > 50);
    assert!(data_files.iter().all(|count| *count > 0), "{data_files:?}");
}
