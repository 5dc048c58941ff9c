//! Texts and exit codes of what an operation says.

use super::*;
use crate::console::tests::{no_files, to_captures};
use crate::sink::tests::Capture;

/// What is printed of a result, and the exit code.
fn printed(
    format: Format,
    quiet: bool,
    change: impl Fn(&mut CompareResult),
) -> (String, String, u8) {
    let (out, err) = (Capture::default(), Capture::default());
    let output = CompareOutput {
        console: to_captures([&out, &err], format == Format::Json, quiet),
        format,
        quiet,
    };
    let mut result = CompareResult::zeroed();
    result.outcome.set(Outcome::Done.raw());
    change(&mut result);
    let mut bytes = [0; RESULT_BYTES];
    bytes[..size_of::<CompareResult>()].copy_from_slice(result.as_bytes());
    let code = Box::new(output).finish(&bytes, &no_files());
    (out.text(), err.text(), code)
}

fn verdict(verdict: Verdict, offset: u64) -> impl Fn(&mut CompareResult) {
    move |result| {
        result.verdict.set(verdict.raw());
        result.offset.set(offset);
    }
}

#[test]
fn answers_are_lines_on_standard_output() {
    for (told, text, code) in [
        (verdict(Verdict::Identical, 0), "Images are identical.\n", 0),
        (
            verdict(Verdict::Content, 512),
            "Content mismatch at offset 512!\n",
            1,
        ),
        (
            verdict(Verdict::Allocation, 0),
            "Strict mode: Offset 0 block status mismatch!\n",
            1,
        ),
        (
            verdict(Verdict::Size, 0),
            "Strict mode: Image size mismatch!\n",
            1,
        ),
    ] {
        assert_eq!(
            printed(Format::Human, false, &told),
            (text.into(), String::new(), code)
        );
        assert_eq!(
            printed(Format::Human, true, &told),
            (String::new(), String::new(), code)
        );
    }
}

#[test]
fn a_longer_image_is_told_unless_quiet() {
    let longer = |result: &mut CompareResult| {
        result.verdict.set(Verdict::Content.raw());
        result.longer.set(1);
    };
    let (out, _, code) = printed(Format::Human, false, longer);
    let want = "Warning: Image size mismatch!\nContent mismatch at offset 0!\n";
    assert_eq!((out.as_str(), code), (want, 1));
    assert_eq!(printed(Format::Human, true, longer).0, "");
}

#[test]
fn failures_are_sentences_with_codes_of_their_own() {
    let failed = |result: &mut CompareResult| {
        result.verdict.set(Verdict::ReadFailed.raw());
        result.offset.set(65536);
        result.errno.set(5);
    };
    let (out, err, code) = printed(Format::Human, true, failed);
    let want = "instar: Error while reading offset 65536 of : Input/output error\n";
    assert_eq!(
        (out.as_str(), err.lines().next(), code),
        ("", Some(want.trim_end()), 4)
    );
    let (_, err, code) = printed(Format::Json, false, verdict(Verdict::MapFailed, 0));
    assert!(err.starts_with("instar: Sector allocation test failed for "));
    assert_eq!(code, 3);
}

#[test]
fn json_says_what_differs_and_where() {
    let (out, err, code) = printed(Format::Json, false, verdict(Verdict::Content, 1024));
    let want =
        "{\n    \"identical\": false,\n    \"difference\": \"content\",\n    \"offset\": 1024\n}\n";
    assert_eq!((out.as_str(), err.as_str(), code), (want, "", 1));
    let (out, _, code) = printed(Format::Json, false, verdict(Verdict::Identical, 0));
    assert_eq!((out.as_str(), code), ("{\n    \"identical\": true\n}\n", 0));
}

#[test]
fn results_that_cannot_be_are_no_difference() {
    for change in [
        |result: &mut CompareResult| result.verdict.set(0),
        |result: &mut CompareResult| result.verdict.set(99),
        |result: &mut CompareResult| {
            result.verdict.set(1);
            result.offset.set(1 << 63);
        },
        |result: &mut CompareResult| {
            result.verdict.set(1);
            result.slot.set(2);
        },
        |result: &mut CompareResult| result.outcome.set(77),
        |result: &mut CompareResult| result.outcome.set(Outcome::Failed.raw()),
    ] {
        let (out, err, code) = printed(Format::Human, false, change);
        assert_eq!((out.as_str(), code), ("", 2));
        assert!(err.starts_with("instar: "), "{err}");
    }
}
