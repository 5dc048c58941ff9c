//! Against real QEMU processes, in both directions.

use super::*;
use crate::layout::Layout;
use crate::open::{Opened, open_inputs};
use crate::{FailedOpen, Growth, InputFile};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use tempfile::TempDir;

fn qemu(program: &str, args: &[&str], path: &Path) -> Output {
    Command::new(program)
        .args(args)
        .arg(path)
        .output()
        .expect("QEMU's tools are installed")
}

fn image(scratch: &TempDir) -> PathBuf {
    let path = scratch.path().join("x.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2"])
        .arg(&path)
        .arg("1M")
        .status();
    assert!(made.expect("qemu-img is installed").success());
    path
}

/// A qemu-io that has the image open until it is dropped.
struct Holder(Child);

impl Holder {
    fn new(path: &Path, args: &[&str]) -> Self {
        let mut command = Command::new("qemu-io");
        command
            .args(args)
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().expect("qemu-io is installed");
        // The prompt comes once the image is open.
        let mut seen = Vec::new();
        let output = child.stdout.as_mut().unwrap();
        while !seen.ends_with(b"qemu-io> ") {
            let mut byte = [0];
            assert_eq!(
                output.read(&mut byte).unwrap(),
                1,
                "qemu-io ended: {}",
                String::from_utf8_lossy(&seen)
            );
            seen.push(byte[0]);
        }
        Self(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

const METADATA: Access = Access::Read(Reads::Metadata);
const CONTENTS: Access = Access::Read(Reads::Contents);

fn input(path: &Path, access: Access, share: bool) -> InputFile {
    InputFile {
        described: None,
        direct: false,
        secrets: Vec::new(),
        path: path.into(),
        share,
        access,
        growth: Growth::default(),
    }
}

fn open(path: &Path, access: Access, share: bool) -> Result<Opened, FailedOpen> {
    let opened = open_inputs(&[input(path, access, share)]);
    opened.map(|mut all| all.pop().unwrap())
}

/// What stands behind `qemu-img: `.
fn failure(failed: &FailedOpen) -> String {
    let (name, reason) = (failed.given_name.display(), failed.reason.display());
    format!("Could not open '{name}': {reason}\n")
}

/// The whole sentence with which qemu-img refuses, without its name.
fn sentence(path: &Path, conflict: Conflict) -> String {
    let reason = conflict.reason(path.to_str().unwrap().as_bytes());
    format!(
        "Could not open '{}': {}\n",
        path.display(),
        String::from_utf8(reason).unwrap()
    )
}

#[test]
fn image_with_a_writer_is_in_use_in_qemus_words() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    let _writer = Holder::new(&path, &["-f", "qcow2"]);
    for (reads, operation) in [(METADATA, "info"), (CONTENTS, "check")] {
        let conflict = open(&path, reads, false)
            .unwrap()
            .format_conflict
            .expect("a conflict");
        let said = qemu("qemu-img", &[operation], &path);
        let expected = String::from_utf8(said.stderr).unwrap();
        assert_eq!(format!("qemu-img: {}", sentence(&path, conflict)), expected);
    }
}

#[test]
fn image_with_a_reader_or_shared_is_free() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    for (holder, share) in [
        (&["-r", "-f", "qcow2"][..], false),
        (&["-f", "qcow2"], true),
        (&["-r", "-U"], false),
    ] {
        let _holder = Holder::new(&path, holder);
        for reads in [METADATA, CONTENTS] {
            let opened = open(&path, reads, share).unwrap();
            assert_eq!(opened.format_conflict, None, "{holder:?} {reads:?}");
        }
    }
}

#[test]
fn writer_started_while_we_read_is_refused_by_qemu() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    let write = || qemu("qemu-io", &["-f", "qcow2", "-c", "write 0 512"], &path);
    for reads in [METADATA, CONTENTS] {
        let opened = open(&path, reads, false).unwrap();
        let refused = write();
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            text.contains("Failed to get \"write\" lock"),
            "{reads:?}: {text}"
        );
        drop(opened);
        assert!(
            write().status.success(),
            "{reads:?}: the lock ends with the descriptor"
        );
        let shared = open(&path, reads, true).unwrap();
        assert!(write().status.success(), "{reads:?}: -U lets writers in");
        drop(shared);
    }
}

