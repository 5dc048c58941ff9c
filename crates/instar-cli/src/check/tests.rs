//! Summaries against what `qemu-img check` prints for the same numbers.
#![allow(clippy::cast_possible_truncation)]

use super::*;
use crate::oracle;
use instar_shared::zerocopy::IntoBytes;
use std::path::Path;
use std::process::Command;

/// A number in `qemu-img`'s JSON; 0 if the key is not there.
fn number(json: &str, key: &str) -> u64 {
    let Some((_, rest)) = json.split_once(&format!("\"{key}\": ")) else {
        return 0;
    };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

/// Fails unless the summary of `qemu-img`'s numbers reads as `qemu-img`'s own.
#[track_caller]
fn compare(folder: &Path, name: &str, code: u8) {
    compare_with(folder, name, &[], code);
}

/// As [`compare`], with more options; each run gets a fresh copy of the image.
#[track_caller]
fn compare_with(folder: &Path, name: &str, options: &[&str], code: u8) {
    let check = |format: &str| {
        std::fs::copy(folder.join(name), folder.join("copy")).unwrap();
        let arguments = [&["check", format], options, &["copy"]].concat();
        oracle::qemu_img(folder, &arguments)
    };
    let (json, human) = (check("--output=json"), check("--output=human"));
    let text = String::from_utf8(json.stdout).unwrap();
    let summary = Summary {
        corruptions: number(&text, "corruptions"),
        leaks: number(&text, "leaks"),
        check_errors: number(&text, "check-errors"),
        image_end_offset: number(&text, "image-end-offset"),
        total_clusters: number(&text, "total-clusters"),
        allocated_clusters: number(&text, "allocated-clusters"),
        fragmented_clusters: number(&text, "fragmented-clusters"),
        compressed_clusters: number(&text, "compressed-clusters"),
        corruptions_fixed: number(&text, "corruptions-fixed"),
        leaks_fixed: number(&text, "leaks-fixed"),
    };
    let mut ours = Vec::new();
    summary.json(&mut ours, b"copy");
    assert_eq!(String::from_utf8(ours).unwrap(), text);
    let mut ours = Vec::new();
    summary.human(&mut ours);
    let theirs = String::from_utf8(human.stdout).unwrap();
    assert_eq!(String::from_utf8(ours).unwrap(), theirs);
    assert_eq!(summary.exit_code(), code);
    assert_eq!(human.status.code(), Some(code.into()));
}

fn write(folder: &Path, name: &str, command: &str) {
    let status = Command::new("qemu-io")
        .args(["-c", command, name])
        .current_dir(folder)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("the tests compare with qemu-io: install qemu-utils");
    assert!(status.success());
}

/// Writes a copy of an image with some bytes changed.
fn damaged(folder: &Path, from: &str, to: &str, changes: &[(usize, &[u8])]) {
    let mut image = std::fs::read(folder.join(from)).unwrap();
    for (offset, bytes) in changes {
        let end = offset + bytes.len();
        image.resize(image.len().max(end), 0);
        image[*offset..end].copy_from_slice(bytes);
    }
    std::fs::write(folder.join(to), image).unwrap();
}

#[test]
fn summaries_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    oracle::stdout(folder, &["create", "-q", "-f", "qcow2", "empty", "64M"]);
    compare(folder, "empty", 0);
    oracle::stdout(folder, &["create", "-q", "-f", "qcow2", "zero", "0"]);
    compare(folder, "zero", 0);
    oracle::stdout(folder, &["create", "-q", "-f", "qcow2", "good", "64M"]);
    write(folder, "good", "write 0 1M");
    write(folder, "good", "write 3M 64k");
    write(folder, "good", "write 2M 64k");
    compare(folder, "good", 0);
    oracle::stdout(folder, &["convert", "-c", "-O", "qcow2", "good", "packed"]);
    compare(folder, "packed", 0);
    // The first refcount block is cluster 2: two bytes per cluster.
    let refcount = |cluster: usize| 0x20000 + 2 * cluster;
    let last = std::fs::metadata(folder.join("good")).unwrap().len() as usize / 65536;
    damaged(
        folder,
        "good",
        "leak",
        &[(refcount(last), &[0, 1]), (last * 65536, &[0; 65536])],
    );
    compare(folder, "leak", 3);
    damaged(folder, "good", "missing", &[(refcount(6), &[0, 0])]);
    compare(folder, "missing", 2);
    damaged(
        folder,
        "good",
        "both",
        &[(refcount(6), &[0, 0]), (refcount(7), &[0, 9])],
    );
    compare(folder, "both", 2);
    // The refcount table is cluster 1; its first entry is not aligned.
    damaged(folder, "good", "unreadable", &[(0x10006, &[2])]);
    compare(folder, "unreadable", 1);
}

