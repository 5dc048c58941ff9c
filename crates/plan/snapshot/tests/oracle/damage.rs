//! Damaged images: each action ends, with a sentence or with success, and a refusal changes nothing.

use crate::ours::{Action, Steps, act, load};
use crate::{Rng, qemu, run_of};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, Storage, StorageMut};
use std::path::Path;
use std::time::{Duration, Instant};

fn bases(dir: &Path) -> Vec<MemStorage> {
    let options = [
        "",
        "cluster_size=512",
        "compat=0.10,cluster_size=1k",
        "extended_l2=on,cluster_size=16k",
        "refcount_bits=1,cluster_size=4k",
        "refcount_bits=64,cluster_size=4k",
    ];
    let mut all = Vec::new();
    for option in options {
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !option.is_empty() {
            args.extend(["-o", option]);
        }
        args.extend(["d.qcow2", "1M"]);
        qemu::img_ok(dir, &args);
        if option.starts_with("refcount_bits=1,") {
            qemu::img_ok(dir, &["snapshot", "-c", "a", "d.qcow2"]);
            qemu::io(dir, "d.qcow2", false, "write 0 300k");
        } else {
            qemu::io(dir, "d.qcow2", false, "write 0 300k");
            qemu::img_ok(dir, &["snapshot", "-c", "a", "d.qcow2"]);
            qemu::io(dir, "d.qcow2", false, "write 100k 90k");
            qemu::img_ok(dir, &["snapshot", "-c", "b", "d.qcow2"]);
            qemu::io(dir, "d.qcow2", false, "write -c 512k 64k");
        }
        all.push(load(&dir.join("d.qcow2")));
    }
    all
}

/// Where metadata is: the header, L1 and L2 tables, refcount structures, the snapshot table.
fn places(store: &MemStorage) -> Vec<(u64, u64)> {
    let header = Header::read(store, OpenMode::Change).unwrap();
    let cluster = header.cluster_bits.size_bytes();
    let word = |at: u64| {
        let mut raw = [0; 8];
        store.read_at(at, &mut raw).unwrap();
        u64::from_be_bytes(raw) & 0x00ff_ffff_ffff_fe00
    };
    let table = header.refcount_table_offset.get();
    let mut places = vec![(0, 104), (table, 64), (word(table), cluster.min(512))];
    let mut tables = vec![(header.l1_table_offset.get(), header.l1_size)];
    let (mut start, mut bytes) = (u64::MAX, 0);
    for entry in SnapshotTable::new(store, &header).map(Result::unwrap) {
        tables.push((entry.l1_table_offset.get(), entry.l1_size));
        start = start.min(entry.entry_offset.get());
        bytes = entry.entry_offset.get() + entry.entry_bytes - start;
    }
    places.push((start, bytes));
    for (offset, entries) in tables {
        places.push((offset, u64::from(entries) * 8));
        for entry in 0..u64::from(entries) {
            match word(offset + entry * 8) {
                0 => {}
                l2 => places.push((l2, cluster.min(1024))),
            }
        }
    }
    places
}

fn damage(store: &MemStorage, places: &[(u64, u64)], rng: &mut Rng) {
    for _ in 0..=rng.below(3) {
        let (offset, len) = places[rng.below(places.len() as u64) as usize];
        let clusters = store.len_bytes() / 512;
        let (at, value) = match rng.below(5) {
            0 => (offset + rng.below(len), vec![rng.next() as u8]),
            1 => {
                let entry = (rng.below(clusters + 9) * 512) | (rng.below(4) << 62);
                (
                    offset + rng.below(len.div_ceil(8)) * 8,
                    entry.to_be_bytes().to_vec(),
                )
            }
            2 => (
                offset + rng.below(len.div_ceil(8)) * 8,
                rng.next().to_be_bytes().to_vec(),
            ),
            3 => (offset + rng.below(len.div_ceil(4)) * 4, vec![0xff; 4]),
            _ => (offset + rng.below(len.div_ceil(8)) * 8, vec![0; 8]),
        };
        store.write_at(at, &value).unwrap();
    }
}

#[test]
fn damaged_images_end_every_action() {
    let (seed, cases) = run_of("damage", 4000);
    let dir = tempfile::tempdir().unwrap();
    let bases: Vec<_> = bases(dir.path())
        .into_iter()
        .map(|base| (places(&base), base))
        .collect();
    let (mut opened, mut refused) = (0_u64, 0_u64);
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let (places, base) = &bases[(case % bases.len() as u64) as usize];
        let store = base.clone();
        damage(&store, places, &mut rng);
        let name = [b"a", b"b"][rng.below(2) as usize].to_vec();
        let action = match rng.below(3) {
            0 => Action::Create { name, date: (0, 0) },
            1 => Action::Apply(name),
            _ => Action::Delete(name),
        };
        if Header::read(&store, OpenMode::Change).is_err() {
            continue; // refused when opened
        }
        opened += 1;
        let before = store.clone();
        let start = Instant::now();
        let result = act(&store, &action, &mut Steps(u64::MAX));
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(60),
            "seed {seed} case {case}: {action:?} took {took:?}"
        );
        if let Err(text) = result {
            refused += 1;
            assert!(
                store == before,
                "seed {seed} case {case}: {action:?}: refused, but changed: {text}"
            );
        }
        let header = Header::read(&store, OpenMode::Info);
        assert!(
            header.is_ok(),
            "seed {seed} case {case}: {action:?}: {header:?}"
        );
    }
    println!("{cases} cases, {opened} opened, {refused} refused");
    assert!(
        opened * 2 > cases,
        "too few images were damaged and still opened"
    );
    assert!(refused * 20 > opened, "too few refusals");
}
