//! Streams, failures and exit codes.

use super::*;
use crate::sink::tests::Capture;
use instar_shared::zerocopy::IntoBytes;
use std::io::ErrorKind;

/// A table without files.
pub fn no_files() -> FileTable {
    FileTable::default()
}

/// A console that writes standard output and standard error to captures.
pub fn to_captures([out, err]: [&Capture; 2], json: bool, quiet: bool) -> Console {
    let sinks = [out.sink(false), err.sink(false)];
    Console::from_parts(JobKind::Check, sinks, ProgressLine::new(false), json, quiet)
}

fn console(json: bool, quiet: bool) -> (Console, Capture, Capture) {
    let (out, err) = (Capture::default(), Capture::default());
    (to_captures([&out, &err], json, quiet), out, err)
}

fn failure(kind: u32, slot: u32, text: &[u8]) -> Vec<u8> {
    let mut head = Failure::zeroed();
    head.kind.set(kind);
    head.slot.set(slot);
    [head.as_bytes(), text].concat()
}

#[test]
fn lines_and_diagnostics_go_to_their_streams() {
    for (json, quiet, stdout, stderr) in [
        (false, false, "l\n", "d\n"),
        (true, false, "", "l\nd\n"),
        (false, true, "", "d\n"),
    ] {
        let (mut console, out, err) = console(json, quiet);
        assert_eq!(
            console.record(RecordKind::Line, b"l", &no_files()),
            Ok(true)
        );
        assert_eq!(
            console.record(RecordKind::Diagnostic, b"d", &no_files()),
            Ok(true)
        );
        assert_eq!(
            console.record(RecordKind::Image, b"", &no_files()),
            Ok(false)
        );
        assert_eq!(console.end(3), 3);
        assert_eq!((out.text().as_str(), err.text().as_str()), (stdout, stderr));
    }
}

#[test]
fn failure_ends_with_its_sentence_and_a_hint() {
    let (mut console, out, err) = console(false, false);
    let payload = failure(
        FailureKind::OpenImage.raw(),
        0,
        b"Image is not in qcow2 format",
    );
    console
        .record(RecordKind::Failure, &payload, &no_files())
        .unwrap();
    assert_eq!(console.end_without_result(Outcome::Failed), 1);
    assert_eq!(out.text(), "");
    assert_eq!(
        err.text(),
        "instar: Could not open '': Image is not in qcow2 format\n\
         hint: without -f, instar looks for the format itself\n"
    );
}

#[test]
fn a_machine_that_meets_another_format_is_told_where_it_comes_from() {
    let (mut console, _, err) = console(false, false);
    console.job = JobKind::Run;
    let payload = failure(
        FailureKind::OpenImage.raw(),
        0,
        b"Image is not in qcow2 format",
    );
    console
        .record(RecordKind::Failure, &payload, &no_files())
        .unwrap();
    assert_eq!(console.end_without_result(Outcome::Failed), 1);
    assert_eq!(
        err.text(),
        "instar: Could not open '': Image is not in qcow2 format\n\
         hint: a name that ends in .qcow2 means qcow2 and any other raw, unless -f, or format= of a disk, says otherwise\n"
    );
}

#[test]
fn malformed_records_are_refused() {
    let (mut console, _, _) = console(false, false);
    for (kind, payload) in [
        (RecordKind::Progress, vec![0; 15]),
        (RecordKind::Failure, vec![0; 7]),
        (RecordKind::Failure, failure(99, 0, b"x")),
    ] {
        assert!(
            console.record(kind, &payload, &no_files()).is_err(),
            "{kind:?}"
        );
    }
}

#[test]
fn output_that_cannot_be_written_is_an_error() {
    for (fail, code) in [(ErrorKind::StorageFull, 1), (ErrorKind::BrokenPipe, 2)] {
        let out = Capture {
            fail: Some(fail),
            ..Capture::default()
        };
        let err = Capture::default();
        let sinks = [out.sink(false), err.sink(false)];
        let mut console = Console::from_parts(
            JobKind::Check,
            sinks,
            ProgressLine::new(false),
            false,
            false,
        );
        console.stdout().put(b"x");
        assert_eq!(console.end(2), code);
        assert_eq!(err.text().contains("Cannot write the output"), code == 1);
    }
}
