//! Wrong uses against `qemu-img`, and what reaches the operation.

use super::*;
use crate::cli::{Command, parse};
use crate::oracle;
use instar_shared::zerocopy::FromBytes;
use std::ffi::OsString;

fn options(line: &[&str]) -> BitmapOptions {
    let words = ["instar", "bitmap"].iter().chain(line);
    match parse(words.map(OsString::from)).unwrap().command {
        Command::Bitmap(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn refusals_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        &[][..],
        &["a", "x"],
        &["-g", "1M", "a", "x"],
        &["--add", "a"],
        &["--add", "a", "x", "y"],
        &["-g", "1M", "--clear", "a", "x"],
        &["-g", "1M", "-b", "b", "--clear", "a"],
        &["--add", "-g", "x", "a", "g"],
        &["--add", "-g", "", "a", "g"],
        &["--add", "-g", "-1", "a", "g"],
        &["--add", "-g", "-1k", "a", "g"],
        &["--add", "-g", "16E", "a", "g"],
        &["--add", "-g", "8E", "a", "g"],
        &["-g", "bad", "a", "x"],
        &["-b", "b", "--add", "a", "x"],
        &["-b", "b", "-F", "x", "--add", "a"],
        &["-F", "qcow2", "--merge", "x", "a", "x"],
        &["-F", "x", "--image-opts", "-f", "x", "--add", "a", "b"],
        &["--image-opts", "-f", "x", "--add", "a", "b"],
        &["-f", "bogus", "--add", "a", "b"],
        &["--add", "", "x"],
    ] {
        let arguments = [&["bitmap"], line].concat();
        let theirs = oracle::complaint(folder.path(), &arguments);
        let ours = request(&options(line)).unwrap_err().sentence;
        assert_eq!(ours, theirs, "{line:?}");
    }
}

/// Takes the actions of a config apart.
fn decode(config: &BitmapConfig) -> Vec<(u32, Vec<u8>)> {
    let mut rest = &config.actions[..config.actions_len.get() as usize];
    let mut actions = Vec::new();
    while !rest.is_empty() {
        let (head, after) = BitmapActionHeader::read_from_prefix(rest).unwrap();
        let length = head.name_len.get() as usize;
        actions.push((head.action.get(), after[..length].to_vec()));
        rest = &after[length.next_multiple_of(8)..];
    }
    actions
}

#[test]
fn config_says_what_is_asked_for() {
    let line = [
        "--merge",
        "day-1",
        "--add",
        "-g",
        "64k",
        "--disable",
        "--merge",
        "",
        "-b",
        "b",
        "-F",
        "qcow2",
        "-f",
        "raw",
        "a",
        "week",
    ];
    let request = request(&options(&line)).unwrap();
    let config = request.config;
    assert_eq!(&config.name[..5], b"week\0");
    assert_eq!(
        (config.name_len.get(), config.granularity.get()),
        (4, 65536)
    );
    assert_eq!(config.has_source.get(), 1);
    assert_eq!(config.source_format.get(), ImageFormat::Qcow2.raw());
    assert_eq!(config.format.get(), ImageFormat::Raw.raw());
    assert_eq!(request.source.unwrap().path.to_str(), Some("b"));
    assert_eq!(
        decode(&config),
        [
            (BitmapAction::Merge.raw(), b"day-1".to_vec()),
            (BitmapAction::Add.raw(), vec![]),
            (BitmapAction::Disable.raw(), vec![]),
            (BitmapAction::Merge.raw(), vec![]),
        ]
    );
}

#[test]
fn names_and_actions_that_are_too_long_end_somewhere() {
    let name = "x".repeat(5000);
    let config = request(&options(&["--merge", &name, "a", &name]))
        .unwrap()
        .config;
    assert_eq!(config.name_len.get(), 1024);
    assert_eq!(decode(&config)[0].1.len(), 1024);
    let mut line = vec!["--add"; 2000];
    line.extend(["a", "b"]);
    let sentence = request(&options(&line)).unwrap_err().sentence;
    assert!(sentence.contains("12288 are the most"), "{sentence}");
}
