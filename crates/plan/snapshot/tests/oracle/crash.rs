//! Power cuts: after each the image is the old one or the new one, and sound.

use crate::kinds::KINDS;
use crate::ours::{Action, Steps, act, load};
use crate::state::{seen, sound};
use crate::{qemu, run_of};
use instar_storage::{CrashStorage, MemStorage, Storage, StorageMut, crash};
use std::path::Path;

/// Random subsets of each interval between flushes.
const SAMPLES: usize = 60;
const SMALL: &str = "cluster_size=512";
const NARROW: &str = "cluster_size=512,refcount_bits=2";

/// Images with snapshots that share some tables and clusters with the disk, and some not.
fn image(dir: &Path, options: &str, size: &str) -> MemStorage {
    let name = "a.qcow2";
    qemu::img_ok(
        dir,
        &["create", "-q", "-f", "qcow2", "-o", options, name, size],
    );
    let write = |command: &str| qemu::io(dir, name, false, command);
    let snapshot = |flag: &str, id: &str| {
        qemu::img_ok(dir, &["snapshot", flag, id, name]);
    };
    write("write -P 1 0 40k");
    // Compressed clusters share host clusters, which two bits do not count; allocated ones stay as they are.
    if options != NARROW && !options.contains("preallocation") {
        write("write -c -P 2 64k 16k");
    }
    snapshot("-c", "one");
    write("write -P 3 1k 4k");
    write("write -P 4 100k 2k");
    snapshot("-c", "two");
    write("write -P 5 2k 1k");
    write("write -z 20k 1k");
    load(&dir.join(name))
}

