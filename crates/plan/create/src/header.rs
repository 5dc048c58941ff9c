//! The bytes of a new image's header.

use alloc::vec::Vec;
use instar_qcow2::Header;
use instar_qcow2::header::HeaderArea;

/// QEMU: smaller clusters get no feature name table.
const MIN_CLUSTER_WITH_NAMES: u64 = 8192;

/// Header, extensions and backing file name; zeros after them not included.
pub fn encode(header: &Header) -> Vec<u8> {
    let names = header.cluster_bits.size_bytes() >= MIN_CLUSTER_WITH_NAMES;
    HeaderArea::with_feature_names().encode(header, names)
}
