//! Snapshot table and bitmap directory at an offset and of a length that the input chooses.
#![no_main]

use instar_qcow2::HostOffset;
use instar_qcow2::bitmaps::{BitmapDirectory, validate};
use instar_qcow2::extensions::BitmapsExtension;
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::MemStorage;
use libfuzzer_sys::fuzz_target;

/// Most bitmaps of an image, and most bytes of their directory: what the header lets through.
const MAX_BITMAPS: u32 = 65_535;
const MAX_DIRECTORY_BYTES: u64 = 64 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, rest)) = bytes.split_first_chunk::<16>() else {
        return;
    };
    let word = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let image = MemStorage::new(rest.to_vec());
    let offset = u64::from(word(0)) << (head[15] & 31);
    for snapshot in SnapshotTable::at(&image, HostOffset(offset), word(4) % 70_000) {
        match snapshot {
            Ok(snapshot) => assert!(snapshot.shown_id().len() <= 65_535),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let extension = BitmapsExtension {
        nb_bitmaps: word(8) % MAX_BITMAPS + 1,
        directory_size: u64::from(word(12)) % MAX_DIRECTORY_BYTES,
        directory_offset: HostOffset(offset),
    };
    let found = BitmapDirectory::new(&image, extension).count();
    assert!(found <= extension.nb_bitmaps as usize + 1);
    if let Ok(header) = Header::read(&image, OpenMode::Check) {
        if let Err(error) = validate(&image, &header, extension) {
            assert!(!error.to_string().is_empty());
        }
    }
});
