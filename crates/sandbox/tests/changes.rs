//! Jobs that change their images: what they may do and nobody else, locks, signals, limits.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod job;

use job::{Running, command, program, scratch, soon, stderr, stdout};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};

/// A job that changes its image, run in the image's folder.
fn changing(scenario: &str, image: &Path, arguments: &[&str]) -> Command {
    let mut command = command(scenario, image, arguments);
    command
        .env("ACCESS", "change")
        .current_dir(image.parent().unwrap());
    command
}

const CHANGES: [&str; 5] = ["pwritev2", "fallocate", "ftruncate", "fdatasync", "discard"];

#[test]
fn job_that_changes_its_image_can() {
    let (_scratch, top) = scratch();
    let output = changing("change", &top, &CHANGES).output().unwrap();
    let text = stdout(&output);
    for line in [
        "pwritev2 Ok(())",
        "fallocate Ok(())",
        "ftruncate Ok(())",
        "fdatasync Ok(())",
        "discard Err(Os { code: 25",
    ] {
        assert!(text.contains(line), "{text} {}", stderr(&output));
    }
    assert_eq!(output.status.code(), Some(3));
    let content = fs::read(&top).unwrap();
    assert_eq!((content.len(), &content[..4]), (100, &b"new\0"[..]));
}

#[test]
fn job_that_reads_its_image_is_stopped_when_it_writes() {
    for call in CHANGES {
        let (_scratch, top) = scratch();
        let output = command("change", &top, &[call]).output().unwrap();
        assert!(
            stderr(&output).contains("stopped by its seccomp filter"),
            "{call}: {}",
            stderr(&output)
        );
        assert_eq!(output.status.code(), Some(1), "{call}");
        assert_eq!(fs::read(&top).unwrap(), b"top", "{call}");
    }
}

#[test]
fn job_that_changes_its_image_is_stopped_by_anything_else() {
    let calls = [
        "create", "unlink", "rename", "link", "truncate", "chmod", "mkdir", "socket",
    ];
    for call in calls {
        let (_scratch, top) = scratch();
        let output = changing("meddle", &top, &[call]).output().unwrap();
        assert!(
            stderr(&output).contains("stopped by its seccomp filter"),
            "{call}: {} {}",
            stdout(&output),
            stderr(&output)
        );
        assert!(!stdout(&output).contains("meddled"), "{call}");
        assert_eq!(fs::read(&top).unwrap(), b"top", "{call}");
        assert!(!top.with_file_name("other").exists(), "{call}");
    }
    for scenario in ["forbidden", "executable", "write-file"] {
        let (_scratch, top) = scratch();
        let output = changing(scenario, &top, &[]).output().unwrap();
        assert!(
            stderr(&output).contains("stopped by its seccomp filter"),
            "{scenario}"
        );
    }
}

