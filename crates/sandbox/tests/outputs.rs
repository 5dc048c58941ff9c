//! Jobs that make files: what is there when they end well, and that nothing is when they do not.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod job;

use job::{Running, program_named, stderr, stdout, until};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tempfile::TempDir;

/// Makes the file system look as if it had no files without a name.
const NO_TMPFILE: &str = "tmpfile=95";

/// What an older file holds.
const OLD: &str = "older content";

/// A folder with an image to read, and the job that runs in it.
struct Bed {
    folder: TempDir,
    fail: Option<String>,
}

impl Bed {
    /// In the build folder, which is on a real file system.
    fn new() -> Self {
        let this = std::env::current_exe().unwrap();
        let folder = tempfile::tempdir_in(this.parent().unwrap()).unwrap();
        fs::write(folder.path().join("in"), "input").unwrap();
        Self { folder, fail: None }
    }

    fn failing(calls: &str) -> Self {
        Self {
            fail: Some(calls.into()),
            ..Self::new()
        }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn old(self, name: &str) -> Self {
        fs::write(self.path(name), OLD).unwrap();
        self
    }

    fn command(&self, files: &[&str], steps: &[&str]) -> Command {
        let mut command = Command::new(program_named("make_job"));
        command.args(files).arg("--").args(steps);
        command.current_dir(self.folder.path()).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        match &self.fail {
            Some(calls) => command.env("FAIL", calls),
            None => command.env_remove("FAIL"),
        };
        command
    }

    fn run(&self, files: &[&str], steps: &[&str]) -> Output {
        self.command(files, steps).output().unwrap()
    }

    /// Names, hidden ones too, and contents.
    fn state(&self) -> BTreeMap<String, String> {
        let entries = fs::read_dir(self.folder.path()).unwrap();
        let entry = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            let content = fs::read_to_string(entry.path()).unwrap_or_else(|e| e.to_string());
            (name, content)
        };
        entries.map(|one| entry(one.unwrap())).collect()
    }
}

fn state(files: &[(&str, &str)]) -> BTreeMap<String, String> {
    let files = [("in", "input")].into_iter().chain(files.iter().copied());
    files
        .map(|(name, content)| (name.to_string(), content.to_string()))
        .collect()
}

/// With the older file, if it was there.
fn state_if(older: bool, content: &str) -> BTreeMap<String, String> {
    let mut files = state(&[("out", content)]);
    files.retain(|name, _| older || name != "out");
    files
}

