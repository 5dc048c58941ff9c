//! Wrong uses against `qemu-img`, and what reaches the operation.

use super::*;
use crate::cli::{Command, parse};
use crate::oracle;

fn options(line: &[&str]) -> ResizeOptions {
    let words = ["instar", "resize"].iter().chain(line);
    match parse(words.map(OsString::from)).unwrap().command {
        Command::Resize(options) => options,
        other => panic!("{other:?}"),
    }
}

#[test]
fn refusals_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        &[][..],
        &["a"],
        &["a", "b", "c"],
        &["--shrink"],
        &["+1M", "a"],
        &["a", "1X"],
        &["a", "-1X"],
        &["a", "+"],
        &["a", "-"],
        &["a", ""],
        &["a", "1e6"],
        &["a", "1.5"],
        &["a", "16E"],
        &["a", "+-1"],
        &["a", "+-1M"],
        &["a", "18446744073709551616"],
        &["--preallocation", "bogus", "a"],
        &["--preallocation=", "a", "1M"],
        &["--preallocation", "bogus", "a", "x"],
        &["--image-opts", "-f", "raw", "a", "x"],
        &["--image-opts", "-f", "raw", "a", "1M"],
        &["--image-opts", "-f", "raw"],
        &["-f", "bogus", "a", "1M"],
        &["", "1M"],
        &["foo:a", "1M"],
    ] {
        let arguments = [&["resize"], line].concat();
        let theirs = oracle::complaint(folder.path(), &arguments);
        let ours = config(&options(line)).unwrap_err().sentence;
        assert_eq!(ours.lines().next().unwrap(), theirs, "{line:?}");
    }
}

#[test]
fn config_says_what_is_asked_for() {
    use Preallocation::{Falloc, Full, Metadata, Off};
    use SizeForm::{Absolute, Grow, Shrink};
    for (line, form, size, preallocation, flags) in [
        (&["a", "1M"][..], Absolute, 1 << 20, Off, 0),
        (&["a", "+1.5K"], Grow, 1536, Off, 0),
        (&["a", "++1"], Grow, 1, Off, 0),
        (
            &["--shrink", "a", "-5G"],
            Shrink,
            5 << 30,
            Off,
            RESIZE_SHRINK,
        ),
        (
            &["--preallocation=metadata", "a", "0"],
            Absolute,
            0,
            Metadata,
            0,
        ),
        (
            &["--preallocation", "falloc", "a", "8E"],
            Absolute,
            1 << 63,
            Falloc,
            0,
        ),
        (&["--preallocation", "full", "a", "1"], Absolute, 1, Full, 0),
        (&["--preallocation", "off", "a", "+0"], Grow, 0, Off, 0),
    ] {
        let (image, config) = config(&options(line)).unwrap();
        assert_eq!(image.format, ImageFormat::Probe);
        assert_eq!(config.form.get(), form.raw(), "{line:?}");
        assert_eq!(config.size.get(), size, "{line:?}");
        assert_eq!(config.preallocation.get(), preallocation.raw(), "{line:?}");
        assert_eq!(config.flags.get(), flags, "{line:?}");
    }
    let (image, config) = config(&options(&["-f", "raw", "a", "1M"])).unwrap();
    assert_eq!(image.format, ImageFormat::Raw);
    assert_eq!(config.format.get(), ImageFormat::Raw.raw());
}
