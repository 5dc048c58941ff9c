//! Tables that sfdisk made, whole and damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crc::{CRC_32_ISO_HDLC, Crc};
use instar_partition::{Kind, Partition, PartitionError, Scheme, Table, read};
use instar_storage::MemStorage;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const DISK_BYTES: u64 = 64 << 20;

/// A disk that sfdisk has partitioned by `script`.
fn disk(script: &str) -> Vec<u8> {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(DISK_BYTES).unwrap();
    sfdisk(file.path(), script);
    std::fs::read(file.path()).unwrap()
}

fn sfdisk(path: &Path, script: &str) {
    let path_variable = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap());
    let mut child = Command::new("sfdisk")
        .env("PATH", path_variable)
        .args(["-q", "--no-reread", "--no-tell-kernel"])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("sfdisk, of the package fdisk, is needed");
    child
        .stdin
        .take()
        .unwrap()
        .write_all(script.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}

fn table(bytes: &[u8]) -> Result<Table, PartitionError> {
    read(&MemStorage::new(bytes.to_vec()))
}

const GPT: &str = "label: gpt
start=2048, size=8192, type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, \
uuid=6A5C1B0E-1111-4222-8333-0123456789AB, name=\"EFI System\"
start=16384, size=65536, type=L, uuid=00112233-4455-6677-8899-AABBCCDDEEFF, name=\"ж root\", \
attrs=LegacyBIOSBootable
";

fn places(partitions: &[Partition]) -> Vec<(u32, u64, u64)> {
    let place = |p: &Partition| (p.number, p.start, p.len);
    partitions.iter().map(place).collect()
}

#[test]
fn gpt_of_sfdisk_is_read() {
    let table = table(&disk(GPT)).unwrap();
    assert_eq!(table.scheme, Scheme::Gpt { from_backup: false });
    let places = places(&table.partitions);
    assert_eq!(places, [(1, 1 << 20, 4 << 20), (2, 8 << 20, 32 << 20)]);
    let [esp, root] = &table.partitions[..] else {
        panic!("two partitions");
    };
    assert!(esp.kind.is_efi_system() && !esp.active && esp.name == "EFI System");
    assert_eq!(esp.uuid, "6a5c1b0e-1111-4222-8333-0123456789ab");
    assert!(!root.kind.is_efi_system() && root.active && root.name == "ж root");
    assert_eq!(root.uuid, "00112233-4455-6677-8899-aabbccddeeff");
}

#[test]
fn backup_gpt_stands_in_for_a_damaged_primary() {
    let whole = disk(GPT);
    let expected = table(&whole).unwrap().partitions;
    // In the header, in its checksum, in the array.
    for at in [512, 512 + 17, 512 + 80, 1024 + 40] {
        let mut bytes = whole.clone();
        bytes[at] ^= 1;
        let table = table(&bytes).unwrap();
        assert_eq!(table.scheme, Scheme::Gpt { from_backup: true }, "{at}");
        assert_eq!(table.partitions, expected);
        let backup = bytes.len() - 512 + 20;
        bytes[backup] ^= 1;
        assert_eq!(
            read(&MemStorage::new(bytes)),
            Err(PartitionError::BothGptsDamaged)
        );
    }
}

#[test]
fn mbr_of_sfdisk_with_logical_partitions_is_read() {
    let script = "label: dos
label-id: 0x1234abcd
start=2048, size=2048, type=ef
start=4096, size=4096, type=83, bootable
start=10240, size=100000, type=5
start=12288, size=2048, type=83
start=20480, size=4096, type=82
start=30720, size=8192, type=83
";
    let table = table(&disk(script)).unwrap();
    assert_eq!(table.scheme, Scheme::Mbr);
    let sectors = |start: u64, len: u64| (start * 512, len * 512);
    let expected = [
        (1, sectors(2048, 2048)),
        (2, sectors(4096, 4096)),
        (5, sectors(12288, 2048)),
        (6, sectors(20480, 4096)),
        (7, sectors(30720, 8192)),
    ];
    let expected: Vec<_> = expected.iter().map(|(n, (s, l))| (*n, *s, *l)).collect();
    assert_eq!(places(&table.partitions), expected);
    let uuids: Vec<_> = table.partitions.iter().map(|p| p.uuid.as_str()).collect();
    let expected = [
        "1234abcd-01",
        "1234abcd-02",
        "1234abcd-05",
        "1234abcd-06",
        "1234abcd-07",
    ];
    assert_eq!(uuids, expected);
    assert!(table.partitions[0].kind.is_efi_system());
    assert!(table.partitions[1].active && table.partitions[4].kind == Kind::Mbr(0x83));
}

#[test]
fn disk_without_a_table_has_none() {
    let table = table(&vec![0; 1 << 20]).unwrap();
    assert_eq!((table.scheme, table.partitions.len()), (Scheme::None, 0));
    assert_eq!(
        read(&MemStorage::new(Vec::new())).unwrap().scheme,
        Scheme::None
    );
}

#[test]
fn chain_of_extended_records_that_loops_ends() {
    let mut bytes = disk("label: dos\nstart=2048, size=60000, type=5\nstart=4096, size=2048\n");
    // The second entry of the first extended record leads to itself.
    let link = 2048 * 512 + 446 + 16;
    bytes[link + 4] = 5;
    bytes[link + 8..link + 12].copy_from_slice(&0_u32.to_le_bytes());
    bytes[link + 12..link + 16].copy_from_slice(&1_u32.to_le_bytes());
    assert_eq!(places(&table(&bytes).unwrap().partitions).len(), 1);
}

#[test]
fn truncated_disk_loses_what_does_not_lie_on_it() {
    let mut bytes = disk(GPT);
    bytes.truncate(9 << 20);
    let table = table(&bytes).unwrap();
    assert_eq!(places(&table.partitions), [(1, 1 << 20, 4 << 20)]);
}

/// No tool makes such a table in a file, so the one of sfdisk is put into larger sectors.
#[test]
fn disk_of_four_kib_sectors_is_read() {
    const CRC32: Crc<u32> = Crc::<u32>::new(&CRC_32_ISO_HDLC);
    let small = disk(GPT);
    let mut bytes = vec![0; 400 << 20];
    bytes[4096..4608].copy_from_slice(&small[512..1024]);
    bytes[8192..24576].copy_from_slice(&small[1024..17408]);
    bytes[4096 + 16..4096 + 20].fill(0);
    let sum = CRC32.checksum(&bytes[4096..4096 + 92]);
    bytes[4096 + 16..4096 + 20].copy_from_slice(&sum.to_le_bytes());
    let table = table(&bytes).unwrap();
    let expected = [(1, 8 << 20, 32 << 20), (2, 64 << 20, 256 << 20)];
    assert_eq!(places(&table.partitions), expected);
}