fn assert_refused(output: &Output, sentence: &str) {
    assert_eq!(stderr(output), format!("make: {sentence}\n"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stdout(output), "", "no worker ran");
}

const WRITE: [&str; 2] = ["announce=1,100", "write=1,new"];
const FILES: [&str; 2] = ["read=in", "create=out"];

#[test]
fn new_file_has_its_name_when_the_job_has_ended_well() {
    for (kind, fail) in [
        ("create", None),
        ("raw", None),
        ("durable", None),
        ("durable", Some(NO_TMPFILE)),
        // Neither a direct link nor, then, one through `/proc`; a rename that cannot spare others.
        ("durable", Some("tmpfile=95,renameat2=22")),
    ] {
        let bed = fail.map_or_else(Bed::new, Bed::failing);
        let steps = ["describe", "announce=1,1000", "write=1,new"];
        let output = bed.run(&["read=in", &format!("{kind}=out")], &steps);
        let most = 1000 + 100 + (64 << 20);
        let expected = format!(
            "read-only true length 5 most 5\nread-only false length 0 most 0\nannounce Ok({most})\n"
        );
        assert_eq!(stdout(&output), expected, "{}", stderr(&output));
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(bed.state(), state(&[("out", "new")]), "{kind} {fail:?}");
    }
}

#[test]
fn new_file_has_no_name_before() {
    let bed = Bed::new();
    let running = Running::of(bed.command(&FILES, &["announce=1,9", "write=1,new", "cancel"]));
    assert_eq!(bed.state(), state(&[]));
    running.signal(running.broker(), libc::SIGTERM);
    assert_eq!(running.end().0, Some(143));
    assert_eq!(bed.state(), state(&[]));
}

#[test]
fn mode_of_a_new_file_is_the_umasks() {
    for (fail, umask, mode) in [
        (None, "0", 0o644),
        (None, "027", 0o640),
        (Some(NO_TMPFILE), "077", 0o600),
    ] {
        let bed = fail.map_or_else(Bed::new, Bed::failing);
        let make = bed.command(&FILES, &WRITE);
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"]);
        shell.arg(make.get_program()).args(make.get_args());
        shell.current_dir(bed.folder.path());
        shell.envs(bed.fail.iter().map(|calls| ("FAIL", calls)));
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let found = fs::metadata(bed.path("out")).unwrap().permissions().mode();
        assert_eq!(found & 0o7777, mode, "umask {umask}");
    }
}

#[test]
fn older_file_is_emptied_when_its_size_is_announced_and_keeps_its_inode() {
    let bed = Bed::new().old("out");
    let inode = fs::metadata(bed.path("out")).unwrap().ino();
    let running = Running::of(bed.command(&FILES, &["hold"]));
    assert_eq!(bed.state(), state(&[("out", OLD)]));
    running.signal(running.worker, libc::SIGKILL);
    running.end();
    assert_eq!(bed.state(), state(&[("out", OLD)]), "untouched");

    let running = Running::of(bed.command(&FILES, &["announce=1,9", "hold"]));
    assert_eq!(bed.state(), state(&[("out", "")]));
    running.signal(running.worker, libc::SIGKILL);
    running.end();

    let output = bed.run(&FILES, &WRITE);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(bed.state(), state(&[("out", "new")]));
    assert_eq!(fs::metadata(bed.path("out")).unwrap().ino(), inode);
}

/// How a job can end that does not end well: what it does last, and the exit code.
const BAD_ENDS: [(&str, i32); 4] = [("code=1", 1), ("code=2", 2), ("crash", 1), ("fail", 1)];

#[test]
fn nothing_remains_of_a_job_that_does_not_end_well() {
    let sets: [&[&str]; 3] = [
        &["create=out"],
        &["create=out", "raw=data"],
        &["durable=out", "durable=data"],
    ];
    for (files, fail, (end, code)) in sets
        .iter()
        .flat_map(|files| [None, Some(NO_TMPFILE)].map(|fail| (files, fail)))
        .flat_map(|(files, fail)| BAD_ENDS.map(|end| (files, fail, end)))
    {
        for begun in [false, true] {
            for older in [false, true] {
                let mut bed = fail.map_or_else(Bed::new, Bed::failing);
                if older {
                    bed = bed.old("out");
                }
                let files = [&["read=in"], *files].concat();
                let mut steps = Vec::new();
                if begun {
                    steps.extend(WRITE);
                    if files.len() > 2 {
                        steps.extend(["announce=2,100", "write=2,more"]);
                    }
                }
                steps.push(end);
                let output = bed.run(&files, &steps);
                let what = format!("{files:?} {fail:?} {steps:?} older {older}");
                assert_eq!(
                    output.status.code(),
                    Some(code),
                    "{what}: {}",
                    stderr(&output)
                );
                let left = if begun { "" } else { OLD };
                let expected = state_if(older, left);
                assert_eq!(bed.state(), expected, "{what}");
            }
        }
    }
}

#[test]
fn nothing_remains_when_the_last_steps_fail() {
    let missing = "No such file or directory";
    let create = |text: &str| format!("Could not create 'out': {text}");
    for (calls, sentence) in [
        ("linkat=28", create("No space left on device")),
        ("linkat=2", create(missing)),
        ("linkat=1", create("Operation not permitted")),
        (
            "fsync=5",
            "Could not flush the file: Input/output error".into(),
        ),
        ("tmpfile=95,renameat2=30", create("Read-only file system")),
        ("tmpfile=95,renameat2=22,linkat=2", create(missing)),
    ] {
        for two in [false, true] {
            let bed = Bed::failing(calls);
            let mut files = vec!["read=in", "durable=out"];
            let mut steps = WRITE.to_vec();
            if two {
                files.push("durable=data");
                steps.extend(["announce=2,100", "write=2,more"]);
            }
            let output = bed.run(&files, &steps);
            assert_eq!(
                stderr(&output),
                format!("make: out: {sentence}\n"),
                "{calls}"
            );
            assert_eq!(output.status.code(), Some(1), "{calls}");
            assert_eq!(bed.state(), state(&[]), "{calls}, two {two}");
        }
    }
}

#[test]
fn full_disk_or_size_limit_leaves_nothing() {
    for calls in ["pwritev2=28", "tmpfile=95,pwritev2=27"] {
        let bed = Bed::failing(calls).old("older");
        let output = bed.run(&FILES, &WRITE);
        assert!(stdout(&output).contains("write 2"), "{}", stdout(&output));
        assert_eq!(output.status.code(), Some(1));
        bed.run(&["read=in", "create=older"], &WRITE);
        assert_eq!(bed.state(), state(&[("older", "")]));
    }
}

#[test]
fn older_file_that_cannot_be_emptied_stays() {
    let bed = Bed::failing("ftruncate=1").old("out");
    let output = bed.run(&FILES, &["announce=1,9", "code=1"]);
    assert!(
        stdout(&output).contains("announce Err((Failed, 1))"),
        "{}",
        stdout(&output)
    );
    assert_eq!(bed.state(), state(&[("out", OLD)]));
}

#[test]
fn file_that_somebody_made_meanwhile_stays_and_the_others_are_not_made() {
    for fail in [None, Some(NO_TMPFILE), Some("tmpfile=95,renameat2=22")] {
        for meanwhile in ["out", "data"] {
            let bed = fail.map_or_else(Bed::new, Bed::failing);
            let steps = [
                &WRITE[..],
                &["announce=2,9", "write=2,more", "until=0,go on"],
            ]
            .concat();
            let files = ["read=in", "durable=out", "durable=data"];
            let running = Running::of(bed.command(&files, &steps));
            fs::write(bed.path(meanwhile), "mine").unwrap();
            fs::write(bed.path("in"), "go on").unwrap();
            let (code, text, _) = running.end();
            assert_eq!(text, "make: out: Could not create 'out': File exists\n");
            assert_eq!(code, Some(1));
            let left = state(&[(meanwhile, "mine"), ("in", "go on")]);
            assert_eq!(bed.state(), left, "{fail:?}");
        }
    }
}

#[test]
fn signals_leave_nothing() {
    for (fail, step, signal, times, code) in [
        (None, "cancel", libc::SIGINT, 1, 130),
        (None, "cancel", libc::SIGTERM, 1, 143),
        (None, "cancel", libc::SIGHUP, 1, 129),
        (None, "hold", libc::SIGINT, 2, 130),
        (Some(NO_TMPFILE), "cancel", libc::SIGINT, 1, 130),
        (Some(NO_TMPFILE), "hold", libc::SIGTERM, 2, 143),
    ] {
        for older in [false, true] {
            let mut bed = fail.map_or_else(Bed::new, Bed::failing);
            if older {
                bed = bed.old("out");
            }
            let steps = [&WRITE[..], &[step]].concat();
            let running = Running::of(bed.command(&FILES, &steps));
            for _ in 0..times {
                running.tell(signal);
            }
            let (ended, text, _) = running.end();
            assert_eq!(ended, Some(code), "{text}");
            let expected = state_if(older, "");
            assert_eq!(bed.state(), expected, "{step} {signal} {fail:?}");
        }
    }
}

#[test]
fn worker_that_is_killed_leaves_nothing() {
    for fail in [None, Some(NO_TMPFILE)] {
        let bed = fail.map_or_else(Bed::new, Bed::failing).old("older");
        for out in ["create=out", "create=older"] {
            let steps = [&WRITE[..], &["hold"]].concat();
            let running = Running::of(bed.command(&["read=in", out], &steps));
            running.signal(running.worker, libc::SIGKILL);
            assert_eq!(running.end().0, Some(1));
        }
        assert_eq!(bed.state(), state(&[("older", "")]), "{fail:?}");
    }
}

/// A new file without a name is gone with the processes; where there are none, the temporary name is
/// left, and an older file is what was written so far. Nobody is there to do more.
#[test]
fn broker_that_is_killed_takes_the_worker_along_and_leaves_no_new_name() {
    for (fail, out, left) in [
        (None, "out", None),
        (None, "older", Some(("older", "new"))),
        (Some(NO_TMPFILE), "out", Some((".instar-", "new"))),
    ] {
        let mut bed = fail.map_or_else(Bed::new, Bed::failing);
        if out == "older" {
            bed = bed.old("older");
        }
        let steps = [&WRITE[..], &["hold"]].concat();
        let create = format!("create={out}");
        let mut running = Running::of(bed.command(&["read=in", &create], &steps));
        running.broker.kill().unwrap();
        running.broker.wait().unwrap();
        let worker = format!("/proc/{}/cmdline", running.worker);
        let gone = || fs::read(&worker).map_or(true, |command| command.is_empty());
        until("the worker's end", gone);
        let mut found = bed.state();
        found.remove("in");
        match left {
            None => assert!(found.is_empty(), "{found:?}"),
            Some((name, content)) => {
                let (path, text) = found.first_key_value().unwrap();
                assert!(path.starts_with(name) && text == content, "{found:?}");
                assert_eq!(found.len(), 1);
            }
        }
    }
}

#[test]
fn target_that_is_an_input_is_refused_and_not_touched() {
    let bed = Bed::new();
    fs::hard_link(bed.path("in"), bed.path("hard")).unwrap();
    symlink("in", bed.path("soft")).unwrap();
    fs::create_dir(bed.path("sub")).unwrap();
    let before = bed.state();
    for name in ["in", "./in", "sub/../in", "hard", "soft", "file:in"] {
        for kind in ["create", "raw", "durable"] {
            let output = bed.run(&["read=in", &format!("{kind}={name}")], &WRITE);
            let shown = name.strip_prefix("file:").unwrap_or(name);
            assert_refused(
                &output,
                &format!(
                    "{name}: Failed to get \"write\" lock\nIs another process using the image [{shown}]?"
                ),
            );
        }
    }
    // The order of the slots does not matter.
    let output = bed.run(&["create=hard", "read=in"], &WRITE);
    assert!(stderr(&output).starts_with("make: hard: Failed to get \"write\" lock"));
    assert_eq!(bed.state(), before);
}

#[test]
fn target_that_is_a_file_of_the_chain_is_refused_when_that_is_opened() {
    let bed = Bed::new().old("base");
    fs::hard_link(bed.path("base"), bed.path("hard")).unwrap();
    for name in ["base", "hard"] {
        let before = bed.state();
        let output = bed.run(
            &["read=in", &format!("create={name}")],
            &["open=0,base", "code=1"],
        );
        assert_eq!(stdout(&output), format!("answer 2 {}\n", libc::EAGAIN));
        let expected = format!(
            "make: {name}: Failed to get \"write\" lock\nIs another process using the image [{name}]?\n"
        );
        assert_eq!(stderr(&output), expected);
        assert_eq!(bed.state(), before, "{name}");
    }
    let output = bed.run(&FILES, &["open=0,base", "announce=1,9"]);
    assert!(
        stdout(&output).starts_with("opened 13\n"),
        "{}",
        stdout(&output)
    );
}

#[test]
fn two_files_that_are_one_are_refused() {
    let bed = Bed::new();
    symlink("out", bed.path("dangling")).unwrap();
    fs::create_dir(bed.path("sub")).unwrap();
    let before = bed.state();
    for second in ["out", "sub/../out", "dangling"] {
        for bed_fails in [None, Some(NO_TMPFILE)] {
            let files = ["create=out".to_string(), format!("raw={second}")];
            let mut command = bed.command(&[&files[0], &files[1]], &[]);
            command.envs(bed_fails.map(|calls| ("FAIL", calls)));
            let text = stderr(&command.output().unwrap());
            let expected = "make: out: Failed to get shared \"resize\" lock\nIs another process";
            assert!(text.starts_with(expected), "{second}: {text}");
        }
    }
    assert_eq!(bed.state(), before);
    let old = Bed::new().old("out");
    fs::hard_link(old.path("out"), old.path("hard")).unwrap();
    let text = stderr(&old.run(&["create=out", "raw=hard"], &[]));
    assert!(
        text.starts_with("make: out: Failed to get \"write\" lock"),
        "{text}"
    );
}

#[test]
fn links_are_followed_and_a_dangling_one_makes_what_it_names() {
    for fail in [None, Some(NO_TMPFILE)] {
        let bed = fail.map_or_else(Bed::new, Bed::failing);
        fs::create_dir(bed.path("sub")).unwrap();
        symlink("sub/second", bed.path("first")).unwrap();
        symlink("../target", bed.path("sub/second")).unwrap();
        for content in ["new", "newer"] {
            let write = format!("write=1,{content}");
            let output = bed.run(&["read=in", "create=first"], &["announce=1,9", &write]);
            assert!(output.status.success(), "{}", stderr(&output));
            assert!(bed.path("first").is_symlink());
            assert_eq!(fs::read_to_string(bed.path("target")).unwrap(), content);
        }
    }
}

#[test]
fn nothing_is_written_before_the_size_is_announced_and_it_is_announced_once() {
    let bed = Bed::new();
    let steps = [
        "announce=0,9",
        "announce=7,9",
        "announce=1,9",
        "announce=1,99",
    ];
    let output = bed.run(&FILES, &steps);
    let text = stdout(&output);
    let invalid = "announce Err((Invalid, 0))\n";
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    assert_eq!(lines.len(), 4, "{text}");
    assert_eq!([lines[0], lines[1], lines[3]], [invalid; 3]);
    assert!(lines[2].starts_with("announce Ok("));

    let bed = Bed::new().old("out");
    let output = bed.run(&FILES, &[]);
    assert!(stderr(&output).contains("it wrote none of its output"));
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(bed.state(), state(&[("out", OLD)]));
}

#[test]
fn file_that_is_changed_in_place_grows_by_what_is_announced() {
    let bed = Bed::new().old("image");
    let output = bed.run(
        &["read=in", "change=image"],
        &["describe", "announce=1,1000"],
    );
    let old = OLD.len() as u64;
    let (before, after) = (old + old / 10, old + 1000 + (old + 1000) / 10);
    let window = 64 << 20;
    let text = stdout(&output);
    assert!(
        text.contains(&format!("most {}\n", before + window)),
        "{text}"
    );
    assert!(
        text.contains(&format!("announce Ok({})\n", after + window)),
        "{text}"
    );
    assert_eq!(bed.state(), state(&[("image", OLD)]));
}

#[test]
fn what_is_made_names_no_files() {
    let bed = Bed::new().old("out");
    let output = bed.run(&FILES, &["open=1,in", "code=1"]);
    assert_eq!(stdout(&output), "answer 5 0\n");
}

#[test]
fn while_it_is_made_a_file_is_qemus_to_wait_for() {
    let bed = Bed::new();
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "out", "1M"])
        .current_dir(bed.folder.path())
        .status();
    assert!(made.expect("qemu-img is installed").success());
    let running = Running::of(bed.command(&FILES, &["hold"]));
    for arguments in [
        &["info", "out"][..],
        &["create", "-q", "-f", "raw", "out", "1M"],
        &["convert", "-f", "raw", "-O", "qcow2", "in", "out"],
    ] {
        let output = Command::new("qemu-img")
            .args(arguments)
            .current_dir(bed.folder.path())
            .output();
        let text = stderr(&output.unwrap());
        assert!(text.contains("lock\nIs another process using"), "{text}");
    }
    running.signal(running.worker, libc::SIGKILL);
    running.end();
}

