use super::*;
use alloc::string::ToString;
use alloc::vec;
use instar_storage::{FaultyStorage, MemStorage};

/// An entry: extra data, ID and name after the fixed part, padded to 8 bytes.
fn entry(extra: &[u8], id: &[u8], name: &[u8]) -> Vec<u8> {
    let raw = RawSnapshot {
        l1_table_offset: U64::new(0x4_0000),
        l1_size: U32::new(1),
        id_size: U16::new(id.len().try_into().unwrap()),
        name_size: U16::new(name.len().try_into().unwrap()),
        date_sec: U32::new(1_700_000_000),
        date_nsec: U32::new(5),
        vm_clock_nsec: U64::new(3_723_456_789_012),
        vm_state_size: U32::new(1000),
        extra_data_size: U32::new(extra.len().try_into().unwrap()),
    };
    let mut bytes = [raw.as_bytes(), extra, id, name].concat();
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

fn extra(vm_state: u64, disk: u64, icount: u64) -> Vec<u8> {
    [vm_state, disk, icount]
        .iter()
        .flat_map(|n| n.to_be_bytes())
        .collect()
}

fn table(entries: &[Vec<u8>]) -> MemStorage {
    MemStorage::new(entries.concat())
}

fn read(store: &MemStorage, count: u32) -> Vec<Result<Snapshot, SnapshotError>> {
    SnapshotTable::at(store, HostOffset(0), count).collect()
}

#[test]
fn entries_of_every_extra_data_size_are_read() {
    let all = extra(1 << 40, 12345, 77);
    let entries: Vec<_> = [0, 8, 16, 24, 24]
        .iter()
        .map(|len| entry(&all[..*len], b"1", b"name"))
        .chain([entry(&[all.clone(), vec![9; 8]].concat(), b"2", b"n")])
        .collect();
    let got: Vec<_> = read(&table(&entries), 6)
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let sizes: Vec<_> = got.iter().map(|s| s.vm_state_size).collect();
    assert_eq!(sizes, [1000, 1 << 40, 1 << 40, 1 << 40, 1 << 40, 1 << 40]);
    assert_eq!((got[1].disk_size, got[2].disk_size), (None, Some(12345)));
    assert_eq!((got[2].icount, got[3].icount), (None, Some(77)));
    assert!(got[1].is_incomplete() && !got[2].is_incomplete());
    assert_eq!(
        (got[5].index, &got[5].id[..], &got[5].name[..]),
        (5, &b"2"[..], &b"n"[..])
    );
    assert_eq!(got[5].extra_data_size, 32);
}

#[test]
fn icount_of_minus_one_counts_as_absent() {
    let store = table(&[entry(&extra(0, 0, u64::MAX), b"1", b"n")]);
    assert_eq!(read(&store, 1)[0].as_ref().unwrap().icount, None);
}

#[test]
fn long_names_are_kept_whole_and_shown_cut() {
    let store = table(&[
        entry(&[], &[b'i'; 65535], &[b'n'; 65535]),
        entry(&[], b"a\0b", b"c"),
    ]);
    let got: Vec<_> = read(&store, 2).into_iter().map(Result::unwrap).collect();
    assert_eq!((got[0].id.len(), got[0].name.len()), (65535, 65535));
    assert_eq!(
        (got[0].shown_id().len(), got[0].shown_name().len()),
        (127, 255)
    );
    assert_eq!(got[1].id, b"a");
}

#[test]
fn too_much_extra_data_ends_the_table_with_qemus_text() {
    let store = table(&[
        entry(&[], b"", b""),
        entry(&[1; 1025], b"", b""),
        entry(&[], b"", b""),
    ]);
    let got = read(&store, 3);
    assert_eq!(got.len(), 2);
    assert_eq!(
        got[1].as_ref().unwrap_err().to_string(),
        "Too much extra metadata in snapshot table entry 1\n\
         You can force-remove this extra metadata with qemu-img check -r all"
    );
}

#[test]
fn table_past_its_cap_tells_how_many_overhang() {
    let big = entry(&[], &[b'i'; 65535], &[b'n'; 65535]);
    assert_eq!(big.len(), 131_112);
    let store = table(&vec![big; 513]);
    let last = read(&store, 513).pop().unwrap();
    assert_eq!(last, Err(SnapshotError::TableTooBig { overhanging: 2 }));
    assert!(read(&store, 511).iter().all(Result::is_ok));
}

#[test]
fn count_above_the_cap_is_cut_and_zeros_are_entries() {
    let store = MemStorage::new(Vec::new());
    assert_eq!(
        SnapshotTable::at(&store, HostOffset(512), u32::MAX).count(),
        65_536
    );
}

#[test]
fn faults_and_the_file_limit_are_reported() {
    let store = FaultyStorage::new(table(&[entry(&[], b"1", b"n")]), 0, 5);
    let got: Vec<_> = SnapshotTable::at(&store, HostOffset(0), 1).collect();
    assert_eq!(
        got,
        [Err(SnapshotError::Storage(StorageError {
            errno: 5,
            offset: 0
        }))]
    );
    let far = SnapshotTable::at(&store, HostOffset(MAX_FILE_BYTES), 1)
        .next()
        .unwrap();
    assert_eq!(
        far.unwrap_err().to_string(),
        "Failed to read snapshot table: Input/output error"
    );
}
