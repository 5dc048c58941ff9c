//! Records of the operation, right and wrong.

use super::model::Found;
use super::text;
use instar_shared::bootscan::{
    BootEntry, BootLoader, BootScheme, BootSource, BootVolume, BootscanResult, NO_INDEX,
};
use instar_shared::zerocopy::IntoBytes;

fn volume() -> Vec<u8> {
    let mut head = BootVolume::zeroed();
    head.start.set(1 << 20);
    head.len.set(4 << 20);
    head.number.set(1);
    head.lens = [4.into(), 0.into(), 0.into(), 0.into(), 0.into()];
    [head.as_bytes(), b"ext4"].concat()
}

fn source() -> Vec<u8> {
    let mut head = BootSource::zeroed();
    head.loader.set(BootLoader::Grub.raw());
    head.lens = [5.into(), 3.into()];
    [head.as_bytes(), b"/g.c", b"/why"].concat()
}

fn entry(change: impl FnOnce(&mut BootEntry)) -> Vec<u8> {
    let mut head = BootEntry::zeroed();
    head.initrds.set(2);
    head.lens = [
        1.into(),
        1.into(),
        5.into(),
        2.into(),
        6.into(),
        2.into(),
        0.into(),
    ];
    change(&mut head);
    [
        head.as_bytes(),
        b"0",
        b"a",
        b"Linux",
        b"/k",
        b"/i\0/j\0",
        b"ro",
    ]
    .concat()
}

fn found() -> Found {
    let mut found = Found::default();
    found.volume(&volume()).unwrap();
    found.source(&source()).unwrap();
    found.entry(&entry(|_| {})).unwrap();
    let mut result = BootscanResult::zeroed();
    result.scheme.set(BootScheme::Gpt.raw());
    result.volumes.set(1);
    result.entries.set(1);
    found.finish(&result).unwrap();
    found
}

#[test]
fn what_was_found_is_printed() {
    let mut out = Vec::new();
    text::print(&mut out, &found());
    let expected = "partition table: GPT
    partition 1, 4 MiB, ext4
boot loader: GRUB, /g.c/ on partition 1
boot entries:
  * 0  Linux (a)
        kernel: /k on partition 1
        initrd: /i on partition 1
        initrd: /j on partition 1
        command line: ro
default entry: 0 (why)
";
    assert_eq!(String::from_utf8(out).unwrap(), expected);
}

#[test]
fn wrong_records_are_refused() {
    let with = |payload: &[u8]| found().entry(payload).unwrap_err();
    let lengths = "a record's texts have other lengths than it says";
    assert_eq!(with(&entry(|e| e.lens[2] = 6.into())), lengths);
    assert_eq!(with(&entry(|e| e.lens[5] = 1.into())), lengths);
    assert_eq!(
        with(&entry(|e| e.kernel_volume.set(1))),
        "there is no volume 1"
    );
    assert_eq!(
        with(&entry(|e| e.initrd_volumes[1].set(NO_INDEX))),
        "there is no volume 4294967295"
    );
    let number = "the number of initial RAM disks is wrong";
    assert_eq!(with(&entry(|e| e.initrds.set(1))), number);
    assert_eq!(with(&entry(|e| e.initrds.set(3))), number);
    assert_eq!(
        with(&entry(|e| e.reserved = [0, 1])),
        "reserved bytes of a record are not zero"
    );
    assert_eq!(with(b"short"), "the record's length is wrong");
    let mut result = BootscanResult::zeroed();
    result.volumes.set(1);
    let counted = "it counts other records than there were";
    assert_eq!(found().finish(&result).unwrap_err(), counted);
    result.entries.set(1);
    result.chosen.set(1);
    assert_eq!(found().finish(&result).unwrap_err(), "there is no entry 1");
}