#[test]
fn writer_of_a_raw_image_is_welcome_until_a_format_is_found() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("raw");
    std::fs::write(&path, [0; 4096]).unwrap();
    let _writer = Holder::new(&path, &["-f", "raw"]);
    assert!(
        qemu("qemu-img", &["info", "-f", "raw"], &path)
            .status
            .success()
    );
    let opened = open(&path, METADATA, false).unwrap();
    assert_eq!(opened.format_conflict, Some(Conflict::InUse("write")));
}

fn lock_byte(path: &Path, kind: i32, byte: i64) -> std::fs::File {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    fcntl(&file, FcntlArg::F_OFD_SETLK(&flock(kind, byte))).unwrap();
    file
}

#[test]
fn every_locked_byte_has_the_outcome_of_qemu() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    let bytes = [100, 101, 102, 103, 200, 201, 202, 203];
    for (kind, byte) in [libc::F_RDLCK, libc::F_WRLCK]
        .into_iter()
        .flat_map(|k| bytes.map(|b| (k, b)))
    {
        let _held = lock_byte(&path, kind, byte);
        for share in [false, true] {
            for (reads, operation) in [(METADATA, "info"), (CONTENTS, "check")] {
                let args: &[&str] = if share {
                    &[operation, "-U"]
                } else {
                    &[operation]
                };
                let said = String::from_utf8(qemu("qemu-img", args, &path).stderr).unwrap();
                let ours = match open(&path, reads, share) {
                    Ok(opened) => opened
                        .format_conflict
                        .map(|conflict| sentence(&path, conflict)),
                    Err(failed) => Some(failure(&failed)),
                };
                let ours = ours
                    .map(|text| format!("qemu-img: {text}"))
                    .unwrap_or_default();
                assert_eq!(ours, said, "lock {kind} on {byte}, {args:?}");
            }
        }
    }
}

#[test]
fn data_file_lets_writers_in_but_no_resize() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("data");
    std::fs::write(&path, [0; 512]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    let wanted = Wanted {
        unlocked: false,
        direct: false,
        access: CONTENTS,
        data_file: true,
        share: false,
    };
    let take = || take(std::os::fd::AsFd::as_fd(&file), wanted);
    assert_eq!(take(), Ok(Taken::default()));
    for (byte, outcome) in [
        (101, Ok(Taken::default())),
        (103, Err(Conflict::InUse("resize"))),
        (200, Err(Conflict::NotShared("consistent read"))),
    ] {
        let _held = lock_byte(&path, libc::F_RDLCK, byte);
        assert_eq!(take(), outcome, "byte {byte}");
    }
}

/// What others hold on the file: first and last byte of each lock, as the kernel lists them.
fn held_on(path: &Path) -> Vec<(i64, i64)> {
    let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let all = std::fs::read_to_string("/proc/locks").unwrap();
    let mut held: Vec<(i64, i64)> = all
        .lines()
        .filter_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let of_file = fields[1] == "OFDLCK" && fields[5].ends_with(&format!(":{inode}"));
            of_file.then(|| (fields[6].parse().unwrap(), fields[7].parse().unwrap()))
        })
        .collect();
    held.sort_unstable();
    held
}

