//! Broker and worker as processes, with a machine that is none: descriptors, signals, the jail, bad worlds.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[cfg(target_arch = "x86_64")]
mod inject;
mod job;

use job::{Running, command, program, scratch, soon, status, stderr, stdout, until};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

fn run(scenario: &str, arguments: &[&str]) -> Output {
    let (_scratch, top) = scratch();
    command(scenario, &top, arguments).output().unwrap()
}

#[test]
fn chain_is_opened_name_by_name() {
    let output = run("open", &["sub/base", "last", "./x:y"]);
    let text = stdout(&output);
    for line in [
        "opened 4 Ok(4) base (2 files)",
        "opened 4 Ok(4) last (3 files)",
        "opened 5 Ok(5) colon (4 files)",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
}

#[test]
fn failures_reach_guest_and_output() {
    let text = stdout(&run("open", &["sub/missing"]));
    assert!(text.contains("answer 2 2"), "{text}");
    assert!(
        text.contains("sub/missing': No such file or directory"),
        "{text}"
    );
    let text = stdout(&run("open", &["/etc/passwd"]));
    assert!(text.contains("answer 3 0"), "{text}");
    assert!(
        text.contains("failure Refused: '/etc/passwd' is outside"),
        "{text}"
    );
    assert!(text.contains("INSTAR_ALLOW_PATH=/etc)"), "{text}");
    let text = stdout(&run("open", &["nbd://host/x"]));
    assert!(text.contains("answer 3 0"), "{text}");
    let text = stdout(&run("open", &["x:y"]));
    assert!(
        text.contains("failure Refused: Unknown protocol 'x'"),
        "{text}"
    );
}

#[test]
fn loops_are_found_by_file_not_by_name() {
    for names in [
        &["top"][..],
        &["sub/../top"],
        &["sub/base", "../top"],
        &["sub/base", "last", "base"],
    ] {
        let text = stdout(&run("open", names));
        assert!(text.contains("answer 4 0"), "{names:?}: {text}");
        assert!(text.contains("creates an infinite loop."), "{text}");
    }
    let text = stdout(&run("open", &["file:sub/last"]));
    assert!(!text.contains("answer 4 0"), "{text}");
}

#[test]
fn slot_with_a_missing_parent_is_invalid() {
    let text = stdout(&run("open", &["sub/missing", "last"]));
    assert!(text.contains("answer 5 0"), "{text}");
}

#[test]
fn allowed_path_opens_what_it_names() {
    let (_scratch, top) = scratch();
    let mut command = command("open", &top, &["/etc/passwd"]);
    let output = command
        .env("INSTAR_ALLOW_PATH", "/nowhere:/etc/passwd")
        .output()
        .unwrap();
    assert!(stdout(&output).contains("root:"), "{}", stdout(&output));
}

#[test]
fn typed_name_that_fails_needs_no_worker() {
    let output = command("open", Path::new("/no/such/image"), &[])
        .output()
        .unwrap();
    let expected = "fake: Could not open '/no/such/image': Could not open '/no/such/image': No such file or directory\n";
    assert_eq!(
        (stderr(&output).as_str(), output.status.code()),
        (expected, Some(1))
    );
}

#[test]
fn error_of_the_run_is_the_outputs() {
    let output = run("protocol", &[]);
    assert!(
        stderr(&output).contains("as it was told to"),
        "{}",
        stderr(&output)
    );
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn what_the_jail_forbids_ends_the_worker_with_a_sentence() {
    for scenario in ["forbidden", "executable", "write-file"] {
        let output = run(scenario, &[]);
        assert!(
            stderr(&output).contains("stopped by its seccomp filter"),
            "{scenario}: {}",
            stderr(&output)
        );
        assert!(!stdout(&output).contains("opened"), "{scenario}");
        assert_eq!(output.status.code(), Some(1), "{scenario}");
    }
}

#[test]
fn worker_that_dies_is_reported() {
    let output = run("crash", &[]);
    assert!(stderr(&output).contains("SIGABRT"), "{}", stderr(&output));
    let (_scratch, top) = scratch();
    let running = Running::new("stubborn", &top);
    running.signal(running.worker, libc::SIGKILL);
    let (code, text, _) = running.end();
    assert!(text.contains("the worker was killed (SIGKILL)"), "{text}");
    assert_eq!(code, Some(1));
}

#[test]
fn worker_that_talks_nonsense_is_killed() {
    for (kind, sentence) in [
        ("garbage", "malformed request"),
        ("huge", "too long"),
        ("short", "malformed request"),
        ("flood", "it does not take its answers"),
    ] {
        let output = run("hostile", &[kind]);
        assert!(
            stderr(&output).contains(sentence),
            "{kind}: {}",
            stderr(&output)
        );
        assert_eq!(output.status.code(), Some(1), "{kind}");
    }
}

#[test]
fn worker_that_asks_for_ever_is_killed() {
    let output = run("tireless", &[]);
    let text = stderr(&output);
    assert!(text.contains("too many requests"), "{text}");
    let said = stdout(&output);
    assert_eq!(said.lines().last(), Some("4096 answers"), "{text}");
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn signal_cancels_and_sets_the_exit_code() {
    for (signal, expected) in [
        (libc::SIGINT, 130),
        (libc::SIGTERM, 143),
        (libc::SIGHUP, 129),
    ] {
        let (code, text, _) = soon(|| {
            let (_scratch, top) = scratch();
            let running = Running::new("cancel", &top);
            running.signal(running.broker(), signal);
            running.end()
        });
        assert_eq!(code, Some(expected), "{text}");
    }
}

#[test]
fn second_signal_kills_at_once() {
    let (code, text, _) = soon(|| {
        let (_scratch, top) = scratch();
        let running = Running::new("stubborn", &top);
        running.tell(libc::SIGINT);
        running.signal(running.broker(), libc::SIGINT);
        running.end()
    });
    assert_eq!(code, Some(130));
    assert!(text.contains("killed before it came to an end"), "{text}");
}

#[test]
fn signal_that_is_not_obeyed_kills_after_five_seconds() {
    let (_scratch, top) = scratch();
    let running = Running::new("stubborn", &top);
    running.signal(running.broker(), libc::SIGTERM);
    let (code, _, took) = running.end();
    assert_eq!(code, Some(143));
    assert!(took >= Duration::from_secs(5), "{took:?}");
}

#[test]
fn ignored_signal_stays_ignored() {
    let (_scratch, top) = scratch();
    let script = r#"trap "" INT; exec "$0" cancel "$1""#;
    let mut shell = Command::new("sh");
    shell
        .args(["-c", script])
        .arg(program())
        .arg(&top)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let running = Running::of(shell);
    running.tell(libc::SIGINT);
    running.signal(running.broker(), libc::SIGTERM);
    // The first signal that is taken says how it ends.
    let (code, text, _) = running.end();
    assert_eq!(code, Some(143), "{text}");
}

#[test]
fn worker_dies_with_its_broker() {
    let (_scratch, top) = scratch();
    let mut running = Running::new("stubborn", &top);
    running.signal(running.broker(), libc::SIGKILL);
    running.broker.wait().unwrap();
    let state = format!("/proc/{}/stat", running.worker);
    let gone = || fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z "));
    until("the worker's end", gone);
}

#[test]
fn both_processes_are_filtered_and_the_worker_has_only_its_own() {
    let (_scratch, top) = scratch();
    let running = Running::new("stubborn", &top);
    // The broker installs its filter while the worker starts.
    until("the broker's filter", || {
        status(running.broker(), "Seccomp") == "2"
    });
    for pid in [running.worker, running.broker()] {
        for task in fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
            let task = task.unwrap().file_name().into_string().unwrap();
            let place = format!("{pid}/task/{task}");
            assert_eq!(status(&place, "Seccomp"), "2", "{place}");
            assert_eq!(status(&place, "NoNewPrivs"), "1", "{place}");
        }
    }
    let limits = fs::read_to_string(format!("/proc/{}/limits", running.worker)).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
    // A process that is not dumpable shows its descriptors to root only.
    if let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", running.worker)) {
        let mut targets: Vec<String> = descriptors
            .map(|fd| {
                fs::read_link(fd.unwrap().path())
                    .unwrap()
                    .display()
                    .to_string()
            })
            .map(|target| target.split(':').next().unwrap().to_string())
            .collect();
        targets.sort();
        let image = top.canonicalize().unwrap().display().to_string();
        let mut expected = vec![
            "/memfd".to_string(),
            image,
            "pipe".into(),
            "pipe".into(),
            "socket".into(),
        ];
        expected.sort();
        assert_eq!(targets, expected);
    } else {
        assert_ne!(rustix::process::geteuid().as_raw(), 0, "root may look");
    }
    running.signal(running.broker(), libc::SIGKILL);
}

#[test]
fn lock_conflict_counts_once_the_image_is_no_raw_one() {
    let (_scratch, top) = scratch();
    let mut writer = Command::new("qemu-io");
    writer
        .args(["-f", "raw"])
        .arg(&top)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut writer = writer.spawn().expect("qemu-io is installed");
    let mut prompt = [0; 9];
    writer
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut prompt)
        .unwrap();
    assert_eq!(&prompt, b"qemu-io> ");
    let job = |scenario: &str| command(scenario, &top, &[]).output().unwrap();
    for scenario in ["qcow2", "result"] {
        let output = job(scenario);
        let question = format!("Is another process using the image [{}]?", top.display());
        assert!(
            stderr(&output).contains("Failed to get shared \"write\" lock"),
            "{}",
            stderr(&output)
        );
        assert!(stderr(&output).contains(&question), "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(1), "{scenario}");
    }
    for (scenario, code) in [("raw", 0), ("unsupported", 63)] {
        let output = job(scenario);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{scenario}: {}",
            stderr(&output)
        );
    }
    let shared = command("qcow2", &top, &[])
        .env("SHARE", "1")
        .output()
        .unwrap();
    assert_eq!(shared.status.code(), Some(0), "{}", stderr(&shared));
    drop(writer.stdin.take());
    writer.wait().unwrap();
}

