//! Power cuts: each sector is old or new, the rest is as it was, and there are leaks at worst.

use crate::image::open;
use crate::random::write_placed;
use crate::run_of;
use instar_storage::{CrashStorage, MemStorage, crash};
use instar_tests::judge::{check, content, frozen, load, save};
use instar_tests::kinds::{CUT, NAME, SIZE, make};
use std::path::Path;

/// Random subsets of each interval between flushes.
const SAMPLES: usize = 4;
/// Most states of a case that the judge looks at.
const MOST: usize = 60;

/// Offset, length and byte of each write; the last one is committed with the second.
const WRITES: &[(u64, usize, u8)] = &[
    (1000, 9000, 0xa1),
    (36 << 10, 3 << 10, 0xa2),
    (100 << 10, 66 << 10, 0xa3),
];

/// What is made zeros at last.
const ZEROS: (u64, u64) = (130 << 10, 230 << 10);

fn cut(dir: &Path, options: &str, what: &[&str], seed: u64) -> usize {
    make(dir, options, what);
    let old = content(dir, NAME);
    let kept = what.contains(&"snapshot").then(|| frozen(dir, NAME));
    let store = CrashStorage::new(load(&dir.join(NAME)));
    let mut ours = open(dir, &store, None);
    let mut new = old.clone();
    for (at, len, byte) in WRITES {
        let bytes = vec![*byte; *len];
        if *at > 50 << 10 {
            write_placed(&mut ours, (&store, None), *at, &bytes);
        } else {
            ours.write_at(*at, &bytes).unwrap();
        }
        new[*at as usize..][..*len].fill(*byte);
        if *at == 1000 {
            ours.commit().unwrap();
        }
    }
    let (start, end) = ZEROS;
    ours.zeros(start, end - start).unwrap();
    new[start as usize..end as usize].fill(0);
    ours.finish().unwrap();
    drop(ours);
    let recording = store.finish();
    let states: Vec<(crash::Label, MemStorage)> =
        crash::states(&recording, seed, SAMPLES).collect();
    let step = states.len().div_ceil(MOST).max(1);
    let mut count = 0;
    for (label, image) in states.iter().step_by(step).chain(states.last()) {
        save(image, &dir.join("cut.qcow2"));
        let code = check(dir, "cut.qcow2");
        assert!(
            code == 0 || code == 3,
            "{options} {what:?} seed {seed}: {label}: check {code}"
        );
        let now = content(dir, "cut.qcow2");
        assert_eq!(now.len() as u64, SIZE);
        for (index, sector) in now.chunks(512).enumerate() {
            let at = index * 512;
            let (was, is) = (&old[at..at + sector.len()], &new[at..at + sector.len()]);
            assert!(
                sector == was || sector == is,
                "{options} {what:?} seed {seed}: {label}: byte {at}"
            );
        }
        if label.durable == recording.steps() {
            assert!(now == new, "{label}");
        }
        if let Some(kept) = &kept {
            let now = frozen(dir, "cut.qcow2");
            assert!(
                now == *kept,
                "{options} {what:?} seed {seed}: {label}: snapshot"
            );
        }
        count += 1;
    }
    count
}

#[test]
fn a_power_cut_leaves_old_or_new_sectors_and_leaks_at_worst() {
    let (seed, _) = run_of("power cuts", 1);
    let mut count = 0;
    for (options, what) in CUT {
        let folder = tempfile::tempdir().unwrap();
        count += cut(folder.path(), options, what, seed);
    }
    println!("{count} states");
    assert!(count > 100);
}
