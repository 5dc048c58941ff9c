//! Power cuts and failing writes in the middle of repairs.
//!
//! Whatever part of a repair reaches the disk: what the guest sees of the disk
//! and of each snapshot is the same, version 3 says that it is not done, and
//! another repair ends where the first one would have ended.
//!
//! `REPAIR_SEED` and `REPAIR_CASES` choose other damages and more of them.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

#[path = "../../../check/tests/oracle/base.rs"]
mod base;
#[path = "../../../check/tests/oracle/damage.rs"]
mod damage;
mod disk;

use base::Base;
use disk::Disk;
use instar_plan_repair::{Cancelled, CheckError, MessageKind, Mode, Repaired, Reporter, repair};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::crash::{CrashStorage, states};
use instar_storage::{Calls, Fault, FaultyStorage, MemStorage, Storage, StorageMut};

/// A small generator of random numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Says nothing.
struct Quiet;

impl Reporter for Quiet {
    fn message(&mut self, _: MessageKind, _: &[u8]) {}

    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn run<S: StorageMut>(storage: &S, mode: Mode) -> Result<Repaired, CheckError> {
    let header = Header::read(storage, OpenMode::CheckWithKey).expect("it was opened before");
    repair(storage, &header, mode, &mut Quiet)
}

/// Corruptions, leaks and check errors that are left.
fn left(repaired: &Repaired) -> (u64, u64, u64) {
    let sum = &repaired.summary;
    (sum.corruptions, sum.leaks, sum.check_errors)
}

/// Not more than another repair has left. It can be less: where the file has
/// become longer, what pointed behind its end points to zeros in it.
const fn is_no_more(left: (u64, u64, u64), other: (u64, u64, u64)) -> bool {
    left.0 <= other.0 && left.1 <= other.1 && left.2 <= other.2
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// Damaged images that can be opened and repaired, and where no table is in the
/// header's cluster: there the marks themselves change what the tables say.
fn damaged_images(name: &str, cases: u64, mut judge: impl FnMut(u64, &Base, &[u8], &str)) {
    let seed = number("REPAIR_SEED").unwrap_or(20_261_121);
    let cases = number("REPAIR_CASES").unwrap_or(cases);
    println!("{name}: REPAIR_SEED={seed} REPAIR_CASES={cases}");
    let dir = tempfile::tempdir().unwrap();
    let bases = base::all(dir.path());
    let small: Vec<&Base> = bases
        .iter()
        .filter(|base| base.bytes.len() < 2 << 20)
        .collect();
    for case in 0..cases {
        let mut rng = Rng(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        let base = rng.pick(&small);
        let (bytes, what) = damage::damage(base, &mut rng);
        let label = format!("REPAIR_SEED={seed} case {case} {}: {what}", base.name);
        let storage = MemStorage::new(bytes.clone());
        let Ok(header) = Header::read(&storage, OpenMode::CheckWithKey) else {
            continue;
        };
        // Tables of garbage take long to walk, and there are many states.
        let header_is_a_table = disk::names_header(&storage, &header);
        let whole_table = SnapshotTable::new(&storage, &header).all(|entry| entry.is_ok());
        if header.nb_snapshots > 100
            || !whole_table
            || header_is_a_table
            || run(&storage, Mode::All).is_err()
        {
            continue;
        }
        judge(seed.wrapping_add(case), base, &bytes, &label);
    }
}

#[test]
fn power_cut_leaves_the_data_and_a_repair_that_can_go_on() {
    let (mut images, mut checked, mut marked) = (0, 0, 0);
    damaged_images("power cuts", 40, |seed, _, bytes, label| {
        let start = MemStorage::new(bytes.to_vec());
        let before = Disk::read(&start);
        let store = CrashStorage::new(start);
        let whole = run(&store, Mode::All).expect(label);
        let end = store.image();
        assert_eq!(Disk::read(&end), before, "{label}");
        let recording = store.finish();
        images += 1;
        for (state, image) in states(&recording, seed, 100) {
            checked += 1;
            assert_eq!(Disk::read(&image), before, "{label}, {state}");
            let header = Header::read(&image, OpenMode::CheckWithKey).expect(label);
            marked += u64::from(header.incompatible.corrupt());
            let again = run(&image, Mode::All).expect(label);
            assert!(is_no_more(left(&again), left(&whole)), "{label}, {state}");
            assert_eq!(Disk::read(&image), before, "{label}, {state}, repaired");
        }
    });
    println!("{images} images, {checked} states, {marked} of them marked corrupt");
    assert!(images > 5 && checked > 400 && marked > 100);
}

/// Nothing but the snapshot table is wrong: it is written anew beside the old one.
#[test]
fn power_cut_while_the_snapshot_table_is_replaced_leaves_data_and_snapshots() {
    let dir = tempfile::tempdir().unwrap();
    let (mut images, mut checked) = (0, 0);
    for base in base::all(dir.path()) {
        let storage = MemStorage::new(base.bytes.clone());
        let header = Header::read(&storage, OpenMode::CheckWithKey).expect(base.name);
        let last = SnapshotTable::new(&storage, &header).last();
        let small = base.bytes.len() < 2 << 20;
        let Some(Ok(last)) = last.filter(|_| small && header.version == 3) else {
            continue;
        };
        // The last entry has less extra data than version 3 demands.
        let at = last.entry_offset.get() + 36;
        storage.write_at(at, &8_u32.to_be_bytes()).unwrap();
        let before = Disk::read(&storage);
        let old_len = storage.len_bytes();
        let store = CrashStorage::new(storage);
        let whole = run(&store, Mode::All).expect(base.name);
        assert_eq!(left(&whole), (0, 0, 0), "{}", base.name);
        assert_eq!(whole.corruptions_fixed, 1, "{}", base.name);
        let table = u64::from(header.nb_snapshots) * 256;
        let cluster = header.cluster_bits.size_bytes();
        let most = (old_len + table).next_multiple_of(cluster) + cluster;
        assert!(store.image().len_bytes() <= most, "{}", base.name);
        images += 1;
        for (state, image) in states(&store.finish(), images, 100) {
            checked += 1;
            assert_eq!(Disk::read(&image), before, "{}, {state}", base.name);
            let again = run(&image, Mode::All).expect(base.name);
            assert_eq!(left(&again), (0, 0, 0), "{}, {state}", base.name);
            assert_eq!(Disk::read(&image), before, "{}, {state}", base.name);
        }
    }
    println!("{images} images, {checked} states");
    assert!(images > 2 && checked > 40);
}

#[test]
fn failing_write_leaves_the_data_and_a_repair_that_can_go_on() {
    let mut failed = 0;
    damaged_images("failing writes", 40, |seed, _, bytes, label| {
        let start = MemStorage::new(bytes.to_vec());
        let before = Disk::read(&start);
        let whole = MemStorage::new(bytes.to_vec());
        let whole_left = left(&run(&whole, Mode::All).expect(label));
        for nth in 0..12 {
            let fault = Fault {
                calls: Calls::Changes,
                nth,
                errno: if seed % 2 == 0 { 28 } else { 5 },
                lasting: nth % 2 == 0,
            };
            let store = FaultyStorage::with(MemStorage::new(bytes.to_vec()), fault);
            let ended = run(&store, Mode::All);
            if !store.struck() {
                break;
            }
            assert!(ended.is_err(), "{label}, write {nth}");
            failed += 1;
            let image = store.into_inner();
            assert_eq!(Disk::read(&image), before, "{label}, write {nth}");
            let again = run(&image, Mode::All).expect(label);
            assert!(is_no_more(left(&again), whole_left), "{label}, write {nth}");
        }
    });
    println!("{failed} repairs failed in the middle");
    assert!(failed > 20);
}

#[test]
fn damaged_images_never_end_in_a_panic() {
    let mut repaired = 0;
    damaged_images("damage", 150, |_, _, bytes, label| {
        for mode in [Mode::Leaks, Mode::All] {
            let image = MemStorage::new(bytes.to_vec());
            let before = Disk::read(&image);
            if run(&image, mode).is_ok() {
                repaired += 1;
                assert_eq!(Disk::read(&image), before, "{label}, {mode:?}");
                let once = image.to_vec();
                assert!(run(&image, mode).is_ok(), "{label}, {mode:?}");
                assert!(image.to_vec() == once, "{label}, {mode:?}: changed again");
            }
        }
    });
    println!("{repaired} repairs");
    assert!(repaired > 90);
}

#[test]
fn image_that_fits_no_memory_is_repaired_in_windows() {
    struct Short(u64);
    impl Reporter for Short {
        fn message(&mut self, _: MessageKind, _: &[u8]) {}
        fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
            Ok(())
        }
        fn grant(&mut self, bytes: u64) -> u64 {
            bytes.min(self.0)
        }
    }
    let mut images = 0;
    damaged_images("windows", 40, |_, _, bytes, label| {
        let whole = MemStorage::new(bytes.to_vec());
        let expected = left(&run(&whole, Mode::All).expect(label));
        let image = MemStorage::new(bytes.to_vec());
        let header = Header::read(&image, OpenMode::CheckWithKey).expect(label);
        let got = repair(&image, &header, Mode::All, &mut Short(0)).expect(label);
        assert_eq!(left(&got), expected, "{label}");
        assert_eq!(Disk::read(&image), Disk::read(&whole), "{label}");
        images += u64::from(image.len_bytes() > 0);
    });
    assert!(images > 12);
}
