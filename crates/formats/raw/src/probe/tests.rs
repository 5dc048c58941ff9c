use super::*;
use proptest::prelude::*;
use std::process::Command;
use std::string::String;
use std::vec::Vec;

extern crate std;

/// Bytes with others put at an offset, in a file of 4 KiB.
fn file(parts: &[(usize, &[u8])]) -> Vec<u8> {
    let mut bytes = std::vec![0; 4096];
    for (at, part) in parts {
        bytes[*at..*at + part.len()].copy_from_slice(part);
    }
    bytes
}

fn bochs(kind: &[u8], version: u32) -> Vec<u8> {
    file(&[
        (0, b"Bochs Virtual HD Image"),
        (32, b"Redolog"),
        (48, kind),
        (64, &version.to_le_bytes()),
    ])
}

fn samples() -> Vec<(&'static str, Vec<u8>, ImageFormat)> {
    use ImageFormat::*;
    std::vec![
        ("zeros", file(&[]), Raw),
        ("qcow2", file(&[(0, b"QFI\xfb\0\0\0\x03")]), Qcow2),
        (
            "qcow2 of version 9",
            file(&[(0, b"QFI\xfb\0\0\0\x09")]),
            Qcow2
        ),
        ("qcow", file(&[(0, b"QFI\xfb\0\0\0\x01")]), Qcow),
        ("qcow of version 0", file(&[(0, b"QFI\xfb")]), Raw),
        ("vmdk sparse", file(&[(0, b"KDMV")]), Vmdk),
        ("vmdk cowd", file(&[(0, b"COWD")]), Vmdk),
        (
            "vmdk descriptor",
            file(&[(0, b"# Disk DescriptorFile\nversion=1\n")]),
            Vmdk
        ),
        (
            "vmdk descriptor, CR",
            file(&[(0, b"#\r\n \r\nversion=3\r\n")]),
            Vmdk
        ),
        (
            "vmdk descriptor, blanks",
            file(&[(0, b" \n  \n# x\nversion=2\n")]),
            Vmdk
        ),
        (
            "vmdk descriptor, other version",
            file(&[(0, b"# x\nversion=4\n")]),
            Raw
        ),
        (
            "vmdk descriptor, other key",
            file(&[(0, b"# x\nCID=1\nversion=1\n")]),
            Raw
        ),
        (
            "vmdk descriptor, long version",
            file(&[(0, b"# x\nversion=11\n")]),
            Raw
        ),
        (
            "vmdk descriptor, empty line",
            file(&[(0, b"# x\n\nversion=2\n")]),
            Raw
        ),
        (
            "vmdk descriptor, no comment",
            file(&[(0, b"version=2\n")]),
            Vmdk
        ),
        (
            "vmdk descriptor, indented",
            file(&[(0, b"#\n version=2\n")]),
            Raw
        ),
        ("shell script", file(&[(0, b"#!/bin/sh\necho\n")]), Raw),
        ("vdi", file(&[(64, &0xbeda_107f_u32.to_le_bytes())]), Vdi),
        ("vpc", file(&[(0, b"conectix")]), Vpc),
        ("vhdx", file(&[(0, b"vhdxfile")]), Vhdx),
        ("qed", file(&[(0, b"QED\0")]), Qed),
        (
            "parallels",
            file(&[(0, b"WithoutFreeSpace"), (16, &[2])]),
            Parallels
        ),
        (
            "parallels ext",
            file(&[(0, b"WithouFreSpacExt"), (16, &[2])]),
            Parallels
        ),
        (
            "parallels of version 3",
            file(&[(0, b"WithouFreSpacExt"), (16, &[3])]),
            Raw
        ),
        ("bochs 1", bochs(b"Growing", 0x1_0000), Bochs),
        ("bochs 2", bochs(b"Growing", 0x2_0000), Bochs),
        ("bochs 3", bochs(b"Growing", 0x3_0000), Raw),
        ("bochs flat", bochs(b"Flat", 0x2_0000), Raw),
        ("cloop", file(&[(0, CLOOP)]), Cloop),
        ("cloop cut", file(&[(0, &CLOOP[..40])]), Raw),
        ("luks 1", file(&[(0, b"LUKS\xba\xbe\0\x01")]), Luks),
        ("luks 2", file(&[(0, b"LUKS\xba\xbe\0\x02")]), Raw),
        ("dmg trailer", file(&[(4096 - 512, b"koly")]), Raw),
    ]
}

#[test]
fn signatures_are_recognised() {
    for (name, bytes, expected) in samples() {
        assert_eq!(probe(&bytes, bytes.len() as u64), expected, "{name}");
    }
}

fn info(path: &str, format: Option<&str>) -> (String, String) {
    let mut command = Command::new("qemu-img");
    command.arg("info");
    if let Some(format) = format {
        command.args(["-f", format]);
    }
    let output = command
        .arg(path)
        .output()
        .expect("qemu-img must be installed (qemu-utils)");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// A file taken for another format gives what that format's driver says of it.
#[test]
fn probe_agrees_with_qemu_img() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let path = path.to_str().unwrap();
    for (name, bytes, _) in samples() {
        for len in [bytes.len(), 1024, 100, 68, 24, 10, 4, 3, 0] {
            let bytes = &bytes[..len];
            std::fs::write(path, bytes).unwrap();
            let format = probe(bytes, len as u64);
            let probed = info(path, None);
            assert_eq!(
                probed,
                info(path, Some(format.name())),
                "{name}, {len} bytes: {format:?}"
            );
        }
    }
}

#[test]
fn raw_size_agrees_with_qemu_img() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    for len in [0_u64, 1, 511, 512, 513, 1_000_001] {
        std::fs::write(&path, std::vec![0; usize::try_from(len).unwrap()]).unwrap();
        let (shown, _) = info(path.to_str().unwrap(), Some("raw"));
        let size = crate::RawInfo::new(len).virtual_size();
        let line = shown
            .lines()
            .find(|line| line.starts_with("virtual size: "))
            .unwrap();
        assert!(
            line.contains(&std::format!("({size} bytes)")),
            "{len}: {line}"
        );
    }
}

#[test]
fn trailer_is_looked_for_at_the_end_only() {
    let bytes = file(&[(4096 - 512, b"koly")]);
    assert!(probe_trailer(&bytes));
    assert!(!probe_trailer(&bytes[..4095]));
    assert!(!probe_trailer(b"koly"));
}

#[test]
fn names_and_formats_convert() {
    for format in ImageFormat::ALL {
        assert_eq!(
            ImageFormat::from_name(format.name().as_bytes()),
            Some(format)
        );
    }
    assert_eq!(ImageFormat::from_name(b"file"), None);
}

proptest! {
    #[test]
    fn any_bytes_give_a_format(bytes in proptest::collection::vec(any::<u8>(), 0..3000), len: u64) {
        let _ = probe(&bytes, len);
        let _ = probe_trailer(&bytes);
    }
}
