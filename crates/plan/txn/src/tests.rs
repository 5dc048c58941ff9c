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
        let header = rewrite(&storage).unwrap();
        assert_eq!(header, Header::read(&storage, OpenMode::Change).unwrap());
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

#[test]
fn refcount_structures_of_a_small_image_are_where_they_were() {
    for options in [
        "compat=1.1",
        "compat=0.10",
        "refcount_bits=1",
        "refcount_bits=64",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image.qcow2");
        let name = path.to_str().unwrap();
        run(
            "qemu-img",
            &["create", "-q", "-f", "qcow2", "-o", options, name, "1G"],
        );
        run("qemu-io", &["-c", "write -P 1 0 70k", name]);
        let storage = CrashStorage::new(load(&path));
        let before = Header::read(&storage, OpenMode::Change).unwrap();
        let tables = Footprint::default();
        let mut txn = Transaction::begin(&storage, &before, tables, &mut Free).unwrap();
        let first = txn.allocate_fixed(2).unwrap();
        // As a table that nobody refers to would be.
        txn.free(first, before.cluster_bits.size_bytes()).unwrap();
        let table = txn.write_l1(&[0]).unwrap();
        let entries = (before.l1_table_offset, before.l1_size);
        txn.free(entries.0, u64::from(entries.1) * 8).unwrap();
        (txn.header.l1_table_offset, txn.header.l1_size) = (table, entries.1);
        let l1 = crate::read_l1(&storage, &before, entries.0, entries.1).unwrap();
        let l1 = l1.iter().flat_map(|entry| entry.to_be_bytes()).collect();
        txn.write(table, l1).unwrap();
        let after = txn.commit(&mut Free).unwrap();
        assert_eq!(
            (after.refcount_table_offset, after.refcount_table_clusters),
            (before.refcount_table_offset, before.refcount_table_clusters),
            "{options}"
        );
        let (summary, lines) = judge(&storage);
        assert_eq!(
            (summary.corruptions, summary.leaks),
            (0, 1),
            "{options}: {lines:?}"
        );
        let recording = storage.finish();
        for (label, state) in crash::states(&recording, 7, 40) {
            let (summary, lines) = judge(&state);
            assert_eq!(summary.corruptions, 0, "{options}: {label}: {lines:?}");
        }
    }
}

#[test]
fn a_header_comes_back_as_it_is_read() {
    for (options, backing) in [
        ("compat=1.1", false),
        ("compat=0.10", true),
        ("compat=1.1,cluster_size=512", true),
        ("compat=1.1,extended_l2=on", true),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let base = folder.path().join("base.raw");
        std::fs::write(&base, [0; 4096]).unwrap();
        let path = folder.path().join("image.qcow2");
        let name = path.to_str().unwrap();
        let create = ["create", "-q", "-f", "qcow2", "-o", options];
        let below: &[&str] = if backing {
            &["-b", base.to_str().unwrap(), "-F", "raw"]
        } else {
            &[]
        };
        run("qemu-img", &[&create[..], below, &[name, "1M"]].concat());
        if !options.contains("0.10") {
            run("qemu-img", &["bitmap", "--add", name, "one"]);
        }
        let storage = load(&path);
        let old = Header::read(&storage, OpenMode::Change).unwrap();
        let long = std::vec![b'n'; 300];
        for name in [
            None,
            Some(b"other".to_vec()),
            Some(long),
            old.backing_file.clone(),
        ] {
            let old = Header::read(&storage, OpenMode::Change).unwrap();
            let mut new = old.clone();
            new.backing_file = name;
            let format = new.backing_file.as_ref().map(|_| b"raw".to_vec());
            new.extensions.backing_format = format;
            match crate::write_header(&storage, &old, &new) {
                Ok(header) => {
                    let read = Header::read(&storage, OpenMode::Change).unwrap();
                    assert_eq!(header, read, "{options}");
                    assert_eq!(read.backing_file, new.backing_file);
                }
                Err(TxnError::HeaderFull) => assert!(options.contains("512"), "{options}"),
                Err(other) => panic!("{options}: {}", other.to_string()),
            }
            assert_sound(&storage, options);
        }
    }
}

#[test]
fn a_search_goes_on_where_no_run_was_before() {
    let folder = tempfile::tempdir().unwrap();
    let storage = load(&image(folder.path(), "cluster_size=512"));
    let header = Header::read(&storage, OpenMode::Change).unwrap();
    let mut txn = Transaction::begin_low(&storage, &header, &mut Free).unwrap();
    let mut taken = std::collections::BTreeSet::new();
    for count in [3, 1, 8, 2, 1, 3, 700, 1, 8, 2, 5] {
        let lowest = (1_u64..)
            .find(|first| {
                (*first..first + count)
                    .all(|at| !taken.contains(&at) && txn.refcounts.get(&storage, at).unwrap() == 0)
            })
            .unwrap();
        let got = txn.allocate_fixed(count).unwrap().get() >> 9;
        assert_eq!(got, lowest, "{count}");
        taken.extend(got..got + count);
    }
}

#[test]
fn zeros_are_left_out_only_where_zeros_are() {
    let mut bytes = std::vec![0; 4096];
    assert!(crate::without_zeros(8192, &bytes, 8192).is_none());
    assert_eq!(
        crate::without_zeros(8191, &bytes, 8192).unwrap().buf.len(),
        4096
    );
    for (at, len) in [(0, 512), (511, 512), (512, 1024), (4095, 4096)] {
        bytes.fill(0);
        bytes[at] = 1;
        assert_eq!(crate::nonzero_end(&bytes), at + 1);
        assert_eq!(
            crate::without_zeros(8192, &bytes, 8192).unwrap().buf.len(),
            len
        );
    }
    assert_eq!(crate::nonzero_end(&[0, 3, 0]), 2);
    assert_eq!(crate::nonzero_end(&[]), 0);
}

#[test]
fn what_was_written_is_read_before_it_is_there() {
    use crate::recent::Recent;
    let storage = MemStorage::new(std::vec![9; 32]);
    let sent = std::vec![(4, std::vec![1; 8]), (30, std::vec![2; 4])];
    let queue = std::vec![(10, std::vec![3; 4])];
    let recent = Recent {
        storage: &storage,
        writes: [&sent, &queue],
    };
    assert_eq!(recent.len_bytes(), 34);
    let mut all = [0; 36];
    recent.read_at(0, &mut all).unwrap();
    let mut want = [9; 36];
    want[4..12].fill(1);
    want[30..34].fill(2);
    want[10..14].fill(3);
    want[34..].fill(0);
    assert_eq!(all, want);
    for at in 0..32 {
        let mut part = [0; 4];
        recent.read_at(at as u64, &mut part).unwrap();
        assert_eq!(part, want[at..at + 4], "{at}");
    }
}
