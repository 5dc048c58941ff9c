//! Wrong uses and the table against `qemu-img`, and what reaches the operation.

use super::*;
use crate::cli::{Command, parse};
use crate::console;
use crate::oracle::{self, Snapshot};
use crate::sink::tests::Capture;
use instar_shared::info::SnapshotRecord;

fn options(line: &[&str]) -> SnapshotOptions {
    let words = ["instar", "snapshot"].iter().chain(line);
    match parse(words.map(OsString::from)).unwrap().command {
        Command::Snapshot(options) => options,
        other => panic!("{other:?}"),
    }
}

fn refusal(options: &SnapshotOptions) -> String {
    let wrong = action(options).err();
    let image = || Image::only(&options.image.files, &options.image.how).err();
    wrong.or_else(image).unwrap().sentence
}

#[test]
fn refusals_equal_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    for line in [
        &[][..],
        &["-l"],
        &["a", "b"],
        &["-l", "-c", "x", "a"],
        &["-c", "x", "-c", "y", "a"],
        &["-l", "-l", "a"],
        &["-d", "x", "-a", "x"],
        &["--apply", "x", "a", "b"],
        &["-c", "x"],
        &["-f", "bogus", "-l", "a"],
        &["-f", "bogus", "-U", "-c", "x", "a"],
        &["--image-opts", "-f", "x"],
        &["--image-opts", "-f", "x", "a"],
        &["-l", ""],
    ] {
        let arguments = [&["snapshot"], line].concat();
        let theirs = oracle::complaint(folder.path(), &arguments);
        assert_eq!(refusal(&options(line)), theirs, "{line:?}");
    }
}

#[test]
fn config_says_what_is_asked_for() {
    use SnapshotAction::{Apply, Create, Delete, List};
    for (line, expected, name) in [
        (&["a"][..], List, ""),
        (&["-l", "a"], List, ""),
        (&["-c", "-x", "a"], Create, "-x"),
        (&["--apply", "x y", "a"], Apply, "x y"),
        (&["-d", "", "a"], Delete, ""),
    ] {
        let options = options(line);
        let (action, typed) = action(&options).unwrap();
        assert_eq!((action, typed), (expected, OsStr::new(name)), "{line:?}");
        let image = Image::only(&options.image.files, &options.image.how).unwrap();
        let config = config(&image, action, typed);
        assert_eq!(config.action.get(), expected.raw());
        assert_eq!(config.name_len.get() as usize, name.len());
        assert!(config.name.starts_with(name.as_bytes()));
    }
    let (name, image) = ("x".repeat(3000), Image::with_format(OsStr::new("a"), None));
    let config = config(&image.unwrap(), Create, OsStr::new(&name));
    assert_eq!(config.name_len.get(), 1024);
}

/// What the list of these snapshots prints.
fn listed(snapshots: &[Snapshot], format: Format) -> String {
    let (out, err) = (Capture::default(), Capture::default());
    let files = console::tests::no_files();
    let mut output = Box::new(ListOutput {
        console: console::tests::to_captures([&out, &err], format == Format::Json, false),
        zone: Zone::load(),
        format,
        snapshots: Snapshots::default(),
    });
    for snapshot in snapshots {
        let mut numbers = SnapshotRecord::zeroed();
        numbers.id_len.set(snapshot.id.len().try_into().unwrap());
        numbers
            .name_len
            .set(snapshot.name.len().try_into().unwrap());
        numbers.date_sec.set(snapshot.date_sec);
        numbers.date_nsec.set(snapshot.date_nsec);
        numbers.vm_clock_nsec.set(snapshot.vm_clock_nsec);
        numbers.vm_state_size.set(snapshot.vm_state_size);
        numbers.icount.set(snapshot.icount);
        let payload = [numbers.as_bytes(), &snapshot.id, &snapshot.name].concat();
        output
            .record(RecordKind::Snapshot, &payload, &files)
            .unwrap();
    }
    assert!(output.record(RecordKind::Bitmap, b"", &files).is_err());
    let mut result = EditResult::zeroed();
    result.outcome.set(Outcome::Done.raw());
    let mut bytes = [0; RESULT_BYTES];
    bytes[..64].copy_from_slice(result.as_bytes());
    assert_eq!(output.finish(&bytes, &files), 0);
    assert_eq!(err.text(), "");
    out.text()
}

fn some_snapshots() -> Vec<Snapshot> {
    let named = |id: &str, name: &str| Snapshot {
        id: id.into(),
        name: name.into(),
        ..Snapshot::default()
    };
    vec![
        named("1", "first"),
        Snapshot {
            date_sec: 1_795_255_725,
            date_nsec: 999_999_999,
            vm_clock_nsec: 3_723_004_000_000,
            vm_state_size: 123_456_789,
            icount: u64::MAX,
            ..named("12345678", "a name of more than sixteen bytes")
        },
        named("3", ""),
        named("x", &"n".repeat(300)),
    ]
}

#[test]
fn table_equals_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    for snapshots in [vec![], some_snapshots()] {
        oracle::image_with_snapshots(&path, &snapshots);
        let theirs = oracle::stdout(folder.path(), &["snapshot", "-l", "a"]);
        let ours = listed(&snapshots, Format::Human);
        assert_eq!(ours.into_bytes(), theirs);
    }
}

#[test]
fn json_has_the_objects_of_info() {
    let folder = tempfile::tempdir().unwrap();
    let snapshots = some_snapshots();
    oracle::image_with_snapshots(&folder.path().join("a"), &snapshots);
    let theirs = oracle::stdout(folder.path(), &["info", "--output=json", "a"]);
    let theirs = String::from_utf8(theirs).unwrap();
    let (_, list) = theirs.split_once("\"snapshots\": ").unwrap();
    let (list, _) = list.split_once("\n    ],").unwrap();
    let ours = listed(&snapshots, Format::Json);
    assert_eq!(ours, format!("{}\n]\n", list.replace("\n    ", "\n")));
    assert_eq!(listed(&[], Format::Json), "[\n]\n");
}
