//! Runs a program and takes its time.

use std::cell::RefCell;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A program and the folder that it runs in.
pub struct Program {
    path: PathBuf,
    folder: PathBuf,
    /// Files that every run gets as they were when this was set.
    fresh: RefCell<Vec<PathBuf>>,
    /// A file that no run finds.
    output: RefCell<Option<PathBuf>>,
}

/// One timed run.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// From before the process is started until it has been waited for.
    pub wall: Duration,
    /// `ru_maxrss` as `wait4` gives it: the largest single process of those
    /// that the program was and waited for, in bytes.
    pub max_rss_bytes: u64,
    /// CPU time, user and system, of the same processes together.
    pub cpu: Duration,
}

/// What instar says of itself with `INSTAR_STATS=1`.
#[derive(Clone, Copy, Debug)]
pub struct OwnStatistics {
    /// VM exits, the most of all runs.
    pub exits: u64,
    /// VM creation to the first guest instruction, median, in µs.
    pub setup_us: u64,
}

impl Program {
    /// A program that runs in `folder`.
    pub fn new(path: PathBuf, folder: &Path) -> Self {
        Self {
            path,
            folder: folder.to_owned(),
            fresh: RefCell::new(Vec::new()),
            output: RefCell::new(None),
        }
    }

    /// The same program in another folder.
    pub fn within(&self, folder: &Path) -> Self {
        Self::new(self.path.clone(), folder)
    }

    /// Removes `file` before every run from now on. What is removed so soon has not been written to the disk, so
    /// that no run pays for what another one made.
    pub fn remove_first(&self, file: Option<&str>) {
        *self.output.borrow_mut() = file.map(|name| self.folder.join(name));
    }

    /// Keeps copies of `files`, which every run from now on gets back first.
    pub fn keep(&self, files: &[&str]) -> Result<()> {
        let files: Vec<_> = files.iter().map(|name| self.folder.join(name)).collect();
        for path in &files {
            copy(path, &pristine(path))?;
        }
        *self.fresh.borrow_mut() = files;
        Ok(())
    }

    fn restore(&self) -> Result<()> {
        if let Some(path) = &*self.output.borrow() {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let fresh = self.fresh.borrow();
        fresh
            .iter()
            .try_for_each(|path| copy(&pristine(path), path))
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.path);
        command
            .args(args)
            .current_dir(&self.folder)
            .env("LC_ALL", "C")
            .env_remove("INSTAR_STATS")
            .stdin(Stdio::null());
        command
    }

    /// Runs it; an exit code other than 0 is an error.
    pub fn must(&self, args: &[&str]) -> Result<()> {
        self.answer(args).map(drop)
    }

    /// Its standard output.
    pub fn answer(&self, args: &[&str]) -> Result<String> {
        self.restore()?;
        let output = self
            .command(args)
            .output()
            .with_context(|| format!("starting {}", self.path.display()))?;
        ensure!(
            output.status.success(),
            "{} {}: {}: {}",
            self.path.display(),
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts it with its output thrown away.
    pub fn start(&self, args: &[&str]) -> Result<Child> {
        self.restore()?;
        self.start_as_it_is(args)
    }

    fn start_as_it_is(&self, args: &[&str]) -> Result<Child> {
        let mut command = self.command(args);
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
            .spawn()
            .with_context(|| format!("starting {}", self.path.display()))
    }

    /// One timed run.
    pub fn run(&self, args: &[&str]) -> Result<Sample> {
        self.restore()?;
        let started = Instant::now();
        let child = self.start_as_it_is(args)?;
        let usage = wait(&child, 0)?.context("the process has not ended")?;
        Ok(Sample {
            wall: started.elapsed(),
            max_rss_bytes: usage.max_rss_bytes,
            cpu: usage.cpu,
        })
    }

    /// What it says of itself in `runs` runs; `None` if it says nothing.
    pub fn own_statistics(&self, args: &[&str], runs: usize) -> Result<Option<OwnStatistics>> {
        let (mut exits, mut setup_us) = (Vec::new(), Vec::new());
        for _ in 0..runs {
            self.restore()?;
            let mut command = self.command(args);
            let output = command.env("INSTAR_STATS", "1").output()?;
            let text = String::from_utf8_lossy(&output.stderr);
            let Some(line) = text.lines().find_map(|line| line.strip_prefix("stats: ")) else {
                return Ok(None);
            };
            exits.push(field(line, "exits")?);
            setup_us.push(field(line, "setup_us")?);
        }
        setup_us.sort_unstable();
        Ok(Some(OwnStatistics {
            exits: exits.iter().copied().max().unwrap_or(0),
            setup_us: setup_us.get(runs / 2).copied().unwrap_or(0),
        }))
    }
}

/// Where the copy of a file is kept.
fn pristine(path: &Path) -> PathBuf {
    path.with_added_extension("pristine")
}

/// Copies a file with its holes, to the disk: no run has to write back what the copy left in memory.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut command = Command::new("cp");
    command
        .args(["--sparse=always", "--reflink=never"])
        .arg(from)
        .arg(to);
    ensure!(command.status()?.success(), "cp failed");
    std::fs::File::open(to)?.sync_all()?;
    Ok(())
}

/// The number in `NAME=NUMBER`.
fn field(line: &str, name: &str) -> Result<u64> {
    let found = line
        .split_whitespace()
        .filter_map(|word| word.split_once('='))
        .find(|(key, _)| *key == name);
    let (_, value) = found.with_context(|| format!("no {name} in `{line}`"))?;
    Ok(value.parse()?)
}

/// What a process used, with those that it waited for.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    /// `ru_maxrss`, in bytes.
    pub max_rss_bytes: u64,
    /// User and system time.
    pub cpu: Duration,
}

/// Waits for a child with `wait4`: what it used, or `None` if `options` has `WNOHANG` and it still
/// runs. A failed child is an error.
pub fn wait(child: &Child, options: i32) -> Result<Option<Usage>> {
    let id = i32::try_from(child.id())?;
    let mut status = 0;
    // SAFETY: rusage is plain integers, for which all zeros is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals, and nobody else waits for the child.
    let waited = unsafe { libc::wait4(id, &raw mut status, options, &raw mut usage) };
    match waited {
        0 => Ok(None),
        waited if waited == id => {
            ensure!(
                status == 0,
                "the program ended with wait status {status:#x}"
            );
            Ok(Some(Usage {
                max_rss_bytes: u64::try_from(usage.ru_maxrss)? * 1024,
                cpu: time(usage.ru_utime)? + time(usage.ru_stime)?,
            }))
        }
        _ => bail!("wait4: {}", std::io::Error::last_os_error()),
    }
}

fn time(time: libc::timeval) -> Result<Duration> {
    let micros = Duration::from_micros(u64::try_from(time.tv_usec)?);
    Ok(Duration::from_secs(u64::try_from(time.tv_sec)?) + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn field_reads_a_number_by_its_name() {
        let line = "exits=17 setup_us=900 granted=0";
        assert_eq!(field(line, "setup_us").unwrap(), 900);
        assert!(field(line, "setup").is_err());
    }

    #[test]
    fn run_reports_failure_time_and_memory() {
        let here = Path::new("/");
        let sample = Program::new("sleep".into(), here).run(&["0.02"]).unwrap();
        assert!(sample.wall >= Duration::from_millis(20));
        assert!(sample.max_rss_bytes > 100 << 10);
        assert!(Program::new("false".into(), here).run(&[]).is_err());
    }
}
