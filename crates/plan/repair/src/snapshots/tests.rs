//! Snapshot tables that end behind the file's end, where zeros stand for entries.

use super::*;
use crate::Cancelled;
use alloc::vec;
use instar_qcow2::OpenMode;
use instar_storage::MemStorage;

/// Entries: of 40 bytes each, and of 64 when they are repaired, both more than one buffer.
const ENTRIES: u32 = 10_001;
const CLUSTER: u64 = 1 << 16;
/// Where the old table starts.
const OLD: u64 = 4 * CLUSTER;
/// Bytes of the new table: the first entry has an id, so that no buffer is whole sectors.
const NEW_BYTES: u64 = ENTRIES as u64 * 64 + 8;
/// What is where nothing is to be written.
const OTHER: u8 = 0xaa;

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

/// A version 3 image whose snapshot table starts in its last cluster.
fn image() -> (MemStorage, Header) {
    let mut bytes = vec![0; usize::try_from(OLD + 512).unwrap()];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"QFI\xfb");
    put(4, &3_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(3 * CLUSTER).to_be_bytes());
    put(48, &CLUSTER.to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(60, &ENTRIES.to_be_bytes());
    put(64, &OLD.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(usize::try_from(OLD).unwrap() + 12, &8_u16.to_be_bytes());
    let storage = MemStorage::new(bytes);
    let header = Header::read(&storage, OpenMode::Check).unwrap();
    (storage, header)
}

/// The new table, written to `place`.
fn repaired(storage: &MemStorage, header: &Header, new: &NewTable, place: u64) -> Vec<u8> {
    write(storage, header, new, place).unwrap();
    let mut table = vec![0; usize::try_from(NEW_BYTES).unwrap()];
    storage.read_at(place, &mut table).unwrap();
    table
}

#[test]
fn new_table_ends_with_its_last_sector() {
    let (storage, header) = image();
    let new = look(&storage, &header, &mut Quiet).unwrap().unwrap();
    assert_eq!((new.count, new.bytes), (ENTRIES, NEW_BYTES));
    let place = 100 * CLUSTER;
    let sectors = NEW_BYTES.next_multiple_of(512);
    storage
        .write_at(
            place,
            &vec![OTHER; usize::try_from(sectors + CLUSTER).unwrap()],
        )
        .unwrap();
    repaired(&storage, &header, &new, place);
    let mut behind = vec![0; usize::try_from(CLUSTER).unwrap()];
    storage.read_at(place + sectors, &mut behind).unwrap();
    assert!(behind.iter().all(|byte| *byte == OTHER));
}

#[test]
fn new_table_in_the_place_of_zeros_does_not_read_itself() {
    let (storage, header) = image();
    let new = look(&storage, &header, &mut Quiet).unwrap().unwrap();
    let inside = repaired(&storage, &header, &new, OLD + CLUSTER);
    let (storage, header) = image();
    let outside = repaired(&storage, &header, &new, 100 * CLUSTER);
    assert!(inside == outside);
}

#[test]
fn offset_of_a_table_that_is_not_there_is_repaired() {
    let (storage, mut header) = image();
    header.nb_snapshots = 0;
    assert!(look(&storage, &header, &mut Quiet).unwrap().is_none());
    header.snapshots_offset = instar_qcow2::HostOffset(OLD + 512);
    let new = look(&storage, &header, &mut Quiet).unwrap().unwrap();
    assert_eq!((new.count, new.repaired), (0, 1));
    assert_eq!(new.kept_span(&header), None);
}
