//! Disks in memory whose requests end in any order.

extern crate std;

use super::*;
use instar_layers::{CompressionType, Corrupt, Layer};
use instar_storage::overlap::MemOverlap;
use instar_storage::{MemStorage, StorageMut};
use std::vec;

struct NoCodec;

impl Decompress for NoCodec {
    fn decompress(&mut self, _: CompressionType, _: &[u8], _: &mut [u8]) -> Result<(), Corrupt> {
        Err(Corrupt)
    }
}

struct Quiet;

impl Monitor for Quiet {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total);
        Ok(())
    }
}

/// A store with a number.
type Store = (u16, MemStorage);

struct Numbered(Store);

impl Storage for Numbered {
    fn len_bytes(&self) -> u64 {
        self.0.1.len_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), instar_storage::StorageError> {
        self.0.1.read_at(offset, buf)
    }
    fn extent_at(
        &self,
        offset: u64,
    ) -> Result<Option<instar_storage::Extent>, instar_storage::StorageError> {
        self.0.1.extent_at(offset)
    }
}

/// Compares two raw disks; the `fail`th request that overlaps fails.
fn judge(one: &MemStorage, two: &MemStorage, strict: bool, fail: Option<u64>) -> Found {
    let chain = |number: u16, store: &MemStorage| {
        Chain::new(vec![Layer::raw(Numbered((number, store.clone())))])
    };
    let chains = [chain(0, one), chain(1, two)];
    let overlap = MemOverlap::new([(0, one), (1, two)], 64, 7);
    if let Some(nth) = fail {
        overlap.fail(nth, 5);
    }
    let disks = Disks {
        chains: [&chains[0], &chains[1]],
        overlap: &overlap,
        number: |store: &Numbered| store.0.0,
    };
    compare(&disks, strict, &mut NoCodec, &mut Quiet).unwrap()
}

fn disk(len: u64) -> MemStorage {
    let store = MemStorage::hole(len);
    for at in (0..len).step_by(16 << 10) {
        store.write_at(at, &[9; 512]).unwrap();
    }
    store
}

#[test]
fn the_first_difference_is_found_in_any_order_of_requests() {
    let one = disk(17 << 20);
    for place in [0, 511, (2 << 20) - 1, (5 << 20) + 600, (17 << 20) - 1] {
        let two = one.clone();
        two.write_at(place, &[1]).unwrap();
        two.write_at((17 << 20) - 1, &[1]).unwrap();
        for fail in [None, Some(0), Some(1), Some(5)] {
            let found = judge(&one, &two, false, fail);
            assert_eq!(
                found.verdict,
                Verdict::Content(place / 512 * 512),
                "{fail:?}"
            );
        }
    }
    for fail in [None, Some(2)] {
        let found = judge(&one, &one.clone(), true, fail);
        assert_eq!(found.verdict, Verdict::Identical, "{fail:?}");
    }
}

#[test]
fn the_longer_disk_must_end_in_zeros() {
    let (one, two) = (disk(4 << 20), MemStorage::hole(4 << 20));
    two.set_len(9 << 20).unwrap();
    let data = one.to_vec();
    two.write_at(0, &data).unwrap();
    let found = judge(&one, &two, false, None);
    assert_eq!((found.verdict, found.longer), (Verdict::Identical, true));
    assert_eq!(judge(&one, &two, true, None).verdict, Verdict::Size);
    two.write_at((8 << 20) + 1000, &[3]).unwrap();
    for (a, b) in [(&one, &two), (&two, &one)] {
        let found = judge(a, b, false, None);
        assert_eq!(
            (found.verdict, found.longer),
            (Verdict::Content((8 << 20) + 512), true)
        );
    }
}
