use super::*;
use crate::input::{Access, Growth};
use crate::layout::Layout;
use crate::locks::Reads;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

const CONTENTS: Access = Access::Read(Reads::Contents);

fn input(path: impl Into<PathBuf>, access: Access) -> InputFile {
    InputFile {
        described: None,
        direct: false,
        secrets: Vec::new(),
        path: path.into(),
        share: false,
        access,
        growth: Growth::default(),
    }
}

fn open(path: impl Into<PathBuf>, access: Access) -> Result<Opened, FailedOpen> {
    open_inputs(&[input(path, access)]).map(|mut all| all.pop().unwrap())
}

fn reason(path: &Path, access: Access) -> String {
    let failed = open(path, access).unwrap_err();
    format!(
        "Could not open '{}': {}",
        failed.given_name.to_str().unwrap(),
        failed.reason.to_str().unwrap()
    )
}

/// What qemu-img says, without its name in front, when it reads, or is to change, the image.
fn qemu_reason(path: &Path, access: Access) -> String {
    let mut command = Command::new("qemu-img");
    if access.writes() {
        command.arg("resize").arg(path).arg("+1M");
    } else {
        command.arg("info").arg(path);
    }
    let output = command.output().expect("qemu-img is installed");
    assert_eq!(
        output.status.code(),
        Some(1),
        "qemu-img took {}",
        path.display()
    );
    let text = String::from_utf8(output.stderr).unwrap();
    text.trim_end()
        .strip_prefix("qemu-img: ")
        .unwrap()
        .to_string()
}

/// One of everything that is no image.
fn zoo() -> TempDir {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    std::fs::create_dir(at("folder")).unwrap();
    std::fs::write(at("file"), "x").unwrap();
    UnixListener::bind(at("socket")).unwrap();
    for (target, link) in [
        ("loop", "loop"),
        ("folder", "to-folder"),
        ("gone", "dangling"),
    ] {
        std::os::unix::fs::symlink(target, at(link)).unwrap();
    }
    scratch
}

fn assert_fails_as_with_qemu(name: &str) {
    for access in [CONTENTS, Access::Change, Access::ChangeRaw] {
        let path = Path::new(name);
        assert_eq!(
            reason(path, access),
            qemu_reason(path, access),
            "{name} {access:?}"
        );
    }
}

#[test]
fn typed_names_that_are_no_image_fail_as_with_qemu() {
    let scratch = zoo();
    for name in [
        "folder",
        "folder/",
        "to-folder",
        "socket",
        "loop",
        "dangling",
        "missing",
        "file/",
        "file/x",
    ] {
        assert_fails_as_with_qemu(&format!("{}/{name}", scratch.path().display()));
    }
    for name in [
        "",
        "file:",
        "x:y",
        ":q",
        "d:d/i",
        "file:missing",
        "file:/dev/null",
        "file:x:y",
        "/dev/tty",
    ] {
        if name == "/dev/tty" && std::fs::File::open(name).is_ok() {
            continue;
        }
        assert_fails_as_with_qemu(name);
    }
    assert_fails_as_with_qemu(&format!("host_device:{}/file", scratch.path().display()));
    assert_fails_as_with_qemu(&"n".repeat(300));
    let memory = Path::new("/proc/self/mem");
    assert_eq!(reason(memory, CONTENTS), qemu_reason(memory, CONTENTS));
    assert_eq!(
        std::fs::read_dir(scratch.path()).unwrap().count(),
        6,
        "nothing is made"
    );
}

/// Does `body` as a user that is not root: root may open anything.
fn as_another_user<T: Send>(body: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: the call is about this thread only, which ends with the body.
            unsafe { libc::setfsuid(NOBODY) };
            body()
        });
        thread.join().unwrap()
    })
}

const NOBODY: u32 = 65534;

#[test]
fn file_that_may_not_be_written_is_refused_in_qemus_words() {
    let scratch = tempfile::tempdir().unwrap();
    let mode = |path: &Path, mode: u32| {
        let mode = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, mode).unwrap();
    };
    mode(scratch.path(), 0o755);
    let path = scratch.path().join("image");
    std::fs::write(&path, [0; 512]).unwrap();
    mode(&path, 0o444);
    let root = nix::unistd::geteuid().is_root();
    let mut qemu = Command::new("qemu-img");
    qemu.args(["resize", "-f", "raw"]).arg(&path).arg("+1M");
    if root {
        std::os::unix::process::CommandExt::uid(&mut qemu, NOBODY);
    }
    let said = qemu.output().expect("qemu-img is installed").stderr;
    let said = String::from_utf8(said).unwrap();
    let ours = || reason(&path, Access::ChangeRaw);
    let ours = if root { as_another_user(ours) } else { ours() };
    assert!(ours.ends_with("Permission denied"), "{ours}");
    assert_eq!(said, format!("qemu-img: {ours}\n"));
    let read = || open(&path, CONTENTS).map(|opened| opened.writable);
    assert_eq!(as_another_user(read), Ok(false));
}

