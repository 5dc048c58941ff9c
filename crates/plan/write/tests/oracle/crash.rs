//! Power cuts: each sector is old or new, the rest is as it was, and there are leaks at worst.

use crate::image::{NAME, SIZE, check, content, load, make, open, save};
use crate::random::write_placed;
use crate::run_of;
use instar_storage::{CrashStorage, MemStorage, crash};
use std::path::Path;

/// Random subsets of each interval between flushes.
const SAMPLES: usize = 4;
/// Most states of a case that the judge looks at.
const MOST: usize = 60;

const CASES: &[(&str, &[&str])] = &[
    (
        "cluster_size=4k",
        &[
            "backing",
            "write -P 1 0 20k",
            "snapshot",
            "write -P 2 4k 8k",
        ],
    ),
    (
        "cluster_size=512,refcount_bits=64",
        &["write -P 1 0 20k", "snapshot"],
    ),
    (
        "cluster_size=16k,extended_l2=on",
        &["backing", "write -c -P 5 0 32k", "write -P 1 33k 5k"],
    ),
    (
        "cluster_size=4k",
        &["write -c -P 5 0 32k", "write -z 32k 16k"],
    ),
];

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
    let old = content(dir, NAME, false);
    let frozen = what.contains(&"snapshot").then(|| content(dir, NAME, true));
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
        let now = content(dir, "cut.qcow2", false);
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
        if let Some(frozen) = &frozen {
            let kept = content(dir, "cut.qcow2", true);
            assert!(
                kept == *frozen,
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
    for (options, what) in CASES {
        let folder = tempfile::tempdir().unwrap();
        count += cut(folder.path(), options, what, seed);
    }
    println!("{count} states");
    assert!(count > 100);
}