#[test]
fn inputs_are_devices_in_their_order_with_their_window() {
    let (_scratch, top) = scratch();
    let base = top.with_file_name("sub").join("base");
    let second = |command: &mut Command| stdout(&command.env("SECOND", &base).output().unwrap());
    let text = second(&mut changing("describe", &top, &[]));
    let window = 3 + (64 << 20);
    let lines = format!(
        "read-only false device false length 3 most {window}\n\
         read-only true device false length 4 most 4\n"
    );
    assert!(text.contains(&lines), "{text}");
    let text = second(changing("describe", &top, &[]).env("UNLIMITED", "1"));
    assert!(text.contains(&format!("most {}", u64::MAX)), "{text}");
    let text = second(&mut command("describe", &top, &[]));
    assert!(
        text.contains("read-only true device false length 3 most 3\n"),
        "{text}"
    );
    let text = stdout(
        &changing("describe", Path::new("/dev/null"), &[])
            .output()
            .unwrap(),
    );
    assert!(
        text.contains("read-only true device true length 0 most 0\n"),
        "{text}"
    );
    let output = changing("describe", &top, &[])
        .env("SECOND", &top)
        .output()
        .unwrap();
    assert!(
        stderr(&output).contains("Failed to get shared \"write\" lock"),
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn data_file_of_an_image_that_is_changed_may_be_written() {
    let (_scratch, top) = scratch();
    let data = ["data", "write", "2", "0", "sub/base"];
    let text = stdout(&changing("open-one", &top, &data).output().unwrap());
    let window = 4 + (64 << 20);
    assert!(
        text.contains(&format!(
            "read-only false device false length 4 most {window}\npwritev2 Ok(())"
        )),
        "{text}"
    );
    let base = top.with_file_name("sub").join("base");
    assert_eq!(fs::read(&base).unwrap(), b"newe");
    let read = ["data", "read", "2", "0", "sub/base"];
    let text = stdout(&changing("open-one", &top, &read).output().unwrap());
    assert!(
        text.contains("read-only true device false length 4 most 4"),
        "{text}"
    );
}

#[test]
fn nothing_else_that_an_image_names_may_be_written() {
    let (_scratch, top) = scratch();
    let backing = ["backing", "write", "2", "0", "sub/base"];
    let data = ["data", "write", "2", "0", "sub/base"];
    let of_second = ["data", "write", "2", "1", "sub/base"];
    let last = top.with_file_name("sub").join("last");
    for mut command in [
        changing("open-one", &top, &backing),
        command("open-one", &top, &data),
        changing("open-one", &top, &of_second),
    ] {
        let output = command
            .env("SECOND", &last)
            .current_dir(top.parent().unwrap())
            .output()
            .unwrap();
        assert!(
            stdout(&output).contains("answer 5 0"),
            "{}",
            stdout(&output)
        );
    }
    let raw = changing("open-one", &top, &data)
        .env("ACCESS", "raw")
        .output();
    assert!(stdout(&raw.unwrap()).contains("answer 5 0"));
    let outside = ["data", "write", "2", "0", "/etc/passwd"];
    let text = stdout(&changing("open-one", &top, &outside).output().unwrap());
    assert!(
        text.contains("failure Refused: '/etc/passwd' is outside"),
        "{text}"
    );
    assert_eq!(
        fs::read(top.with_file_name("sub").join("base")).unwrap(),
        b"base"
    );
}

#[test]
fn image_has_one_data_file_that_may_be_written() {
    let (_scratch, top) = scratch();
    let first = ["data", "write", "2", "0", "sub/base"];
    let second = ["data", "write", "3", "0", "sub/last"];
    let both = [first, second].concat();
    let output = changing("open-one", &top, &both).output().unwrap();
    let text = stdout(&output);
    assert!(text.contains("pwritev2 Ok(())\nanswer 5 0"), "{text}");
    let last = top.with_file_name("sub").join("last");
    assert_eq!(fs::read(last).unwrap(), b"last");
}

#[test]
fn image_that_is_its_own_data_or_backing_file_is_in_use() {
    let (_scratch, top) = scratch();
    fs::hard_link(&top, top.with_file_name("link")).unwrap();
    for (role, access, permission) in [
        ("data", "write", "resize"),
        ("data", "read", "resize"),
        ("backing", "read", "write"),
    ] {
        let arguments = [role, access, "2", "0", "link"];
        let text = stdout(&changing("open-one", &top, &arguments).output().unwrap());
        let expected = format!(
            "failure InUse: Failed to get shared \"{permission}\" lock\nIs another process using"
        );
        assert!(text.contains(&expected), "{text}");
    }
}

#[test]
fn second_image_names_files_of_its_own_folder_only() {
    let (_scratch, top) = scratch();
    let last = top.with_file_name("sub").join("last");
    let open = |parent: &str, name: &str| {
        let mut command = command("open-one", &top, &["backing", "read", "2", parent, name]);
        stdout(&command.env("SECOND", &last).output().unwrap())
    };
    assert!(open("1", "base").contains("length 4"));
    assert!(open("1", "../top").contains("is outside"));
    assert!(open("0", "sub/base").contains("length 4"));
}

#[test]
fn files_are_locked_until_the_worker_is_gone() {
    let data = ["data", "write", "2", "0", "sub/base"];
    for (scenario, arguments, locked) in [
        ("stubborn", &[][..], "top"),
        ("open-one", &data, "top"),
        ("open-one", &data, "sub/base"),
    ] {
        let (_scratch, top) = scratch();
        let mut job = changing(scenario, &top, arguments);
        if scenario == "open-one" {
            job.env("HOLD", "1");
        }
        let grow = || {
            Command::new("qemu-img")
                .args(["resize", "-q", "-f", "raw"])
                .arg(top.with_file_name(locked))
                .arg("+512")
                .output()
                .expect("qemu-img is installed")
        };
        let running = Running::of(job);
        let refused = stderr(&grow());
        let permission = if locked == "top" { "write" } else { "resize" };
        let expected = format!("Failed to get \"{permission}\" lock");
        assert!(refused.contains(&expected), "{locked}: {refused}");
        running.signal(running.worker, libc::SIGKILL);
        let (code, text, _) = running.end();
        assert_eq!(code, Some(1), "{text}");
        let free = grow();
        assert!(free.status.success(), "{locked}: {}", stderr(&free));
    }
}

#[test]
fn data_file_that_qemu_changes_is_in_use() {
    let (_scratch, top) = scratch();
    let base = top.with_file_name("sub").join("base");
    fs::write(&base, [0; 512]).unwrap();
    let mut holder = Command::new("qemu-io");
    let held = top.with_file_name("held.qcow2");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-o"])
        .arg(format!("data_file={}", base.display()))
        .arg(&held)
        .arg("1M")
        .status();
    assert!(made.expect("qemu-img is installed").success());
    holder
        .arg(&held)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut holder = holder.spawn().expect("qemu-io is installed");
    let mut prompt = [0; 9];
    let output = holder.stdout.as_mut().unwrap();
    output.read_exact(&mut prompt).unwrap();
    assert_eq!(&prompt, b"qemu-io> ");
    let open = |access| {
        let arguments = ["data", access, "2", "0", "sub/base"];
        stdout(&changing("open-one", &top, &arguments).output().unwrap())
    };
    let expected = "failure InUse: Failed to get shared \"resize\" lock\nIs another process using";
    assert!(open("write").contains(expected), "{}", open("write"));
    assert!(open("read").contains(expected), "{}", open("read"));
    drop(holder.stdin.take());
    holder.wait().unwrap();
    assert!(open("write").contains("pwritev2 Ok(())"));
}

#[test]
fn signals_end_a_job_that_changes_its_image_as_any_other() {
    for (scenario, signals, expected) in [("cancel", 1, 130), ("stubborn", 2, 130)] {
        let (code, text, _) = soon(|| {
            let (_scratch, top) = scratch();
            let running = Running::of(changing(scenario, &top, &[]));
            for _ in 0..signals {
                running.tell(libc::SIGINT);
            }
            running.end()
        });
        assert_eq!(code, Some(expected), "{text}");
    }
}

#[test]
fn write_past_the_size_limit_fails_and_does_not_kill() {
    let (_scratch, top) = scratch();
    let mut limited = Command::new("sh");
    limited.args(["-c", "ulimit -f 4; exec \"$@\"", "sh"]);
    limited.arg(program()).arg("change").arg(&top);
    limited
        .args(["pwritev2", "fallocate"])
        .env("ACCESS", "change");
    let output = limited.output().unwrap();
    let text = stdout(&output);
    assert!(text.contains("pwritev2 Ok(())"), "{text}");
    assert!(
        text.contains("fallocate Err(Os { code: 27"),
        "{text} {}",
        stderr(&output)
    );
}