#[test]
fn image_that_is_changed_is_opened_as_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("image");
    std::fs::write(&path, b"content").unwrap();
    for access in [Access::Change, Access::ChangeRaw] {
        let opened = open(&path, access).unwrap();
        assert!(opened.writable);
        assert_eq!(opened.facts.len_bytes, 7);
        std::os::unix::fs::FileExt::write_all_at(&opened.file, b"C", 0).unwrap();
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"Content");
    let opened = open(&path, CONTENTS).unwrap();
    assert!(!opened.writable);
    std::os::unix::fs::FileExt::write_all_at(&opened.file, b"X", 0).unwrap_err();
}

#[test]
fn image_that_is_changed_cannot_be_shared() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("missing");
    for (action, access) in [("-c", Access::Change), ("-d", Access::ChangeRaw)] {
        let said = Command::new("qemu-img")
            .args(["snapshot", "-U", action, "s"])
            .arg(&path)
            .output();
        let said = String::from_utf8(said.unwrap().stderr).unwrap();
        let shared = InputFile {
            share: true,
            ..input(&path, access)
        };
        let failed = open_inputs(&[shared]).unwrap_err();
        let ours = format!(
            "qemu-img: Could not open '{}': {}\n",
            failed.given_name.display(),
            failed.reason.display()
        );
        assert_eq!(ours, said);
    }
}

#[test]
fn first_input_that_fails_is_the_one_that_is_named() {
    let scratch = zoo();
    let at = |name: &str| scratch.path().join(name);
    let inputs = |first: &str, second: &str| {
        let inputs = [
            input(at(first), Access::Change),
            input(at(second), CONTENTS),
        ];
        open_inputs(&inputs).map(|all| all.len())
    };
    let failed = |first, second| inputs(first, second).unwrap_err();
    assert_eq!(failed("missing", "gone").slot, 0);
    let second = failed("file", "gone");
    assert_eq!(second.slot, 1);
    assert_eq!(second.given_name, at("gone").as_os_str());
    std::fs::write(at("other"), "x").unwrap();
    assert_eq!(inputs("file", "other"), Ok(2));
}

#[test]
fn typed_fifo_is_refused_without_waking_its_writer() {
    let scratch = tempfile::tempdir().unwrap();
    let fifo = scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = reason(&fifo, CONTENTS);
    assert!(
        text.ends_with(&format!(
            "'file' driver requires '{}' to be a regular file",
            fifo.display()
        )),
        "{text}"
    );
}

#[test]
fn typed_character_device_is_an_empty_file() {
    for name in ["/dev/null", "/dev/zero", "host_device:/dev/zero"] {
        let opened = open(name, CONTENTS).unwrap();
        assert_eq!(
            (opened.facts.len_bytes, opened.facts.protocol()),
            (0, "host_device"),
            "{name}"
        );
        let mut buffer = [1; 4];
        let read = std::os::unix::fs::FileExt::read_at(&opened.file, &mut buffer, 0).unwrap();
        assert_eq!(read, 0, "{name} is never read");
    }
}

#[test]
fn typed_file_has_its_length_and_both_names() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("image");
    std::fs::write(&path, [0; 1000]).unwrap();
    let given = format!("file:{}", path.display());
    let opened = open(&given, CONTENTS).unwrap();
    assert_eq!(opened.facts.name, path.as_os_str());
    assert_eq!(opened.facts.given_name.to_str(), Some(given.as_str()));
    assert_eq!(
        (opened.facts.len_bytes, opened.facts.protocol()),
        (1000, "file")
    );
}

#[test]
fn file_that_is_written_is_open_once_without_any_lock() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("image");
    std::fs::write(&path, "x").unwrap();
    // A shared reader of a header holds no locks, as where there are none.
    let unlocked = |writable| {
        let shared = InputFile {
            share: true,
            ..input(&path, Access::Read(Reads::Metadata))
        };
        let mut opened = open_inputs(&[shared]).unwrap().pop().unwrap();
        opened.writable = writable;
        opened
    };
    for (first, second, ok) in [
        (false, false, true),
        (true, false, false),
        (false, true, false),
        (true, true, false),
    ] {
        let judged = not_alone(unlocked(second), &BTreeMap::from([(0, unlocked(first))]));
        assert_eq!(judged.is_ok(), ok, "{first} {second}");
        if let Err(refusal) = judged {
            assert_eq!(refusal.kind, OpenFailure::InUse);
        }
    }
}

