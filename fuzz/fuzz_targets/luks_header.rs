//! A LUKS1 header at any offset.
#![no_main]

use instar_luks::LuksInfo;
use instar_storage::MemStorage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let image = MemStorage::new(bytes.to_vec());
    for (offset, room) in [
        (0, bytes.len() as u64),
        (1, u64::MAX),
        (u64::MAX - 8, 592),
        (0, 0),
    ] {
        match LuksInfo::read(&image, offset, room) {
            Ok(info) => assert!(info.uuid().len() <= 40),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
});
