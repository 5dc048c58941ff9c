//! Partition tables of arbitrary disks: every partition lies on the disk.
#![no_main]

use instar_partition::{MAX_PARTITIONS, read};
use instar_storage::MemStorage;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let len = data.len() as u64;
    let Ok(table) = read(&MemStorage::new(data.to_vec())) else {
        return;
    };
    assert!(table.partitions.len() <= 2 * MAX_PARTITIONS);
    for partition in &table.partitions {
        assert!(partition.len > 0 && partition.start + partition.len <= len);
    }
});
