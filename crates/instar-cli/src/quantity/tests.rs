//! Sizes and numbers against `qemu-img`, which makes a raw image of that many bytes.

use super::*;
use crate::oracle;
use proptest::prelude::*;

/// The bytes that `qemu-img` takes a size for.
fn theirs(text: &str) -> Result<u64, QuantityError> {
    let folder = tempfile::tempdir().unwrap();
    // An empty file would grow by whole sectors.
    let file = std::fs::File::create(folder.path().join("r")).unwrap();
    file.set_len(1 << 20).unwrap();
    let arguments = ["resize", "-q", "-f", "raw", "--shrink", "r", "--", text];
    let output = oracle::qemu_img(folder.path(), &arguments);
    let error = String::from_utf8(output.stderr).unwrap();
    if error.contains("expects a non-negative number") {
        Err(QuantityError::Syntax)
    } else if error.contains("is out of range for parameter") {
        Err(QuantityError::Range)
    } else {
        // Length 0 and lengths beyond the file system's are refused, but were understood.
        let length = std::fs::metadata(folder.path().join("r")).unwrap().len();
        Ok(if output.status.success() {
            length
        } else {
            u64::MAX
        })
    }
}

/// Fails unless both read the same size.
#[track_caller]
fn compare(text: &str) {
    match (size(text.as_bytes()), theirs(text)) {
        // Understood, but no such file can be made.
        (Ok(_), Ok(u64::MAX)) => {}
        (ours, theirs) => assert_eq!(ours, theirs, "{text:?}"),
    }
}

#[test]
fn sizes_equal_qemu_img() {
    let long = format!("1.{}1k", "0".repeat(60));
    for text in [
        "0",
        "00",
        "1",
        "010",
        "0x10",
        "0X10",
        "0x",
        "0xg",
        "1e3",
        "1.5k",
        "1,5k",
        "1.25K",
        ".5k",
        "5.k",
        ".k",
        ".",
        "1.5",
        "1.0",
        "1.0b",
        "0.5b",
        "1b",
        "1B",
        "1c",
        "1kk",
        "1 k",
        " 1k",
        "\t1k",
        "\u{b}1k",
        "\u{a0}1k",
        "+1k",
        "1.5e1k",
        "0x1.8",
        "0x1k",
        "0x1E",
        "0x10b",
        "1.999999999999k",
        "0.0000001k",
        "16E",
        "15.99999999999999999999E",
        "1.5.5k",
        "18446744073709551615",
        "18446744073709551616",
        "18446744073709551615k",
        "18446744073709551616k",
        "18446744073709551616.",
        "99999999999999999999.5k",
        "1_0",
        "1k0",
        "1k ",
        "0.1k",
        "0.3k",
        "0.55k",
        "0.4995k",
        "0.9995k",
        "0.9999k",
        "1.7M",
        "0.7G",
        "1.1T",
        "1.k",
        "1.b",
        "1.",
        "0x10.0",
        "inf",
        "nan",
        "0b1",
        "1e",
        "",
        " ",
        "+",
        "+0x10",
        "00x10",
        " 0x10",
        "0xfffffffffffffffff",
        "1.+5k",
        "1. 5k",
        "0.0",
        ".0",
        "1.0e1",
        "0x1p3",
        &long,
        "0.00000000000000000000000000001",
        "++1k",
        "x",
        "k",
        "1.5P",
        "7E",
    ] {
        // A sign at the front is the difference's, not the size's.
        let text = text.trim_start_matches('+');
        compare(text);
    }
}

#[test]
fn minus_is_out_of_range_or_not_a_size() {
    let folder = tempfile::tempdir().unwrap();
    oracle::stdout(folder.path(), &["create", "-q", "-f", "qcow2", "a", "1M"]);
    for text in [
        "-1",
        "-0",
        "-1M",
        "-1b",
        "-1.",
        "-.5k",
        "-0x10",
        "-",
        "- 1",
        "-18446744073709551616",
        "+-1",
        "--1",
        " -1",
    ] {
        let option = format!("size={text}");
        let output = oracle::qemu_img(folder.path(), &["amend", "-o", &option, "a"]);
        let ours = crate::cli::size_option("size", text.as_bytes()).unwrap_err();
        let theirs = String::from_utf8(output.stderr).unwrap();
        assert_eq!(format!("qemu-img: {ours}\n"), theirs, "{text}");
    }
}

#[test]
fn numbers_have_c_syntax() {
    for (text, value) in [
        ("16", Ok(16)),
        (" +16", Ok(16)),
        ("010", Ok(8)),
        ("0x1F", Ok(31)),
        ("0", Ok(0)),
        ("-1", Ok(u64::MAX)),
        ("08", Err(QuantityError::Syntax)),
        ("16k", Err(QuantityError::Syntax)),
        ("16.0", Err(QuantityError::Syntax)),
        ("", Err(QuantityError::Syntax)),
        ("0x", Err(QuantityError::Syntax)),
        ("18446744073709551616", Err(QuantityError::Range)),
    ] {
        assert_eq!(number(text.as_bytes()), value, "{text}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn random_sizes_equal_qemu_img(text in "[0-9]{0,4}\\.?[0-9]{0,6}[bkKMGx ]{0,2}") {
        compare(&text);
    }

    #[test]
    fn any_text_is_read_without_a_panic(text in ".{0,24}") {
        let _ = (size(text.as_bytes()), number(text.as_bytes()));
    }
}
