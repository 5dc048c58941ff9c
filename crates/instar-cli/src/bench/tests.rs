//! Texts, exit codes and refusals.

use super::*;
use crate::console::tests::{no_files, to_captures};
use crate::sink::tests::Capture;
use instar_shared::record::Progress;

fn options(change: impl Fn(&mut BenchOptions)) -> BenchOptions {
    let mut options = BenchOptions {
        files: vec!["a.img".into()],
        ..BenchOptions::default()
    };
    change(&mut options);
    options
}

fn planned(change: impl Fn(&mut BenchOptions)) -> Result<Plan, String> {
    let options = options(change);
    let plan = Plan::read(&options).and_then(|plan| image(&options).map(|_| plan));
    let plan = plan.and_then(|plan| plan.validate().map(|()| plan));
    plan.map_err(|error| error.sentence)
}

/// What is printed, and the exit code.
fn printed(format: Format, plan: Plan, outcome: Outcome, elapsed_ns: u64) -> (String, String, u8) {
    let (out, err) = (Capture::default(), Capture::default());
    let mut output = BenchOutput {
        console: to_captures([&out, &err], format == Format::Json, true),
        format,
        plan,
        warns: false,
        begun: false,
    };
    for _ in 0..2 {
        let progress = Progress::zeroed();
        let bytes = progress.as_bytes();
        output
            .record(RecordKind::Progress, bytes, &no_files())
            .unwrap();
    }
    let mut result = BenchResult::zeroed();
    result.outcome.set(outcome.raw());
    result.elapsed_ns.set(elapsed_ns);
    let mut bytes = [0; RESULT_BYTES];
    bytes[..size_of::<BenchResult>()].copy_from_slice(result.as_bytes());
    let code = Box::new(output).finish(&bytes, &no_files());
    (out.text(), err.text(), code)
}

#[test]
fn the_lines_are_those_of_qemu_img() {
    let plan = planned(|_| {}).unwrap();
    let (out, err, code) = printed(Format::Human, plan, Outcome::Done, 1_234_999_999);
    let want = "Sending 75000 read requests, 4096 bytes each, 64 in parallel (starting at offset 0, step size 4096)\n\
                Run completed in 1.234 seconds.\n";
    assert_eq!((out.as_str(), err.as_str(), code), (want, "", 0));
    let plan = planned(|options| {
        options.write = true;
        options.count = Some("010".into());
        options.depth = Some("2".into());
        options.buffer_size = Some("1k".into());
        options.step_size = Some("4k".into());
        options.offset = Some("1M".into());
        options.flush_interval = Some("2".into());
    });
    let (out, _, _) = printed(Format::Human, plan.unwrap(), Outcome::Done, 2_000_000);
    let want = "Sending 8 write requests, 1024 bytes each, 2 in parallel (starting at offset 1048576, step size 4096)\n\
                Sending flush every 2 requests\nRun completed in 0.002 seconds.\n";
    assert_eq!(out, want);
}

#[test]
fn a_failed_run_has_begun_all_the_same() {
    let plan = planned(|options| options.count = Some("2".into())).unwrap();
    let (out, err, code) = printed(Format::Human, plan, Outcome::Failed, 0);
    let want = "Sending 2 read requests, 4096 bytes each, 64 in parallel (starting at offset 0, step size 4096)\n";
    assert_eq!((out.as_str(), code), (want, 1));
    assert!(err.starts_with("instar: "));
}

#[test]
fn json_has_the_numbers() {
    let plan = planned(|options| options.write = true).unwrap();
    let (out, err, code) = printed(Format::Json, plan, Outcome::Done, 5);
    assert_eq!((err.as_str(), code), ("", 0));
    let want = "{
    \"request\": \"write\",
    \"count\": 75000,
    \"buffer-size\": 4096,
    \"depth\": 64,
    \"step-size\": 4096,
    \"flush-interval\": 0,
    \"offset\": 0,
    \"elapsed-ns\": 5
}
";
    assert_eq!(out, want);
}

#[test]
fn wrong_values_are_refused_in_the_words_of_qemu_img() {
    type Change = fn(&mut BenchOptions);
    let cases: [(Change, &str); 13] = [
        (
            |o| o.count = Some("0".into()),
            "Invalid request count specified. Must be between 1 and 2147483647.",
        ),
        (
            |o| o.count = Some("1k".into()),
            "Invalid request count specified: '1k'.",
        ),
        (
            |o| o.depth = Some("0".into()),
            "Invalid queue depth specified. Must be between 1 and 2147483647.",
        ),
        (
            |o| o.buffer_size = Some("2G".into()),
            "Invalid buffer size specified. Must be between 1 and 2147483647.",
        ),
        (
            |o| o.step_size = Some("-1".into()),
            "Invalid step size specified. Must be between 0 and 2147483647.",
        ),
        (
            |o| o.offset = Some("8E".into()),
            "Invalid offset specified. Must be between 0 and 9223372036854775807.",
        ),
        (
            |o| o.pattern = Some("256".into()),
            "Invalid pattern byte specified. Must be between 0 and 255.",
        ),
        (
            |o| o.flush_interval = Some("x".into()),
            "Invalid flush interval specified: 'x'.",
        ),
        (
            |o| o.flush_interval = Some("70".into()),
            "--flush-interval is only available in write tests",
        ),
        (
            |o| {
                o.flush_interval = Some("2".into());
                o.write = true;
            },
            "Flush interval can't be smaller than depth",
        ),
        (|o| o.cache = Some("foo".into()), "Invalid cache mode"),
        (|o| o.aio = Some("foo".into()), "Invalid aio option: foo"),
        (|o| o.files.clear(), "Expecting one image file name"),
    ];
    for (change, sentence) in cases {
        assert_eq!(planned(change), Err(sentence.to_owned()));
    }
    let shared = planned(|options| {
        options.write = true;
        options.force_share = true;
    });
    let sentence = "Could not open 'a.img': force-share=on can only be used with read-only images";
    assert_eq!(shared, Err(sentence.to_owned()));
}