#[test]
fn only_the_first_input_may_still_turn_out_to_be_raw() {
    let scratch = tempfile::tempdir().unwrap();
    let at = |name: &str| scratch.path().join(name);
    for name in ["image", "source"] {
        std::fs::write(at(name), "x").unwrap();
    }
    let _writer = open(at("source"), Access::ChangeRaw).unwrap();
    assert!(
        open(at("source"), CONTENTS)
            .unwrap()
            .format_conflict
            .is_some()
    );
    let inputs = [
        input(at("image"), Access::Change),
        input(at("source"), CONTENTS),
    ];
    let failed = open_inputs(&inputs).unwrap_err();
    assert_eq!((failed.slot, failed.kind), (1, OpenFailure::InUse));
}

/// A loop device over a file of 1 MiB, until it is dropped; `None` without the right to make one.
struct LoopDevice(String);

impl LoopDevice {
    fn new(scratch: &TempDir, arguments: &[&str]) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("only root can attach a loop device; this test needs root");
            return None;
        }
        let path = scratch.path().join("disk");
        std::fs::write(&path, vec![7; 1 << 20]).unwrap();
        let attached = Command::new("losetup")
            .args(arguments)
            .args(["-f", "--show"])
            .arg(&path)
            .output()
            .expect("losetup is installed");
        let device = String::from_utf8(attached.stdout).unwrap();
        assert!(
            device.starts_with("/dev/loop"),
            "{}",
            String::from_utf8_lossy(&attached.stderr)
        );
        Some(Self(device.trim().to_string()))
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["-d", &self.0]).status();
    }
}

#[test]
fn typed_block_device_has_the_length_of_its_file() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(device) = LoopDevice::new(&scratch, &[]) else {
        return;
    };
    for access in [CONTENTS, Access::Change] {
        let facts = open(&device.0, access).unwrap().facts;
        assert_eq!(
            (facts.len_bytes, facts.block_device, facts.protocol()),
            (1 << 20, true, "host_device")
        );
    }
    let opened = open(&device.0, Access::Change).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&opened.file, b"new", 512).unwrap();
    opened.file.sync_all().unwrap();
    drop(opened);
    let disk = std::fs::read(scratch.path().join("disk")).unwrap();
    assert_eq!(&disk[512..515], b"new");
}

#[test]
fn block_device_that_takes_no_writes_is_refused_in_qemus_words() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(device) = LoopDevice::new(&scratch, &["-r"]) else {
        return;
    };
    let path = Path::new(&device.0);
    let ours = reason(path, Access::Change);
    assert!(ours.ends_with("not writable: Permission denied"), "{ours}");
    assert_eq!(ours, qemu_reason(path, Access::Change));
    assert!(open(path, CONTENTS).is_ok());
}

const CREATE: Access = Access::Create {
    raw: true,
    durable: false,
    layout: Layout::USUAL,
};

#[test]
fn block_device_is_written_in_place_and_named_by_nobody() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(device) = LoopDevice::new(&scratch, &[]) else {
        return;
    };
    let opened = open(&device.0, CREATE).unwrap();
    assert!(opened.writable && opened.facts.block_device);
    assert_eq!(opened.facts.len_bytes, 1 << 20);
    assert!(matches!(opened.target, Some(Target::Device)));
}

#[test]
fn block_device_that_takes_no_writes_is_not_made_in_qemus_words() {
    let scratch = tempfile::tempdir().unwrap();
    let Some(device) = LoopDevice::new(&scratch, &["-r"]) else {
        return;
    };
    let failed = open(&device.0, CREATE).unwrap_err();
    assert!(failed.output);
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", "raw", &device.0, "1M"])
        .output()
        .expect("qemu-img is installed");
    let ours = format!("qemu-img: {}: {}\n", device.0, failed.reason.display());
    assert_eq!(ours, String::from_utf8(output.stderr).unwrap());
}

#[test]
fn system_texts_are_those_of_glibc() {
    assert_eq!(os_text(Errno::NOENT), "No such file or directory");
    assert_eq!(os_text(Errno::LOOP), "Too many levels of symbolic links");
    assert_eq!(os_text(Errno::ACCESS), "Permission denied");
}
