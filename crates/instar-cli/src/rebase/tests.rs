//! What is printed of a run, and how its failures read.

use super::output::{NewBacking, RebaseOutput};
use super::*;
use crate::console::tests::{no_files, to_captures};
use crate::files::{Output, RESULT_BYTES};
use crate::sink::tests::Capture;
use instar_shared::op::Outcome;
use instar_shared::rebase::RebaseResult;
use instar_shared::record::{Failure, FailureKind, RecordKind};
use std::ffi::OsString;

/// Exit code, standard output and standard error of a run that failed with `failure`, or did not.
fn end(
    percent: bool,
    failure: Option<(u32, &[u8])>,
    size: u64,
    compared: u64,
) -> (u8, String, String) {
    let (out, err) = (Capture::default(), Capture::default());
    let console = to_captures([&out, &err], false, false);
    let new = NewBacking {
        typed: OsString::from("new"),
        path: OsString::from("d/new"),
    };
    let mut output = Box::new(RebaseOutput::for_tests(console, percent, new));
    let mut result = RebaseResult::zeroed();
    result.size.set(size);
    result.compared.set(compared);
    result.outcome.set(Outcome::Done.raw());
    if let Some((slot, text)) = failure {
        result.outcome.set(Outcome::Failed.raw());
        let mut head = Failure::zeroed();
        let kind = if slot == 9 {
            FailureKind::Operation
        } else {
            FailureKind::OpenImage
        };
        head.kind.set(kind.raw());
        head.slot.set(slot);
        let payload = [head.as_bytes(), text].concat();
        output
            .record(RecordKind::Failure, &payload, &no_files())
            .unwrap();
    }
    let mut bytes = [0; RESULT_BYTES];
    bytes[..size_of::<RebaseResult>()].copy_from_slice(result.as_bytes());
    let code = output.finish(&bytes, &no_files());
    (code, out.text(), err.text())
}

#[test]
fn percentages_are_those_of_what_was_compared() {
    let (zero, half, all) = (
        "    (0.00/100%)\r",
        "    (50.00/100%)\r",
        "    (100.00/100%)\r",
    );
    assert_eq!(end(true, None, 4, 4).1, [zero, all, all, "\n"].concat());
    assert_eq!(end(true, None, 4, 2).1, [zero, half, all, "\n"].concat());
    assert_eq!(end(true, None, 4, 0).1, [zero, all, "\n"].concat());
    assert_eq!(end(false, None, 4, 4), (0, String::new(), String::new()));
    assert_eq!(end(false, None, 4, 5).0, 1);
    let named = b"Could not change the backing file to 'x': why";
    let (code, out, err) = end(true, Some((9, named)), 4, 0);
    assert_eq!((code, out), (1, [zero, all, "\n"].concat()));
    assert!(
        err.starts_with("instar: Could not change the backing file to 'x': why\n"),
        "{err}"
    );
    let (_, out, err) = end(
        true,
        Some((9, b"error while reading from old backing file")),
        4,
        0,
    );
    assert_eq!(out, [zero, "\n"].concat());
    assert!(
        err.starts_with("instar: error while reading from old"),
        "{err}"
    );
}

#[test]
fn the_format_of_the_new_backing_file_is_one_that_exists() {
    for (name, known) in [("raw", true), ("vmdk", true), ("foo", false), ("", false)] {
        assert_eq!(is_known(OsStr::new(name)), known, "{name}");
    }
}

#[test]
fn its_name_is_relative_to_the_image() {
    let new = |file: &str, name: &str| {
        let new = new_backing(OsStr::new(file), OsStr::new(name), Some(&"raw".into()));
        new.map(|image| image.path.display().to_string())
            .map_err(|error| error.sentence)
    };
    assert_eq!(new("d/ov", "b").as_deref(), Ok("d/b"));
    assert_eq!(new("d/ov", "/b").as_deref(), Ok("/b"));
    let refused = new("ov", "foo:b").unwrap_err();
    assert_eq!(
        refused,
        "Could not open new backing file 'foo:b': Unknown protocol 'foo'"
    );
}
