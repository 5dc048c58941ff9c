//! Running the fake job, and looking at it.
#![allow(dead_code)]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The job that most tests run.
pub fn program() -> PathBuf {
    program_named("fake_job")
}

/// The example of this crate that cargo builds along with its tests.
pub fn program_named(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let profile = test.parent().and_then(Path::parent).unwrap();
    let program = profile.join("examples").join(name);
    assert!(
        program.exists(),
        "{} is missing: cargo builds it with the tests",
        program.display()
    );
    program
}

pub fn scratch() -> (TempDir, PathBuf) {
    let scratch = tempfile::tempdir().unwrap();
    fs::create_dir(scratch.path().join("sub")).unwrap();
    for (name, content) in [
        ("top", "top"),
        ("sub/base", "base"),
        ("sub/last", "last"),
        ("sub/x:y", "colon"),
    ] {
        fs::write(scratch.path().join(name), content).unwrap();
    }
    let top = scratch.path().join("top");
    (scratch, top)
}

pub fn command(scenario: &str, image: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program());
    command
        .arg(scenario)
        .arg(image)
        .args(arguments)
        .stdin(Stdio::null());
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .env_remove("INSTAR_ALLOW_PATH");
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// How long to wait for what takes milliseconds where nothing else runs.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the broker leaves a worker that is to end.
const GRACE: Duration = Duration::from_secs(5);

/// Waits until `done`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what}: it does not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a job that is told to end gives, [`Running::end`], if that is sooner than the broker kills a worker: a machine may be
/// so busy that it is not, but not each time.
pub fn soon(job: impl Fn() -> (Option<i32>, String, Duration)) -> (Option<i32>, String, Duration) {
    let ended = (0..10).map(|_| job()).find(|(_, _, took)| *took < GRACE);
    ended.expect("it ends before its time is up")
}

/// A field of `/proc/PID/status`, or of a thread's with `pid` as `PID/task/TID`.
pub fn status(pid: impl std::fmt::Display, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.unwrap().trim_start_matches(':').trim().to_string()
}

/// A job whose worker has said that it runs.
pub struct Running {
    pub broker: Child,
    pub worker: i32,
    started: Instant,
}

impl Running {
    pub fn new(scenario: &str, image: &Path) -> Self {
        Self::of(command(scenario, image, &[]))
    }

    pub fn of(mut command: Command) -> Self {
        let mut broker = command.spawn().unwrap();
        let mut lines = BufReader::new(broker.stdout.take().unwrap()).lines();
        while lines.next().expect("it runs").unwrap() != "running" {}
        let children = format!("/proc/{0}/task/{0}/children", broker.id());
        let worker = fs::read_to_string(children)
            .unwrap()
            .split_whitespace()
            .next()
            .expect("the worker comes first")
            .parse()
            .unwrap();
        Self {
            broker,
            worker,
            started: Instant::now(),
        }
    }

    pub fn signal(&self, pid: i32, signal: i32) {
        // SAFETY: kill has no memory to harm; the process is this test's own.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    }

    /// Sends the broker a signal, and waits until its handler has run: of two of a kind that are on their way at once, one
    /// comes.
    pub fn tell(&self, signal: i32) {
        self.signal(self.broker(), signal);
        until("a signal is taken", || {
            let pending = u64::from_str_radix(&status(self.broker(), "ShdPnd"), 16).unwrap();
            pending & (1 << (signal - 1)) == 0
        });
    }

    pub fn broker(&self) -> i32 {
        self.broker.id().try_into().unwrap()
    }

    /// Exit code, what it said on standard error, and how long it took.
    pub fn end(mut self) -> (Option<i32>, String, Duration) {
        let status = self.broker.wait().unwrap();
        let mut text = String::new();
        self.broker
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        assert!(
            !Path::new(&format!("/proc/{}", self.worker)).exists(),
            "the worker is left behind"
        );
        assert_eq!(status.signal(), None, "{text}");
        (status.code(), text, self.started.elapsed())
    }
}
