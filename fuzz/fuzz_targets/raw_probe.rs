//! The probe of a file's first bytes, with any length that the file may claim.
#![no_main]

use instar_raw::{ImageFormat, PROBE_BYTES, RawInfo, probe};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let len = bytes.len() as u64;
    for claimed in [len, 0, 511, 513, u64::MAX] {
        let first = &bytes[..bytes.len().min(PROBE_BYTES)];
        let format = probe(first, claimed);
        assert_eq!(
            ImageFormat::from_name(format.name().as_bytes()),
            Some(format)
        );
        assert_eq!(RawInfo::new(claimed).virtual_size() % 512, 0);
    }
});