/// An image with an external data file, and one with a backing file.
fn family(scratch: &TempDir) -> [PathBuf; 4] {
    let names = ["data.qcow2", "data.raw", "top.qcow2", "base.qcow2"];
    let [with_data, data, top, base] = names.map(|name| scratch.path().join(name));
    let create = |options: &[String], path: &Path| {
        let mut command = Command::new("qemu-img");
        command.args(["create", "-q", "-f", "qcow2"]).args(options);
        assert!(command.arg(path).arg("1M").status().unwrap().success());
    };
    create(
        &["-o".into(), format!("data_file={}", data.display())],
        &with_data,
    );
    create(&[], &base);
    let backing = ["-b", base.to_str().unwrap(), "-F", "qcow2"].map(String::from);
    create(&backing, &top);
    [with_data, data, top, base]
}

fn data_file(path: &Path, access: Access) -> (std::fs::File, Result<Taken, Conflict>) {
    let mut options = std::fs::File::options();
    let file = options.read(true).write(access.writes()).open(path);
    let file = file.unwrap();
    let wanted = Wanted {
        unlocked: false,
        direct: false,
        access,
        data_file: true,
        share: false,
    };
    let taken = take(std::os::fd::AsFd::as_fd(&file), wanted);
    (file, taken)
}

#[test]
fn what_is_held_is_what_qemu_holds() {
    let scratch = tempfile::tempdir().unwrap();
    let [with_data, data, top, base] = family(&scratch);
    for (args, access) in [(&["-f", "qcow2"][..], Access::Change), (&["-r"], CONTENTS)] {
        let holder = Holder::new(&with_data, args);
        let (of_image, of_data) = (held_on(&with_data), held_on(&data));
        assert!(!of_image.is_empty() && !of_data.is_empty());
        drop(holder);
        assert_eq!(held_on(&data), []);
        let opened = open(&with_data, access, false).unwrap();
        let (file, taken) = data_file(&data, access);
        assert_eq!(taken, Ok(Taken::default()));
        assert_eq!(held_on(&with_data), of_image, "{access:?}");
        assert_eq!(held_on(&data), of_data, "{access:?}");
        drop((opened, file));
        assert_eq!(held_on(&with_data), []);
    }
    let holder = Holder::new(&top, &["-f", "qcow2"]);
    let of_base = held_on(&base);
    drop(holder);
    let opened = open(&base, CONTENTS, false).unwrap();
    assert_eq!(held_on(&base), of_base, "a backing file is only read");
    drop(opened);
}

#[test]
fn every_lock_of_others_stops_a_change_as_it_stops_qemus() {
    let scratch = tempfile::tempdir().unwrap();
    let [image, data, ..] = family(&scratch);
    let raw = scratch.path().join("raw");
    std::fs::write(&raw, [0; 4096]).unwrap();
    let said = |args: &[&str], path: &Path| {
        let mut command = Command::new("qemu-img");
        command.args(args).arg(path).arg("+0");
        String::from_utf8(command.output().unwrap().stderr).unwrap()
    };
    let refused = |path: &Path, access| {
        let failed = open(path, access, false).err();
        failed.map_or_else(String::new, |failed| {
            format!("qemu-img: {}", failure(&failed))
        })
    };
    let bytes = [100, 101, 102, 103, 200, 201, 202, 203];
    let mut conflicts = 0;
    for (kind, byte) in [libc::F_RDLCK, libc::F_WRLCK]
        .into_iter()
        .flat_map(|k| bytes.map(|b| (k, b)))
    {
        let what = format!("lock {kind} on {byte}");
        let lock = lock_byte(&image, kind, byte);
        let expected = said(&["resize", "-f", "qcow2"], &image);
        assert_eq!(refused(&image, Access::Change), expected, "image, {what}");
        conflicts += i32::from(!expected.is_empty());
        drop(lock);
        let lock = lock_byte(&raw, kind, byte);
        let expected = said(&["resize", "-f", "raw"], &raw);
        assert_eq!(refused(&raw, Access::ChangeRaw), expected, "raw, {what}");
        drop(lock);
        let lock = lock_byte(&data, kind, byte);
        let expected = said(&["resize", "-f", "qcow2"], &image);
        let ours = data_file(&data, Access::Change).1.err();
        let ours = ours.map(|conflict| {
            let reason = conflict.reason(data.to_str().unwrap().as_bytes());
            let reason = String::from_utf8(reason).unwrap();
            format!("qemu-img: Could not open '{}': {reason}\n", image.display())
        });
        assert_eq!(ours.unwrap_or_default(), expected, "data file, {what}");
        drop(lock);
    }
    assert_eq!(conflicts, 5 + 6);
}