#[cfg(target_arch = "x86_64")]
#[test]
fn injected_call_ends_the_worker_and_the_broker_says_why() {
    let calls = [
        libc::SYS_openat,
        libc::SYS_socket,
        libc::SYS_execve,
        libc::SYS_clone,
        libc::SYS_ptrace,
    ];
    for call in calls {
        let (_scratch, top) = scratch();
        let running = Running::new("stubborn", &top);
        match inject::inject(running.worker, call, [0; 3]) {
            Ok(status) => {
                let died = libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS;
                assert!(died, "call {call}: status {status:#x}");
                let (code, text, _) = running.end();
                assert!(text.contains("stopped by its seccomp filter"), "{text}");
                assert_eq!(code, Some(1));
            }
            Err(e) => {
                assert_ne!(
                    rustix::process::geteuid().as_raw(),
                    0,
                    "root may trace: {e}"
                );
                assert_eq!(e.raw_os_error(), Some(libc::EPERM));
                running.signal(running.broker(), libc::SIGKILL);
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[test]
fn injected_call_that_is_allowed_returns() {
    let (_scratch, top) = scratch();
    let running = Running::new("stubborn", &top);
    if let Ok(status) = inject::inject(running.worker, libc::SYS_getpid, [0; 3]) {
        assert!(
            libc::WIFSTOPPED(status),
            "the injection itself kills: {status:#x}"
        );
    }
    running.signal(running.broker(), libc::SIGKILL);
}