/// States that a power cut leaves, one in so many; how many there were.
fn cut(start: &MemStorage, action: &Action, seed: u64, every: usize, what: &str) -> usize {
    let store = CrashStorage::new(start.clone());
    act(&store, action, &mut Steps(u64::MAX)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (old, new) = (seen(start), seen(&store.image()));
    assert!(old != new, "{what} does something");
    let recording = store.finish();
    let mut count = 0;
    for (label, image) in crash::states(&recording, seed, SAMPLES).step_by(every) {
        sound(&image).unwrap_or_else(|e| panic!("{what}, seed {seed}: {label}: {e}"));
        let now = seen(&image);
        let all = label.durable == recording.steps();
        assert!(
            now == new || (now == old && !all),
            "{what}, seed {seed}: {label}: neither old nor new"
        );
        count += 1;
    }
    count
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new_image() {
    let (seed, _) = run_of("power cuts", 0);
    let mut states = 0;
    for (options, size) in [
        (SMALL, "128k"),
        ("cluster_size=512,compat=0.10", "128k"),
        (NARROW, "128k"),
        ("cluster_size=1k,refcount_bits=64,lazy_refcounts=on", "192k"),
        ("cluster_size=16k,extended_l2=on", "256k"),
        // So many clusters that copies of tables need not be moved afterwards.
        ("cluster_size=4k,preallocation=metadata", "10M"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let start = image(dir.path(), options, size);
        // Reading a large one takes long.
        let every = if size == "10M" { 8 } else { 1 };
        sound(&start).unwrap();
        let text = |text: &str| text.as_bytes().to_vec();
        let create = Action::Create {
            name: text("three"),
            date: (1, 2),
        };
        // Three references are all that two bits hold.
        let actions = if options == NARROW {
            vec![Action::Delete(text("one")), Action::Delete(text("two"))]
        } else {
            vec![
                create,
                Action::Apply(text("one")),
                Action::Apply(text("two")),
                Action::Delete(text("one")),
                Action::Delete(text("two")),
            ]
        };
        for action in actions {
            states += cut(
                &start,
                &action,
                seed,
                every,
                &format!("{options}, {action:?}"),
            );
        }
    }
    println!("{states} states");
    assert!(states > 2000);
}

/// A store that fails from its n-th change on.
struct Failing {
    inner: MemStorage,
    left: std::cell::Cell<u64>,
    errno: u32,
}

impl Failing {
    fn tick(&self, offset: u64) -> Result<(), instar_storage::StorageError> {
        let errno = self.errno;
        match self.left.get().checked_sub(1) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err(instar_storage::StorageError { errno, offset }),
        }
    }
}

impl Storage for Failing {
    fn len_bytes(&self) -> u64 {
        self.inner.len_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), instar_storage::StorageError> {
        self.inner.read_at(offset, buf)
    }
}

impl StorageMut for Failing {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), instar_storage::StorageError> {
        self.tick(offset)?;
        self.inner.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), instar_storage::StorageError> {
        self.tick(offset)?;
        self.inner.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), instar_storage::StorageError> {
        self.inner.discard(offset, len)
    }
    fn allocate(
        &self,
        offset: u64,
        len: u64,
        how: instar_storage::Reserve,
    ) -> Result<(), instar_storage::StorageError> {
        self.tick(offset)?;
        self.inner.allocate(offset, len, how)
    }
    fn set_len(&self, len: u64) -> Result<(), instar_storage::StorageError> {
        self.inner.set_len(len)
    }
    fn flush(&self) -> Result<(), instar_storage::StorageError> {
        self.tick(0)?;
        self.inner.flush()
    }
}

#[test]
fn a_store_that_fails_at_any_write_keeps_the_image() {
    let dir = tempfile::tempdir().unwrap();
    let start = image(dir.path(), SMALL, "128k");
    let old = seen(&start);
    let names = |text: &str| text.as_bytes().to_vec();
    let create = Action::Create {
        name: names("three"),
        date: (1, 2),
    };
    for action in [
        create,
        Action::Apply(names("one")),
        Action::Delete(names("two")),
    ] {
        let store = start.clone();
        act(&store, &action, &mut Steps(u64::MAX)).unwrap();
        let new = seen(&store);
        let (mut failed, mut done) = (0, 0);
        for (writes, errno) in (0..10_000).zip([28, 5, 122].into_iter().cycle()) {
            let store = Failing {
                inner: start.clone(),
                left: writes.into(),
                errno,
            };
            let result = act(&store, &action, &mut Steps(u64::MAX));
            sound(&store.inner).unwrap_or_else(|e| panic!("{action:?}, {writes} writes: {e}"));
            let now = seen(&store.inner);
            assert!(
                now == old || now == new,
                "{action:?}, {writes} writes: neither old nor new"
            );
            match result {
                Ok(_) => {
                    assert!(
                        now == new,
                        "{action:?}, {writes} writes: success is the new image"
                    );
                    done += 1;
                }
                Err(_) => failed += 1,
            }
            if result_is_final(&store) {
                break;
            }
        }
        println!("{action:?}: {failed} failed, {done} done");
        assert!(failed > 3 && done > 0);
    }
}

/// Nothing failed any more.
fn result_is_final(store: &Failing) -> bool {
    store.left.get() > 0
}

#[test]
fn a_cancel_before_the_commit_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    for kind in KINDS
        .iter()
        .filter(|kind| kind.size > 0 && !kind.encrypted && !kind.bitmaps)
        .take(6)
    {
        kind.make(dir.path(), "c.qcow2");
        qemu::io(dir.path(), "c.qcow2", false, "write 0 20k");
        let start = load(&dir.path().join("c.qcow2"));
        let action = Action::Create {
            name: b"x".to_vec(),
            date: (0, 0),
        };
        for steps in 0..1000 {
            let store = start.clone();
            let Err(text) = act(&store, &action, &mut Steps(steps)) else {
                break;
            };
            assert!(
                text.ends_with("snapshot 'x': cancelled\n") || text.contains("Invalid argument"),
                "{text}"
            );
            assert!(
                store == start,
                "{}: cancelled after {steps} steps",
                kind.name
            );
            assert!(steps < 999);
            if text.contains("Invalid") {
                break;
            }
        }
    }
}

#[test]
fn a_dirty_image_is_left_to_repair() {
    let dir = tempfile::tempdir().unwrap();
    let start = image(dir.path(), SMALL, "128k");
    start.write_at(79, &[1]).unwrap();
    let names = |text: &str| text.as_bytes().to_vec();
    let create = Action::Create {
        name: names("three"),
        date: (1, 2),
    };
    for action in [
        create,
        Action::Apply(names("one")),
        Action::Delete(names("two")),
    ] {
        let store = start.clone();
        let text = act(&store, &action, &mut Steps(u64::MAX)).unwrap_err();
        assert!(text.contains("refcounts are not up to date"), "{text}");
        assert!(store == start);
    }
}
