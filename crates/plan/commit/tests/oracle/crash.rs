//! Power cuts, over all files together: what is read through the overlay never changes, and a second run completes.

use crate::judge::{check, save};
use crate::ours;
use crate::random::{Files, can_grow, load_all, make};
use crate::record::{Fate, Log, Recorded, cut, pending};
use crate::{Rng, run_of};
use instar_storage::MemStorage;
use std::path::Path;

/// Random subsets at each step.
const SAMPLES: u64 = 3;
/// Steps that are not flushed, of which each is left out and done alone.
const FEW: usize = 6;
/// States of a case that the judge looks at.
const JUDGED: usize = 12;
/// States of a case from which a second run starts.
const AGAIN: usize = 8;

/// The fates to try before step `end`.
fn fates(count: usize, seed: u64) -> Vec<Fate> {
    let mut fates = vec![Fate::All];
    if count > 0 {
        fates.push(Fate::None);
        fates.extend((0..SAMPLES).map(|n| Fate::Random(seed.wrapping_add(n))));
    }
    if count <= FEW {
        fates.extend((0..count).flat_map(|n| [Fate::But(n), Fate::Only(n)]));
    }
    fates
}

fn with<'a>(images: &'a [MemStorage], files: &Files) -> Vec<(&'a MemStorage, bool)> {
    images
        .iter()
        .zip(files)
        .map(|(i, (_, q))| (i, *q))
        .collect()
}

/// The judge finds no damage in any file; leaks may be.
fn sound(dir: &Path, images: &[MemStorage], files: &Files, told: &str) {
    for (image, (name, qcow2)) in images.iter().zip(files) {
        save(image, &dir.join(name));
        if *qcow2 {
            let code = check(dir, name);
            assert!(
                code == 0 || code == 3,
                "{told}: check of {name} says {code}"
            );
        }
    }
}

/// A second run from a state ends with the content where it belongs.
fn again(images: &[MemStorage], files: &Files, base: usize, old: &[u8], told: &str) {
    let log = Log::default();
    let stores: Vec<(Recorded<'_>, bool)> = images
        .iter()
        .zip(files)
        .enumerate()
        .map(|(number, (image, (_, q)))| (Recorded::new(number, image.clone(), &log), *q))
        .collect();
    ours::commit(&stores, base, base == 1, 7).unwrap_or_else(|e| panic!("{told}: again: {e:?}"));
    let images: Vec<MemStorage> = stores.iter().map(|(store, _)| store.now.clone()).collect();
    let all = with(&images, files);
    assert!(ours::content(&all) == old, "{told}: again");
    let below = ours::content(&all[base..]);
    assert!(below.starts_with(old), "{told}: again, the base");
}

#[test]
fn a_power_cut_at_any_step_changes_nothing_that_is_read_through_the_overlay() {
    let (seed, cases) = run_of("power cuts", 14);
    let (mut states, mut judged) = (0, 0);
    for case in 0..cases {
        let mut rng = Rng::of(seed, case + 1000);
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let files = make(dir, &mut rng);
        let base = 1 + rng.below(files.len() as u64 - 1) as usize;
        if !can_grow(dir, &files, base) {
            continue;
        }
        let told = format!("COMMIT_SEED={seed} case {case}: {files:?} to {base}");
        let log = Log::default();
        let stores = load_all(dir, &files, &log);
        let start: Vec<MemStorage> = stores.iter().map(|(store, _)| store.now.clone()).collect();
        let old = ours::content(&with(&start, &files));
        ours::commit(&stores, base, base == 1, rng.number())
            .unwrap_or_else(|e| panic!("{told}: {e:?}"));
        let steps = log.0.borrow().clone();
        let all: Vec<(usize, Fate)> = (0..=steps.len())
            .flat_map(|end| {
                let seed = seed.wrapping_mul(31).wrapping_add(end as u64);
                let fates = fates(pending(&steps, end), seed);
                fates.into_iter().map(move |fate| (end, fate))
            })
            .collect();
        let judge = all.len().div_ceil(JUDGED).max(1);
        let rerun = all.len().div_ceil(AGAIN).max(1);
        for (index, (end, fate)) in all.iter().enumerate() {
            let told = format!("{told}: cut before step {end} of {}, {fate:?}", steps.len());
            let images = cut(&start, &steps, *end, *fate);
            let now = ours::content(&with(&images, &files));
            assert!(now == old, "{told}");
            if index % judge == 0 {
                sound(dir, &images, &files, &told);
                judged += 1;
            }
            if index % rerun == 0 {
                again(&images, &files, base, &old, &told);
            }
        }
        states += all.len();
    }
    println!("{states} states, {judged} of them judged by qemu-img");
    assert!(states > 500 && judged > 50);
}
