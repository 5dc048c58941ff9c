use super::*;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;

fn input(path: impl Into<PathBuf>) -> InputFile {
    InputFile {
        path: path.into(),
        share: false,
    }
}

fn reason(path: &Path) -> String {
    let failed = open_typed(&input(path), Reads::Metadata).unwrap_err();
    format!(
        "Could not open '{}': {}",
        failed.given_name.to_str().unwrap(),
        failed.reason.to_str().unwrap()
    )
}

/// What qemu-img says, without its name in front.
fn qemu_reason(path: &Path) -> String {
    let output = Command::new("qemu-img")
        .arg("info")
        .arg(path)
        .output()
        .expect("qemu-img is installed");
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
        let path = PathBuf::from(format!("{}/{name}", scratch.path().display()));
        assert_eq!(reason(&path), qemu_reason(&path), "{name}");
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
        assert_eq!(
            reason(Path::new(name)),
            qemu_reason(Path::new(name)),
            "{name}"
        );
    }
    let device = format!("host_device:{}/file", scratch.path().display());
    assert_eq!(reason(Path::new(&device)), qemu_reason(Path::new(&device)));
    let long = "n".repeat(300);
    assert_eq!(reason(Path::new(&long)), qemu_reason(Path::new(&long)));
    assert_eq!(
        reason(Path::new("/proc/self/mem")),
        qemu_reason(Path::new("/proc/self/mem"))
    );
}

#[test]
fn typed_fifo_is_refused_without_waking_its_writer() {
    let scratch = tempfile::tempdir().unwrap();
    let fifo = scratch.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let text = reason(&fifo);
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
        let opened = open_typed(&input(name), Reads::Contents).unwrap();
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
    let opened = open_typed(&input(&given), Reads::Contents).unwrap();
    assert_eq!(opened.facts.name, path.as_os_str());
    assert_eq!(opened.facts.given_name.to_str(), Some(given.as_str()));
    assert_eq!(
        (opened.facts.len_bytes, opened.facts.protocol()),
        (1000, "file")
    );
}

#[test]
fn typed_block_device_has_the_length_of_its_file() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("only root can attach a loop device; this test needs root");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("disk");
    std::fs::write(&path, vec![7; 1 << 20]).unwrap();
    let run = |args: &[&str]| {
        Command::new("losetup")
            .args(args)
            .output()
            .expect("losetup is installed")
    };
    let attached = run(&["-f", "--show", path.to_str().unwrap()]);
    let device = String::from_utf8(attached.stdout)
        .unwrap()
        .trim()
        .to_string();
    assert!(
        device.starts_with("/dev/loop"),
        "{}",
        String::from_utf8_lossy(&attached.stderr)
    );
    let opened = open_typed(&input(&device), Reads::Contents).map(|o| o.facts);
    run(&["-d", &device]);
    let facts = opened.unwrap();
    assert_eq!(
        (facts.len_bytes, facts.block_device, facts.protocol()),
        (1 << 20, true, "host_device")
    );
}

#[test]
fn system_texts_are_those_of_glibc() {
    assert_eq!(os_text(Errno::NOENT), "No such file or directory");
    assert_eq!(os_text(Errno::LOOP), "Too many levels of symbolic links");
    assert_eq!(os_text(Errno::ACCESS), "Permission denied");
}
