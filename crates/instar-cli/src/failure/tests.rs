//! Sentences as `qemu-img` words them, and hints.

use super::*;
use crate::sink::tests::Capture;

fn sentence(job: JobKind, levels: usize, reason: &str) -> String {
    let place = Place {
        top: Some(OsStr::new("top")),
        named: Some(OsStr::new("file")),
        levels,
    };
    String::from_utf8(place.sentence(job, reason.as_bytes())).unwrap()
}

#[test]
fn sentence_nests_for_a_chain_opened_at_once() {
    let reason = "Could not open 'missing': No such file or directory";
    assert_eq!(
        sentence(JobKind::Info, 2, reason),
        "Could not open 'file': Could not open 'missing': No such file or directory"
    );
    assert_eq!(
        sentence(JobKind::Check, 2, reason),
        "Could not open 'top': Could not open backing file: Could not open backing file: \
         Could not open 'missing': No such file or directory"
    );
    assert_eq!(sentence(JobKind::Check, 0, "x"), "Could not open 'top': x");
}

#[test]
fn open_of_the_typed_file_names_it_once() {
    let failed = FailedOpen {
        slot: 0,
        parent_slot: None,
        role: None,
        output: false,
        kind: OpenFailure::Failed(2),
        given_name: "x".into(),
        reason: "Could not open 'x': No such file or directory".into(),
    };
    for job in [JobKind::Info, JobKind::Check] {
        let sentence = open(job, &failed, &FileTable::default());
        assert_eq!(
            sentence,
            b"Could not open 'x': Could not open 'x': No such file or directory"
        );
    }
    let ring = FailedOpen {
        kind: OpenFailure::Loop,
        ..failed
    };
    let sentence = open(JobKind::Info, &ring, &FileTable::default());
    assert_eq!(sentence, b"Backing file 'x' creates an infinite loop.");
}

#[test]
fn file_that_cannot_be_made_is_named_with_what_was_done() {
    let failed = FailedOpen {
        slot: 1,
        parent_slot: None,
        role: None,
        output: true,
        kind: OpenFailure::Failed(2),
        given_name: "d/x".into(),
        reason: "Could not create 'd/x': No such file or directory".into(),
    };
    let said = |job| String::from_utf8(open(job, &failed, &FileTable::default())).unwrap();
    assert_eq!(
        said(JobKind::Make("")),
        "d/x: Could not create 'd/x': No such file or directory"
    );
    assert_eq!(
        said(JobKind::Make("error while converting qcow2: ")),
        "d/x: error while converting qcow2: Could not create 'd/x': No such file or directory"
    );
}

fn written(sentence: &[u8], terminal: bool) -> String {
    let capture = Capture::default();
    let mut sink = capture.sink(terminal);
    write(&mut sink, JobKind::Check, sentence);
    sink.finish().unwrap();
    capture.text()
}

#[test]
fn write_escapes_names_for_a_terminal_but_keeps_the_second_line() {
    let sentence = b"Could not open 'a\n': Failed to get shared \"write\" lock\nIs another process using the image [a\n]?";
    let text = written(sentence, true);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(
        lines[0],
        "instar: Could not open 'a\\n': Failed to get shared \"write\" lock"
    );
    assert_eq!(lines[1], "Is another process using the image [a\\n]?");
    assert!(lines[2].starts_with("hint: another program uses this image; -U"));
    assert_eq!(lines.len(), 3);
    assert!(written(sentence, false).as_bytes()[8..].starts_with(sentence));
}

#[test]
fn hints_fit_their_sentences() {
    for (sentence, part) in [
        (
            "Could not open 'a': Could not open 'a': Permission denied",
            "may not read",
        ),
        (
            "Could not open 'a': Could not open '/dev/sda': Permission denied",
            "device",
        ),
        (
            "Could not open 'a': Could not open 'a': No such file or directory",
            "current folder",
        ),
        (
            "Could not open 'a': Could not open backing file: Could not open 'b': No such file or directory",
            "own folder",
        ),
        ("Could not open 'a': Unknown driver 'x'", "raw and qcow2"),
        (
            "Could not open '.': 'file' driver requires '.' to be a regular file",
            "block device",
        ),
    ] {
        assert!(
            hint(sentence.as_bytes()).is_some_and(|hint| hint.contains(part)),
            "{sentence}"
        );
    }
    assert_eq!(hint(b"Check failed"), None);
}

#[test]
fn advice_in_a_sentence_becomes_the_hint() {
    assert_eq!(
        written(b"Could not open 'a; add --allow-path x': '/b' is outside; add --allow-path /c (or ...)", false),
        "instar: Could not open 'a; add --allow-path x': '/b' is outside\nhint: add --allow-path /c (or ...)\n"
    );
    let capture = Capture::default();
    let mut sink = capture.sink(false);
    write_ended(&mut sink, b"no permission to use /dev/kvm; add your user");
    sink.finish().unwrap();
    assert_eq!(
        capture.text(),
        "instar: no permission to use /dev/kvm\nhint: add your user\n"
    );
}

#[test]
fn further_lines_of_a_sentence_stay_lines_on_a_terminal() {
    for (first, more) in [
        (
            "Invalid parameter 'cluster_size'",
            "This option is only supported for image creation",
        ),
        (
            "Cannot amend the backing file",
            "You can use 'qemu-img rebase' instead.",
        ),
        (
            "Parameter 'size' expects a non-negative number below 2^64",
            "Optional suffix k, M, G, T, P or E means kilo-, mega-, giga-, tera-, peta-\n\
             and exabytes, respectively.",
        ),
    ] {
        let sentence = format!("{first}\n{more}");
        for terminal in [false, true] {
            let text = written(sentence.as_bytes(), terminal);
            let expected = format!("instar: {first}\n{more}\n");
            assert!(text.starts_with(&expected), "{text}");
        }
    }
    let text = written(b"a\nb\nYou can use 'qemu-img rebase' instead.x", true);
    assert_eq!(text.lines().count(), 1, "{text}");
}

#[test]
fn hints_fit_changes() {
    for (sentence, part) in [
        (
            "Could not open 'a': Failed to get \"write\" lock",
            "close it there",
        ),
        (
            "Could not open 'a': Failed to get shared \"write\" lock",
            "-U reads it",
        ),
        ("Could not resize file: File too large", "--max-growth"),
        (
            "Failed to grow the L1 table: File too large",
            "larger clusters",
        ),
        (
            "Failed to grow the L1 table: No space left on device",
            "make room",
        ),
        (
            "Could not open 'a': force-share=on can only be used with read-only images",
            "leave -U out",
        ),
    ] {
        let hint = hint(sentence.as_bytes()).unwrap();
        assert!(hint.contains(part), "{sentence}: {hint}");
    }
}

#[test]
fn system_errors_have_the_words_of_the_gnu_library() {
    let words = |number| system_text(&std::io::Error::from_raw_os_error(number));
    assert_eq!(words(5), "Input/output error");
    assert_eq!(words(40), "Too many levels of symbolic links");
    assert_eq!(words(122), "Disk quota exceeded");
    // Whatever library this is built with, those that are not in the table are its own.
    assert_eq!(words(28), "No space left on device");
}

/// The table says nothing that the library of `qemu-img` would not say.
#[test]
#[cfg(target_env = "gnu")]
fn the_table_of_system_errors_is_the_librarys() {
    for number in 1..134 {
        if let Some(text) = errno::text(number) {
            let library = std::io::Error::from_raw_os_error(number).to_string();
            assert_eq!(library, format!("{text} (os error {number})"));
        }
    }
}
