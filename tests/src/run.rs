//! Runs a program with a time limit and reports what it said and needed.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// The longest time a run may take before it counts as hanging, where others work, too.
pub const TIME_LIMIT: Duration = Duration::from_secs(180);

/// The most output of one stream that is kept, in bytes. The rest is read and
/// dropped, so that a program never blocks on its output.
const OUTPUT_CAP: usize = 64 << 20;

/// One run to be made.
#[derive(Debug, Clone)]
pub struct Run {
    program: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    cwd: PathBuf,
    limit: Duration,
}

/// What a run did.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Exit code; none when a signal ended the program.
    pub code: Option<i32>,
    /// The signal that ended the program.
    pub signal: Option<i32>,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
    /// Largest resident set of the program or a child it waited for, in KiB.
    pub max_rss_kib: u64,
    /// Wall time.
    pub elapsed: Duration,
    /// The time limit passed and the program was killed.
    pub timed_out: bool,
}

impl Run {
    /// A run of `program` in the folder `cwd`.
    pub fn new(program: &Path, cwd: &Path) -> Self {
        Self {
            program: program.to_owned(),
            args: Vec::new(),
            env: Vec::new(),
            cwd: cwd.to_owned(),
            limit: TIME_LIMIT,
        }
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.args
            .extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.env.push((name.into(), value.as_ref().to_owned()));
        self
    }

    /// Sets another time limit.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the program to its end.
    pub fn go(&self) -> Result<Outcome> {
        let started = Instant::now();
        let mut child = self
            .command()
            .stdin(Stdio::null())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        let stdout = drain(child.stdout.take());
        let stderr = drain(child.stderr.take());
        let (status, max_rss_kib, timed_out) = wait(&child, self.limit)?;
        Ok(Outcome {
            code: status.code(),
            signal: status.signal(),
            stdout: stdout.join().unwrap_or_default(),
            stderr: stderr.join().unwrap_or_default(),
            max_rss_kib,
            elapsed: started.elapsed(),
            timed_out,
        })
    }

    /// Starts the program with a pipe to its standard input and leaves it
    /// running; the caller ends it.
    ///
    /// It obeys SIGINT and SIGTERM even if the test is a background job that does not.
    pub fn start(&self) -> Result<Child> {
        let mut command = self.command();
        // SAFETY: between fork and exec, signal(2) alone is called, which is allowed there.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGINT, libc::SIG_DFL);
                libc::signal(libc::SIGTERM, libc::SIG_DFL);
                Ok(())
            });
        }
        command
            .stdin(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .current_dir(&self.cwd)
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env_remove("INSTAR_ALLOW_PATH")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        command
    }
}

impl Outcome {
    /// Fails unless the program ended with this exit code.
    pub fn expect_code(&self, code: i32) -> Result<&Self> {
        if self.code != Some(code) {
            bail!("exit code {code} expected:\n{}", self.describe());
        }
        Ok(self)
    }

    /// Standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// The run in words, for a failure message; long streams are cut.
    pub fn describe(&self) -> String {
        format!(
            "code {:?} signal {:?} timed out {} rss {} KiB\n--- stdout\n{}--- stderr\n{}",
            self.code,
            self.signal,
            self.timed_out,
            self.max_rss_kib,
            cut(&self.out()),
            cut(&self.err()),
        )
    }
}

fn cut(text: &str) -> String {
    const KEEP: usize = 4000;
    if text.len() <= KEEP {
        return text.to_owned();
    }
    let head: String = text.chars().take(KEEP).collect();
    format!("{head}\n[… {} bytes in all]\n", text.len())
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        let Some(mut pipe) = pipe else { return kept };
        let mut buffer = vec![0_u8; 64 << 10];
        while let Ok(count) = pipe.read(&mut buffer) {
            if count == 0 {
                break;
            }
            if kept.len() < OUTPUT_CAP {
                kept.extend_from_slice(&buffer[..count]);
            }
        }
        kept
    })
}

/// Waits for the end of a child, killing its process group after `limit`.
fn wait(child: &Child, limit: Duration) -> Result<(ExitStatus, u64, bool)> {
    let id = i32::try_from(child.id()).context("process id")?;
    let pid = rustix::process::Pid::from_raw(id).context("process id 0")?;
    let watch = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())
        .context("opening a descriptor of the child")?;
    let mut polled = [rustix::event::PollFd::new(
        &watch,
        rustix::event::PollFlags::IN,
    )];
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(limit.as_secs())?,
        tv_nsec: 0,
    };
    let timed_out = rustix::event::poll(&mut polled, Some(&timeout))? == 0;
    // Also after a normal end: a process left behind would hold the pipes.
    let left = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    if timed_out {
        left.context("killing the process group")?;
    }
    let mut status = 0;
    // SAFETY: rusage is plain integers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: `status` and `usage` are live and writable for the whole call,
    // and the child has not been waited for by anyone else.
    let waited = unsafe { libc::wait4(id, &raw mut status, 0, &raw mut usage) };
    if waited != id {
        bail!("waiting for process {id} failed");
    }
    let rss = u64::try_from(usage.ru_maxrss).unwrap_or(0);
    Ok((ExitStatus::from_raw(status), rss, timed_out))
}
