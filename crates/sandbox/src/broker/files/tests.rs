//! What holds where the file system has no locks: files opened without them, as a shared reader does.

use super::*;
use crate::open::open_inputs;
use crate::{Growth, Policy};
use instar_vmm::operation::Limits;
use std::path::Path;
use std::time::Duration;

/// A job on `top`, which holds no locks that count; `writable` as if it were opened so.
fn files(top: &Path, access: Access, writable: bool) -> Files {
    files_with_base(top, access, writable, None)
}

/// As [`files`], with a backing file that may be written.
fn files_with_base(top: &Path, access: Access, writable: bool, base: Option<Base>) -> Files {
    let input = |access, share| InputFile {
        described: None,
        direct: false,
        secrets: Vec::new(),
        path: top.into(),
        share,
        access,
        growth: Growth::default(),
    };
    let shared = input(Access::Read(Reads::Metadata), true);
    let mut opened = open_inputs(&[shared]).unwrap();
    opened.iter_mut().for_each(|one| one.writable = writable);
    let job = Job {
        elf: &[],
        config: Vec::new(),
        inputs: vec![input(access, false)],
        secrets: Vec::new(),
        limits: Limits {
            memory_bytes: 0,
            stall: Duration::from_secs(1),
            timeout: None,
            spent: Duration::ZERO,
            threads: instar_vmm::operation::Threads::default(),
        },
        policy: Policy {
            base,
            ..Policy::default()
        },
        repair: None,
        fuller: None,
        sequel: None,
    };
    Files::new(&job, &opened, Vec::new())
}

fn request(slot: u16, role: FileRole, writable: bool, name: &Path) -> Request {
    Request {
        slot,
        parent_slot: 0,
        role,
        writable,
        name: name.as_os_str().as_bytes().to_vec(),
    }
}

/// What kind of failure the answer is, and its first line.
fn failure(reply: &Reply) -> Option<(OpenFailure, String)> {
    match reply {
        Reply::Failed(failed) => {
            let reason = failed.reason.to_string_lossy();
            let first = reason.lines().next().unwrap_or_default();
            Some((failed.kind, first.to_string()))
        }
        _ => None,
    }
}

#[test]
fn file_that_is_written_is_open_once_without_any_lock() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    std::fs::write(at("top"), "x").unwrap();
    std::fs::hard_link(at("top"), at("link")).unwrap();
    let mut files = files(&at("top"), Access::Change, true);
    for (role, writable, permission) in [
        (FileRole::Backing, false, "write"),
        (FileRole::Data, false, "resize"),
        (FileRole::Data, true, "resize"),
    ] {
        let (reply, file) = files.open(&request(1, role, writable, &at("link")));
        let expected = format!("Failed to get shared \"{permission}\" lock");
        assert_eq!(failure(&reply), Some((OpenFailure::InUse, expected)));
        assert!(file.is_none());
    }
}

#[test]
fn backing_file_may_not_be_the_data_file_that_is_written() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for name in ["top", "data"] {
        std::fs::write(at(name), "x").unwrap();
    }
    let mut files = files(&at("top"), Access::Change, true);
    let (reply, _held) = files.open(&request(1, FileRole::Data, true, &at("data")));
    assert!(matches!(reply, Reply::OpenedToWrite(..)), "{reply:?}");
    let (reply, _) = files.open(&request(2, FileRole::Backing, false, &at("data")));
    assert_eq!(failure(&reply).unwrap().0, OpenFailure::InUse);
}

#[test]
fn file_that_is_only_read_may_be_open_twice_but_not_back_itself() {
    let scratch = tempfile::tempdir().unwrap();
    let top = scratch.path().join("top");
    std::fs::write(&top, "x").unwrap();
    let mut files = files(&top, Access::Read(Reads::Metadata), false);
    let (reply, _) = files.open(&request(1, FileRole::Backing, false, &top));
    assert_eq!(failure(&reply).unwrap().0, OpenFailure::Loop);
    let (reply, _) = files.open(&request(1, FileRole::Data, false, &top));
    assert!(matches!(reply, Reply::Opened(..)), "{reply:?}");
    let (reply, _) = files.open(&request(2, FileRole::Data, true, &top));
    assert_eq!(reply, Reply::Invalid);
}

/// The request of the file `name` by the image in slot `parent`, to be written.
fn asked(slot: u16, parent_slot: u16, role: FileRole, name: &Path) -> Request {
    Request {
        parent_slot,
        ..request(slot, role, true, name)
    }
}

#[test]
fn only_the_base_and_its_data_file_may_be_written_below_an_image() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for name in ["top", "mid", "base", "mid.data", "base.data", "other"] {
        std::fs::write(at(name), "x").unwrap();
    }
    let typed = |name: &str| Base::Named(at(name).into_os_string());
    for (base, mid_is_base) in [
        (Base::Nearest, true),
        (Base::Named("mid".into()), true),
        (Base::Named("./base".into()), false),
        (typed("base"), false),
    ] {
        let told = format!("{base:?}");
        let mut files = files_with_base(&at("top"), Access::Change, true, Some(base));
        let mut is_open_to_write = |request: Request| match files.open(&request).0 {
            Reply::OpenedToWrite(_) => true,
            Reply::Opened(..) => false,
            other => panic!("{told}: {other:?}"),
        };
        let mid = is_open_to_write(asked(1, 0, FileRole::Backing, &at("mid")));
        let base = is_open_to_write(asked(2, 1, FileRole::Backing, &at("base")));
        assert_eq!((mid, base), (mid_is_base, !mid_is_base), "{told}");
        let (changed, read) = if mid_is_base { (1, 2) } else { (2, 1) };
        // A second one is only read, whatever the name.
        assert!(!is_open_to_write(asked(
            3,
            0,
            FileRole::Backing,
            &at("other")
        )));
        assert!(is_open_to_write(asked(
            4,
            changed,
            FileRole::Data,
            &at("base.data")
        )));
        let reply = files
            .open(&asked(5, read, FileRole::Data, &at("mid.data")))
            .0;
        assert_eq!(reply, Reply::Invalid, "{told}");
        let reply = files
            .open(&asked(5, changed, FileRole::Data, &at("mid.data")))
            .0;
        assert_eq!(reply, Reply::Invalid, "{told}: it has one");
    }
}

#[test]
fn no_backing_file_may_be_written_without_a_base_or_a_change() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for name in ["top", "base"] {
        std::fs::write(at(name), "x").unwrap();
    }
    let asked = asked(1, 0, FileRole::Backing, &at("base"));
    let mut files = files(&at("top"), Access::Change, true);
    assert_eq!(files.open(&asked).0, Reply::Invalid);
    let read = Access::Read(Reads::Contents);
    let mut files = files_with_base(&at("top"), read, false, Some(Base::Nearest));
    assert_eq!(files.open(&asked).0, Reply::Invalid);
}

#[test]
fn base_that_is_the_image_itself_is_refused() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    std::fs::write(at("top"), "x").unwrap();
    std::fs::hard_link(at("top"), at("link")).unwrap();
    let mut files = files_with_base(&at("top"), Access::Change, true, Some(Base::Nearest));
    let (reply, file) = files.open(&asked(1, 0, FileRole::Backing, &at("link")));
    assert_eq!(failure(&reply).unwrap().0, OpenFailure::InUse);
    assert!(file.is_none());
}
