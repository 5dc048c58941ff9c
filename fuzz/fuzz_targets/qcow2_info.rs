//! Everything that `info` reads of a qcow2 image: header, extensions, LUKS header, snapshots, bitmaps.
#![no_main]

use instar_qcow2::ImageInfo;
use instar_storage::MemStorage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let image = MemStorage::new(bytes.to_vec());
    let Ok(info) = ImageInfo::read(&image) else {
        return;
    };
    let _ = (info.virtual_size(), info.data_file(), info.backing_format());
    for snapshot in info.snapshots(&image) {
        // `read` has been through the table.
        let snapshot = snapshot.expect("a table that was sound");
        let _ = (snapshot.shown_id(), snapshot.shown_name());
    }
    for bitmap in info.bitmaps(&image).into_iter().flatten() {
        match bitmap {
            Ok(bitmap) => {
                let _ = (
                    bitmap.granularity_bytes(),
                    bitmap.satisfies_constraints(&info.header),
                );
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