fn qemu_says(folder: &Path, kind: &str, path: &str) -> String {
    let format = if kind == "raw" { "raw" } else { "qcow2" };
    let output = Command::new("qemu-img")
        .args(["create", "-q", "-f", format, path, "1M"])
        .current_dir(folder)
        .output()
        .expect("qemu-img is installed");
    assert_eq!(output.status.code(), Some(1), "qemu-img made {path}");
    stderr(&output).replacen("qemu-img: ", "make: ", 1)
}

#[test]
fn what_cannot_be_made_is_refused_in_qemus_words() {
    let bed = Bed::new();
    fs::create_dir(bed.path("folder")).unwrap();
    symlink("loop", bed.path("loop")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(bed.path("socket")).unwrap();
    let long = "n".repeat(256);
    for path in [
        "missing/out",
        "folder",
        "folder/",
        "new/",
        ".",
        "in/out",
        "loop",
        "loop/out",
        "socket",
        "",
        "file:",
        "other:out",
        "json:out",
        "host_device:out",
        "host_device:in",
        "/dev/null",
        "host_device:/dev/null",
        &long,
        &format!("{long}/out"),
    ] {
        for kind in ["create", "raw"] {
            let ours = bed.run(&[&format!("{kind}={path}")], &[]);
            let expected = qemu_says(bed.folder.path(), kind, path);
            assert_eq!(stderr(&ours), expected, "{kind} {path}");
            assert_eq!(ours.status.code(), Some(1));
        }
    }
}

/// qemu-img opens it, which would wake a reader, and says the same.
#[test]
fn fifo_is_refused_at_once() {
    let bed = Bed::new();
    let made = Command::new("mkfifo").arg(bed.path("fifo")).status();
    assert!(made.unwrap().success());
    let output = bed.run(&["create=fifo"], &[]);
    assert_refused(&output, "fifo: Could not resize file: Invalid argument");
}

/// A qemu-io that has the image open until its input ends.
fn holder(path: &Path, format: &str, read_only: bool) -> std::process::Child {
    let mut command = Command::new("qemu-io");
    command.args(["-f", format]).args(read_only.then_some("-r"));
    command
        .arg(path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut held = command.spawn().expect("qemu-io is installed");
    let mut prompt = [0; 9];
    std::io::Read::read_exact(held.stdout.as_mut().unwrap(), &mut prompt).unwrap();
    held
}

/// What stands in the way of a file that is made while `holder` has it open as `format`.
fn in_the_way(bed: &Bed, format: &str, read_only: bool, kind: &str) -> String {
    let path = bed.path("x");
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", format])
        .arg(&path)
        .arg("1M")
        .status();
    assert!(made.expect("qemu-img is installed").success());
    let mut held = holder(&path, format, read_only);
    let before = fs::read(&path).unwrap();
    let ours = bed.run(&[&format!("{kind}=x")], &["code=1"]);
    assert_eq!(ours.status.code(), Some(1));
    assert!(fs::read(&path).unwrap() == before, "it was touched");
    let ours = stderr(&ours);
    if format == "qcow2" {
        assert_eq!(ours, qemu_says(bed.folder.path(), kind, "x"));
    }
    drop(held.stdin.take());
    held.wait().unwrap();
    ours
}

#[test]
fn image_in_use_is_not_made_anew_in_qemus_words() {
    let bed = Bed::new();
    let write = "make: x: Failed to get \"write\" lock\nIs another process using the image [x]?\n";
    for kind in ["create", "raw"] {
        for read_only in [false, true] {
            assert_eq!(in_the_way(&bed, "qcow2", read_only, kind), write);
        }
        assert_eq!(
            in_the_way(&bed, "raw", true, kind),
            "",
            "a raw reader shares"
        );
    }
    assert_eq!(
        in_the_way(&bed, "raw", false, "raw"),
        "",
        "raw writers share"
    );
    // qemu-img has emptied the file before it finds this out, and removes it.
    let shared = write.replace("get \"write\"", "get shared \"write\"");
    assert_eq!(in_the_way(&bed, "raw", false, "create"), shared);
}
