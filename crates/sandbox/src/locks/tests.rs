//! Against real QEMU processes, in both directions.

use super::*;
use crate::open::{Opened, open_typed};
use crate::{FailedOpen, InputFile};
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

fn open(path: &Path, reads: Reads, share: bool) -> Result<Opened, FailedOpen> {
    open_typed(
        &InputFile {
            path: path.into(),
            share,
        },
        reads,
    )
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
    for (reads, operation) in [(Reads::Metadata, "info"), (Reads::Contents, "check")] {
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
        for reads in [Reads::Metadata, Reads::Contents] {
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
    for reads in [Reads::Metadata, Reads::Contents] {
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
    let opened = open(&path, Reads::Metadata, false).unwrap();
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
            for (reads, operation) in [(Reads::Metadata, "info"), (Reads::Contents, "check")] {
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
                    Err(failed) => {
                        let (name, reason) = (failed.given_name.display(), failed.reason.display());
                        Some(format!("Could not open '{name}': {reason}\n"))
                    }
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
        reads: Reads::Contents,
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