#[test]
fn nobody_opens_an_image_while_it_is_changed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    let opened = open(&path, Access::Change, false).unwrap();
    let write = || qemu("qemu-io", &["-f", "qcow2", "-c", "write 0 512"], &path);
    let read = |args: &[&str]| qemu("qemu-img", args, &path);
    let text = |output: Output| String::from_utf8(output.stderr).unwrap();
    assert!(text(write()).contains("Failed to get \"write\" lock"));
    for args in [&["info"][..], &["check"], &["check", "-r", "all"]] {
        let output = read(args);
        assert!(!output.status.success(), "{args:?}");
        assert!(
            text(output).contains("lock\nIs another process"),
            "{args:?}"
        );
    }
    assert!(read(&["info", "-U"]).status.success());
    for (access, reason) in [
        (CONTENTS, None),
        (Access::Change, Some("Failed to get \"write\" lock")),
    ] {
        let again = open(&path, access, false);
        match reason {
            Some(reason) => assert!(failure(&again.unwrap_err()).contains(reason)),
            None => assert_eq!(
                again.unwrap().format_conflict,
                Some(Conflict::InUse("write"))
            ),
        }
    }
    drop(opened);
    assert!(write().status.success());
}

#[test]
fn image_that_qemu_reads_or_writes_is_not_changed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    let change = || open(&path, Access::Change, false).map(|opened| opened.format_conflict);
    for args in [&["-f", "qcow2"][..], &["-r", "-f", "qcow2"]] {
        let holder = Holder::new(&path, args);
        let said = Command::new("qemu-img")
            .args(["snapshot", "-c", "s"])
            .arg(&path)
            .output();
        let said = String::from_utf8(said.unwrap().stderr).unwrap();
        let ours = format!("qemu-img: {}", failure(&change().unwrap_err()));
        assert_eq!(ours, said, "{args:?}");
        drop(holder);
        assert_eq!(change(), Ok(None), "{args:?}");
    }
    // A reader that shares (`-U`) is no obstacle to QEMU either.
    let holder = Holder::new(&path, &["-r", "-U"]);
    assert_eq!(change(), Ok(None));
    drop(holder);
}

#[test]
fn image_that_a_storage_daemon_exports_is_not_changed() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    let pid_file = scratch.path().join("pid");
    let mut daemon = Command::new("qemu-storage-daemon")
        .arg("--blockdev")
        .arg(format!(
            "driver=qcow2,node-name=disk,file.driver=file,file.filename={}",
            path.display()
        ))
        .arg("--nbd-server")
        .arg(format!(
            "addr.type=unix,addr.path={}",
            scratch.path().join("nbd").display()
        ))
        .args(["--export", "type=nbd,id=e,node-name=disk,writable=on"])
        .arg("--pidfile")
        .arg(&pid_file)
        .spawn()
        .expect("qemu-storage-daemon is installed");
    // The file comes once everything is open.
    let ready = (0..6000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(20));
        pid_file.exists()
    });
    let change = || open(&path, Access::Change, false);
    let refused = change().map(|_| ()).map_err(|failed| failure(&failed));
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(ready, "the daemon did not start");
    let refused = refused.unwrap_err();
    assert!(
        refused.contains("Failed to get \"write\" lock\nIs another process using"),
        "{refused}"
    );
    assert!(change().is_ok());
}

