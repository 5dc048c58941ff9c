//! Wrong uses against `qemu-img`, and what reaches the operation.

use super::*;
use crate::cli::{Command, parse};
use crate::oracle;
use std::path::Path;

fn options(line: &[&str]) -> CommitOptions {
    let words = ["instar", "commit"].iter().chain(line);
    match parse(words.map(OsString::from)).unwrap().command {
        Command::Commit(options) => *options,
        other => panic!("{other:?}"),
    }
}

/// The first line that `qemu-img` complains with, without its name.
fn complaint(folder: &Path, line: &[&str]) -> String {
    let arguments = [&["commit"], line].concat();
    let text = String::from_utf8(oracle::qemu_img(folder, &arguments).stderr).unwrap();
    let text = text.strip_prefix("qemu-img: ").unwrap_or(&text);
    text.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn refusals_before_the_image_is_opened_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        &[][..],
        &["a", "b"],
        &["-r", "x"],
        &["-r", "-1", "a"],
        &["-r", "9E", "a"],
        &["-r", "-t", "bogus", "a"],
        &["-r", "x", "-t", "bogus", "a"],
        &["-t", "bogus"],
        &["-t", "bogus", "a"],
        &["-t", "", "a"],
        &["-f", "bogus", "-t", "bogus", "a"],
    ] {
        let theirs = complaint(folder.path(), line);
        let ours = request(&options(line)).unwrap_err().sentence;
        assert_eq!(ours, theirs, "{line:?}");
    }
}

#[test]
fn config_says_what_is_asked_for() {
    let flags = |line: &[&str]| request(&options(line)).unwrap().config.flags.get();
    assert_eq!(flags(&["a"]), 0);
    assert_eq!(flags(&["-d", "a"]), COMMIT_KEEP);
    assert_eq!(flags(&["-b", "x", "a"]), COMMIT_KEEP | COMMIT_NAMED);
    assert_eq!(flags(&["-r", "0", "a"]), 0);
    assert_eq!(flags(&["-r", "1M", "a"]), COMMIT_PACED);
    assert_eq!(request(&options(&["-r", "1M", "a"])).unwrap().rate, 1 << 20);
}
