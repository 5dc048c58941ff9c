//! How runs end: texts, streams, JSON and exit codes.

use super::*;
use crate::console;
use crate::sink::tests::Capture;
use instar_shared::record::{Failure, FailureKind, Progress};
use instar_shared::zerocopy::IntoBytes;

fn shown(ending: Ending) -> Shown {
    Shown {
        format: Format::Human,
        quiet: false,
        percent: false,
        raw_warnings: 1,
        ending,
        no_secret: None,
        fields: vec![
            Field::Text("action", b"create".to_vec()),
            Field::List("actions", vec!["add", "clear"]),
        ],
    }
}

fn result(outcome: Outcome, format: ImageFormat) -> EditResult {
    let mut result = EditResult::zeroed();
    result.outcome.set(outcome.raw());
    result.format.set(format.raw());
    result.old_size.set(1 << 20);
    result.size.set(2 << 20);
    result
}

/// Runs an output to its end; returns exit code, standard output and standard error.
fn end(shown: &Shown, failure: Option<&[u8]>, result: &EditResult) -> (u8, String, String) {
    let (out, err) = (Capture::default(), Capture::default());
    let files = console::tests::no_files();
    let json = shown.format == Format::Json;
    let mut console = console::tests::to_captures([&out, &err], json, shown.quiet);
    if shown.percent {
        console.show_percent();
    }
    let shown = shown.clone();
    let mut output = Box::new(EditOutput { console, shown });
    for done in [0, 1, 50] {
        let mut progress = Progress::zeroed();
        progress.done.set(done);
        progress.total.set(200);
        let payload = progress.as_bytes();
        output
            .record(RecordKind::Progress, payload, &files)
            .unwrap();
    }
    if let Some(text) = failure {
        let mut head = Failure::zeroed();
        head.kind.set(FailureKind::Operation.raw());
        let payload = [head.as_bytes(), text].concat();
        output
            .record(RecordKind::Failure, &payload, &files)
            .unwrap();
    }
    let mut bytes = [0; RESULT_BYTES];
    bytes[..64].copy_from_slice(result.as_bytes());
    let code = output.finish(&bytes, &files);
    (code, out.text(), err.text())
}

const WARNING: &str = "WARNING: Image format was not specified for '' and probing guessed raw.\n         \
    Automatically detecting the format is dangerous for raw images, write operations on block 0 will be restricted.\n         \
    Specify the 'raw' format explicitly to remove the restrictions.\n";

#[test]
fn done_prints_what_is_asked_for() {
    let done = result(Outcome::Done, ImageFormat::Qcow2);
    let line = shown(Ending::Line("Image resized."));
    let text = |text: &str| (0, text.to_owned(), String::new());
    assert_eq!(end(&line, None, &done), text("Image resized.\n"));
    let quiet = Shown {
        quiet: true,
        ..line.clone()
    };
    assert_eq!(end(&quiet, None, &done), text(""));
    assert_eq!(end(&shown(Ending::Silent), None, &done), text(""));
    assert_eq!(
        end(&shown(Ending::Text("a\nb\n")), None, &done),
        text("a\nb\n")
    );
    let json = Shown {
        format: Format::Json,
        ..line
    };
    let object = "{\n    \"filename\": \"\",\n    \"format\": \"qcow2\",\n    \"old-virtual-size\": 1048576,\n    \
        \"virtual-size\": 2097152,\n    \"action\": \"create\",\n    \"actions\": [\n        \"add\",\n        \
        \"clear\"\n    ]\n}\n";
    assert_eq!(end(&json, None, &done), text(object));
}

#[test]
fn raw_that_was_guessed_is_warned_of_before_anything_else() {
    let done = result(Outcome::Done, ImageFormat::Raw);
    let line = shown(Ending::Line("Image resized."));
    let expected = (0, "Image resized.\n".to_owned(), WARNING.to_owned());
    assert_eq!(end(&line, None, &done), expected);
    let twice = Shown {
        raw_warnings: 2,
        ..shown(Ending::Silent)
    };
    let failed = result(Outcome::Failed, ImageFormat::Raw);
    let sentence = b"Could not apply snapshot 'x': Block driver does not support snapshots";
    let (code, out, err) = end(&twice, Some(sentence), &failed);
    let sentence = String::from_utf8_lossy(sentence);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(err, format!("{WARNING}{WARNING}instar: {sentence}\n"));
}

#[test]
fn refusal_to_shrink_has_a_second_sentence() {
    let failed = result(Outcome::Failed, ImageFormat::Qcow2);
    let (code, out, err) = end(&shown(Ending::Silent), Some(SHRINK_REFUSAL), &failed);
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(
        err,
        "instar: Use the --shrink option to perform a shrink operation.\n\
         instar: warning: Shrinking an image will delete all data beyond the shrunken image's end. \
         Before performing such an operation, make sure there is no important data there.\n\
         hint: with --shrink, everything beyond the new size is lost\n"
    );
}

#[test]
fn refusals_of_the_host_come_after_the_guest_s() {
    let refusal = Ending::Refusal {
        sentence:
            "Invalid parameter 'cluster_size'\nThis option is only supported for image creation"
                .into(),
        started: false,
    };
    let done = result(Outcome::Done, ImageFormat::Qcow2);
    let (code, out, err) = end(&shown(refusal.clone()), None, &done);
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with(
        "instar: Invalid parameter 'cluster_size'\nThis option is only supported for image creation\nhint: "
    ));
    let failed = result(Outcome::Failed, ImageFormat::Raw);
    let sentence = b"Format driver 'raw' does not support option amendment";
    let (code, _, err) = end(&shown(refusal), Some(sentence), &failed);
    assert_eq!(code, 1);
    assert!(err.ends_with("option amendment\n") && !err.contains("cluster_size"));
}

#[test]
fn percentages_equal_qemu_img() {
    let percent = |ending| Shown {
        percent: true,
        ..shown(ending)
    };
    let all = "    (0.00/100%)\r    (25.00/100%)\r    (100.00/100%)\r\n";
    let qcow2 = |outcome| result(outcome, ImageFormat::Qcow2);
    let silent = percent(Ending::Silent);
    assert_eq!(end(&silent, None, &qcow2(Outcome::Done)).1, all);
    assert_eq!(end(&silent, Some(b"x"), &qcow2(Outcome::Failed)).1, all);
    let not_opened = result(Outcome::Failed, ImageFormat::Probe);
    assert!(
        end(&silent, Some(b"x"), &not_opened)
            .1
            .ends_with("(25.00/100%)\r\n")
    );
    let refusal = |started| Ending::Refusal {
        sentence: "x".into(),
        started,
    };
    let (_, out, _) = end(&percent(refusal(true)), None, &qcow2(Outcome::Done));
    assert_eq!(out, all);
}

#[test]
fn results_that_cannot_be_are_refused() {
    let silent = shown(Ending::Silent);
    let mut results = vec![
        result(Outcome::None, ImageFormat::Qcow2),
        result(Outcome::Done, ImageFormat::Probe),
    ];
    let good = result(Outcome::Done, ImageFormat::Qcow2);
    let changes: [fn(&mut EditResult); 4] = [
        |result| result.outcome.set(77),
        |result| result.reserved[39] = 1,
        |result| result.size.set(1 << 63),
        |result| result.old_size.set(u64::MAX),
    ];
    for change in changes {
        let mut result = good;
        change(&mut result);
        results.push(result);
    }
    for result in results {
        let (code, out, err) = end(&silent, None, &result);
        assert_eq!((code, out.as_str()), (1, ""), "{result:?}");
        assert!(err.starts_with("instar: The operation "), "{err}");
    }
}