#[test]
fn raw_image_may_have_two_writers_only_if_both_say_that_it_is_raw() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("raw");
    std::fs::write(&path, [0; 4096]).unwrap();
    let holder = Holder::new(&path, &["-f", "raw"]);
    assert!(open(&path, Access::ChangeRaw, false).is_ok());
    assert!(open(&path, Access::Change, false).is_err());
    drop(holder);
    let opened = open(&path, Access::ChangeRaw, false).unwrap();
    let write = |format| qemu("qemu-io", &["-f", format, "-c", "write 0 512"], &path);
    assert!(write("raw").status.success());
    drop(opened);
    let opened = open(&path, Access::Change, false).unwrap();
    assert!(!write("raw").status.success());
    drop(opened);
}

#[test]
fn image_that_is_changed_and_read_at_once_fails_as_with_qemu() {
    let scratch = tempfile::tempdir().unwrap();
    let path = image(&scratch);
    let link = scratch.path().join("link.qcow2");
    std::fs::hard_link(&path, &link).unwrap();
    for source in [&path, &link] {
        let said = Command::new("qemu-img")
            .args(["bitmap", "--merge", "b", "-b"])
            .args([source, &path])
            .arg("b")
            .output();
        let said = String::from_utf8(said.unwrap().stderr).unwrap();
        let inputs = [
            input(&path, Access::Change, false),
            input(source, CONTENTS, false),
        ];
        let failed = open_inputs(&inputs).unwrap_err();
        assert_eq!(failed.slot, 1);
        assert_eq!(format!("qemu-img: {}", failure(&failed)), said);
    }
}

const fn create(raw: bool) -> Access {
    Access::Create {
        raw,
        durable: false,
        layout: Layout::USUAL,
    }
}

#[test]
fn every_lock_of_others_stops_a_new_image_as_it_stops_qemus() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("x");
    let mut conflicts = 0;
    for (kind, byte, raw) in [libc::F_RDLCK, libc::F_WRLCK]
        .into_iter()
        .flat_map(|kind| [100, 101, 102, 103, 200, 201, 202, 203].map(|byte| (kind, byte)))
        .flat_map(|(kind, byte)| [false, true].map(|raw| (kind, byte, raw)))
    {
        std::fs::write(&path, [7; 4096]).unwrap();
        let _held = lock_byte(&path, kind, byte);
        let refused = open(&path, create(raw), false).err();
        assert_eq!(std::fs::read(&path).unwrap(), [7; 4096]);
        let ours = refused.map_or_else(String::new, |failed| {
            format!(
                "qemu-img: {}: {}\n",
                path.display(),
                failed.reason.display()
            )
        });
        let format = if raw { "raw" } else { "qcow2" };
        let said = Command::new("qemu-img")
            .args(["create", "-q", "-f", format])
            .arg(&path)
            .arg("1M")
            .output();
        let said = String::from_utf8(said.unwrap().stderr).unwrap();
        assert_eq!(ours, said, "lock {kind} on {byte}, {format}");
        conflicts += i32::from(!said.is_empty());
    }
    assert_eq!(conflicts, 18);
}

#[test]
fn source_of_a_copy_has_no_writer_even_if_it_is_raw() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("raw");
    std::fs::write(&path, [0; 4096]).unwrap();
    let holder = Holder::new(&path, &["-f", "raw"]);
    let said = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "raw"])
        .args([&path, &scratch.path().join("out")])
        .output();
    let said = String::from_utf8(said.unwrap().stderr).unwrap();
    let source = Access::Read(Reads::Source);
    let failed = open(&path, source, false).unwrap_err();
    assert_eq!(format!("qemu-img: {}", failure(&failed)), said);
    assert!(open(&path, source, true).is_ok());
    let measured = qemu("qemu-img", &["map", "-f", "raw"], &path);
    assert!(measured.status.success());
    let opened = open(&path, Access::ReadRaw, false).unwrap();
    assert_eq!(opened.format_conflict, None);
    drop((holder, opened));
    let _source = open(&path, source, false).unwrap();
    let write = qemu("qemu-io", &["-f", "raw", "-c", "write 0 512"], &path);
    assert!(!write.status.success());
}
