//! An identity change, every table written anew, on images that `qemu-img` made: judged by the check planner
//! at every crash point.

extern crate std;

use crate::{Cancelled, Footprint, Monitor, Transaction, TxnError, for_each_l2};
use alloc::vec::Vec;
use instar_plan_check::{CheckSummary, MessageKind, Reporter, check};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{
    Calls, CrashStorage, Fault, FaultyStorage, MemStorage, Storage, StorageMut, crash,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::string::{String, ToString};

struct Free;

impl Monitor for Free {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

#[derive(Default)]
struct Lines(Vec<String>);

impl Reporter for Lines {
    fn message(&mut self, _: MessageKind, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }
    fn progress(&mut self, _: u64, _: u64) -> Result<(), instar_plan_check::Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {output:?}"
    );
}

/// An image with data in several L2 tables and two snapshots.
fn image(folder: &Path, options: &str) -> PathBuf {
    let path = folder.join("image.qcow2");
    let name = path.to_str().unwrap();
    run(
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, name, "24M"],
    );
    run(
        "qemu-io",
        &["-c", "write -P 1 0 70k", "-c", "write -P 2 9M 3k", name],
    );
    run("qemu-img", &["snapshot", "-c", "one", name]);
    run(
        "qemu-io",
        &["-c", "write -P 3 1k 2k", "-c", "write -P 4 23M 1k", name],
    );
    run("qemu-img", &["snapshot", "-c", "two", name]);
    path
}

fn load(path: &Path) -> MemStorage {
    MemStorage::load(&std::fs::File::open(path).unwrap()).unwrap()
}

fn judge(storage: &impl Storage) -> (CheckSummary, Vec<String>) {
    let header = Header::read(storage, OpenMode::Change).unwrap();
    let mut lines = Lines::default();
    let summary = check(storage, &header, &mut lines).unwrap();
    (summary, lines.0)
}

fn assert_sound(storage: &impl Storage, what: &str) {
    let (summary, lines) = judge(storage);
    assert_eq!(
        (summary.corruptions, summary.leaks),
        (0, 0),
        "{what}: {lines:?}"
    );
}

/// Writes L1, L2 and snapshot tables anew as they are.
fn rewrite<S: StorageMut>(storage: &S) -> Result<Header, TxnError> {
    let header = Header::read(storage, OpenMode::Change).unwrap();
    let footprint = Footprint {
        tables: 200,
        fixed: 0,
    };
    let mut txn = Transaction::begin(storage, &header, footprint, &mut Free)?;
    let mut l1 = txn.read_l1(header.l1_table_offset, header.l1_size)?;
    let mut copies = Vec::new();
    for_each_l2(storage, &header, &l1, &mut |index, table| {
        copies.push((index, table.to_vec()));
        Ok(())
    })?;
    let bits = header.cluster_bits.get();
    for (index, table) in copies {
        let old = l1[index] & instar_qcow2::entries::OFFSET_MASK;
        if txn.refcount(old >> bits)? == 1 {
            let new = txn.allocate_table(1)?;
            txn.write(new, table)?;
            txn.drop_references(old >> bits, 1)?;
            l1[index] = l1[index] & !instar_qcow2::entries::OFFSET_MASK | new.get();
        }
    }
    txn.replace_active_l1(&l1)?;
    let snapshots = txn.read_snapshots()?;
    txn.replace_snapshots(&snapshots)?;
    txn.commit(&mut Free)
}

const OPTIONS: [&str; 8] = [
    "compat=1.1",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=512,refcount_bits=64",
    "cluster_size=2k,refcount_bits=8",
    "cluster_size=16k,extended_l2=on",
    "cluster_size=4k,compat=0.10",
    "cluster_size=2M",
];

#[test]
fn a_rewritten_image_is_as_long_as_before_and_sound() {
    for options in OPTIONS {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path(), options);
        let storage = load(&path);
        let before = storage.len_bytes();
        rewrite(&storage).unwrap();
        assert_sound(&storage, options);
        let after = storage.len_bytes();
        assert!(
            after <= before + before / 50,
            "{options}: {before} -> {after}"
        );
        storage
            .save(&std::fs::File::options().write(true).open(&path).unwrap())
            .unwrap();
        run("qemu-img", &["check", "-q", path.to_str().unwrap()]);
    }
}

#[test]
fn every_crash_state_is_sound() {
    for options in OPTIONS {
        let folder = tempfile::tempdir().unwrap();
        let storage = CrashStorage::new(load(&image(folder.path(), options)));
        rewrite(&storage).unwrap();
        let recording = storage.finish();
        let mut states = 0;
        for (label, state) in crash::states(&recording, 7, 40) {
            assert_sound(&state, &std::format!("{options}: {label}"));
            states += 1;
        }
        assert!(states > 100, "{options}: {states} states only");
    }
}

#[test]
fn every_failing_call_leaves_a_sound_image() {
    for options in [
        "compat=1.1",
        "cluster_size=512",
        "compat=0.10,cluster_size=4k",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let start = load(&image(folder.path(), options));
        for errno in [28, 5, 122] {
            for (nth, lasting) in (0..).flat_map(|nth| [(nth, false), (nth, true)]) {
                let fault = Fault {
                    calls: Calls::Changes,
                    nth,
                    errno,
                    lasting,
                };
                let storage = FaultyStorage::with(start.clone(), fault);
                let result = rewrite(&storage);
                let struck = storage.struck();
                assert_sound(
                    &storage.into_inner(),
                    &std::format!("{options}, call {nth}: {result:?}"),
                );
                match result {
                    Err(TxnError::Storage(e)) => assert_eq!(e.errno, errno),
                    Err(other) => panic!("{}", other.to_string()),
                    Ok(_) if !struck => break,
                    // What follows the switch may fail without harm.
                    Ok(_) => {}
                }
            }
        }
    }
}

#[test]
fn what_is_reserved_is_not_given_to_others_meanwhile() {
    let folder = tempfile::tempdir().unwrap();
    let storage = load(&image(folder.path(), "cluster_size=512"));
    let header = Header::read(&storage, OpenMode::Change).unwrap();
    let mut txn = Transaction::begin_low(&storage, &header, &mut Free).unwrap();
    let (space, refcounts) = (&mut txn.space, &mut txn.refcounts);
    let first = space.reserve(refcounts, &storage, 100).unwrap();
    for taken in 0..100 {
        // As refcount blocks do that leave memory in between.
        let other = space.fixed(refcounts, &storage, 1).unwrap();
        assert!(!(first..first + 100).contains(&other), "{taken}: {other}");
        space.take(refcounts, &storage, first + taken, 1).unwrap();
    }
    for cluster in first..first + 100 {
        assert_eq!(txn.refcount(cluster).unwrap(), 1);
    }
}