#[test]
fn summaries_of_repairs_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    oracle::stdout(folder, &["create", "-q", "-f", "qcow2", "good", "64M"]);
    write(folder, "good", "write 0 1M");
    // The first refcount block is cluster 2, the L2 table cluster 4, data begins in cluster 5.
    let refcount = |cluster: usize| 0x20000 + 2 * cluster;
    let leaks: (usize, &[u8]) = (refcount(6), &[0, 5, 0, 2]);
    let missing: (usize, &[u8]) = (refcount(9), &[0, 0]);
    let unaligned: (usize, &[u8]) = (0x40000, &[0x80, 0, 0, 0, 0, 5, 2, 0]);
    let copied: (usize, &[u8]) = (0x40000, &[0]);
    damaged(folder, "good", "leaks", &[leaks]);
    damaged(folder, "good", "missing", &[missing]);
    damaged(folder, "good", "both", &[leaks, missing]);
    damaged(folder, "good", "copied", &[copied]);
    damaged(folder, "good", "unaligned", &[unaligned]);
    damaged(folder, "good", "rest", &[unaligned, leaks]);
    for (name, repair, code) in [
        ("good", "leaks", 0),
        ("good", "all", 0),
        ("leaks", "leaks", 0),
        ("leaks", "all", 0),
        ("missing", "all", 0),
        ("both", "all", 0),
        ("copied", "leaks", 0),
        ("unaligned", "leaks", 2),
        ("unaligned", "all", 2),
        ("rest", "leaks", 2),
        ("rest", "all", 2),
    ] {
        compare_with(folder, name, &["-r", repair], code);
    }
}

#[test]
fn result_with_wrong_numbers_is_refused() {
    let mut result = CheckResult::zeroed();
    assert!(Summary::from_result(&result).is_err());
    result.format.set(ImageFormat::Qcow2.raw());
    assert_eq!(Summary::from_result(&result), Ok(Summary::default()));
    result.leaks_fixed.set(7);
    assert_eq!(Summary::from_result(&result).unwrap().leaks_fixed, 7);
    result.leaks.set(1 << 63);
    assert!(Summary::from_result(&result).is_err());
}

fn finish(result: &CheckResult) -> u8 {
    let mut bytes = [0; 256];
    bytes[..128].copy_from_slice(result.as_bytes());
    let output: Box<dyn Output> = Box::new(CheckOutput::new(Format::Human, true, Work::Check));
    output.finish(&bytes, &crate::console::tests::no_files())
}

#[test]
fn finish_maps_outcomes_to_exit_codes() {
    let mut result = CheckResult::zeroed();
    result.format.set(ImageFormat::Qcow2.raw());
    for (outcome, code) in [(0, 1), (1, 0), (2, 1), (3, 63), (4, 1), (77, 1)] {
        result.outcome.set(outcome);
        assert_eq!(finish(&result), code, "outcome {outcome}");
    }
    result.outcome.set(Outcome::Done.raw());
    result.leaks.set(1);
    assert_eq!(finish(&result), 3);
    result.corruptions.set(1);
    assert_eq!(finish(&result), 2);
    result.check_errors.set(1);
    assert_eq!(finish(&result), 1);
}
