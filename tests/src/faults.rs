//! Runs of the program under test that are cut short or fail on purpose, and what an image may be afterwards.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instar_storage::crash::{self, Recording};
use instar_storage::{CrashStorage, MemStorage, Reserve, StorageMut};
use instar_test_faults::{Call, read_recording};
use serde_json::Value;

use crate::run::{Outcome, Run};
use crate::scratch::Scratch;
use crate::{image, tools};

/// Everything that is seen of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    info: Value,
    contents: Vec<String>,
}

/// The library that `LD_PRELOAD` takes; cargo builds it beside the tests.
fn library() -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let path = this.with_file_name("libinstar_test_faults.so");
    ensure!(path.is_file(), "{} is not built", path.display());
    Ok(path)
}

/// A run of the program under test with these arguments.
pub fn plain(scratch: &Scratch, args: &[&str]) -> Result<Run> {
    Ok(Run::new(&tools::instar()?, scratch.path()).args(args))
}

/// Runs it with a fault: see `instar_test_faults`.
pub fn with_fault(scratch: &Scratch, args: &[&str], fault: &str) -> Result<Outcome> {
    plain(scratch, args)?
        .env("LD_PRELOAD", library()?)
        .env("INSTAR_TEST_FAULT", fault)
        .go()
}

/// Runs it to its end and records what it does to its files.
pub fn recorded(scratch: &Scratch, args: &[&str]) -> Result<(Outcome, Vec<Call>)> {
    let path = scratch.file("recording");
    let outcome = plain(scratch, args)?
        .env("LD_PRELOAD", library()?)
        .env("INSTAR_TEST_RECORD", &path)
        .go()?;
    let file = File::open(&path).context("no recording: is the program linked statically?")?;
    let mut bytes = vec![0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0)?;
    let filled = u64::from_ne_bytes(bytes.as_slice().try_into()?);
    bytes.resize(8 + usize::try_from(filled)?, 0);
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0)?;
    std::fs::remove_file(&path)?;
    let calls = read_recording(&bytes);
    let files: std::collections::BTreeSet<u64> = calls.iter().map(|(fd, _)| *fd).collect();
    ensure!(files.len() <= 1, "more than one file was changed");
    Ok((outcome, calls.into_iter().map(|(_, call)| call).collect()))
}

/// The recording as the simulator takes it: `start` is the image before the run.
pub fn replay(start: MemStorage, calls: &[Call]) -> Result<Recording> {
    let store = CrashStorage::new(start);
    for call in calls {
        match call {
            Call::Write { offset, bytes } => store.write_at(*offset, bytes),
            Call::Flush => store.flush(),
            Call::SetLen(len) => store.set_len(*len),
            Call::Reserve { mode, offset, len } => {
                let mode = i32::try_from(*mode)?;
                if mode & libc::FALLOC_FL_PUNCH_HOLE != 0 {
                    store.discard(*offset, *len)
                } else if mode & libc::FALLOC_FL_ZERO_RANGE != 0 {
                    store.write_zeroes(*offset, *len)
                } else {
                    store.allocate(*offset, *len, Reserve::Blocks)
                }
            }
        }
        .with_context(|| format!("replaying {call:?}"))?;
    }
    Ok(store.finish())
}

/// Loads an image for [`replay`].
pub fn load(scratch: &Scratch, name: &str) -> Result<MemStorage> {
    Ok(MemStorage::load(&File::open(scratch.file(name))?)?)
}

/// Writes a crash state of `recording` as the image `name`, for each of about `most` states spread over all.
pub fn for_some_states(
    scratch: &Scratch,
    name: &str,
    recording: &Recording,
    seed: u64,
    most: usize,
    mut judge: impl FnMut(&str) -> Result<()>,
) -> Result<usize> {
    let total = crash::states(recording, seed, 200).count();
    let step = (total / most).max(1);
    for (label, state) in crash::states(recording, seed, 200).step_by(step) {
        let path = scratch.file(name);
        let file = File::create(&path)?;
        state.save(&file)?;
        judge(&label.to_string())?;
    }
    Ok(total)
}

/// What `qemu-img` sees in an image that its check finds nothing wrong with.
pub fn seen(scratch: &Scratch, name: &str) -> Result<Seen> {
    let check = Run::new(&tools::qemu_img()?, scratch.path())
        .args(["check", name])
        .go()?;
    check.expect_code(0)?;
    seen_unchecked(scratch, name)
}

/// What `qemu-img` sees in an image.
pub fn seen_unchecked(scratch: &Scratch, name: &str) -> Result<Seen> {
    let info = image::qemu_img(scratch, &["info", "--output=json", name])?;
    let mut info: Value = serde_json::from_slice(&info.stdout)?;
    if let Some(object) = info.as_object_mut() {
        object.remove("actual-size");
        object.remove("children");
    }
    let mut contents = vec![content(scratch, name, None)?];
    for snapshot in info["snapshots"].as_array_mut().into_iter().flatten() {
        let id = snapshot["id"].as_str().unwrap_or_default().to_owned();
        contents.push(content(scratch, name, Some(&id))?);
        if let Some(object) = snapshot.as_object_mut() {
            object.remove("date-sec");
            object.remove("date-nsec");
        }
    }
    Ok(Seen { info, contents })
}

fn content(scratch: &Scratch, name: &str, snapshot: Option<&str>) -> Result<String> {
    let mut args = vec!["convert", "-O", "raw"];
    let id = snapshot.map(|id| format!("snapshot.id={id}"));
    args.extend(id.iter().flat_map(|id| ["-l", id.as_str()]));
    args.extend([name, "content.raw"]);
    image::qemu_img(scratch, &args)?;
    let path = scratch.file("content.raw");
    let sum = Command::new("sha256sum").arg(&path).output()?;
    std::fs::remove_file(path)?;
    let text = String::from_utf8_lossy(&sum.stdout).into_owned();
    Ok(text.split(' ').next().unwrap_or_default().to_owned())
}

/// Which of the two processes is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// The one that was started.
    Broker,
    /// The one that runs the microVM.
    Worker,
}

/// Starts a run and kills one of its processes after `delay`; waits until both are gone.
pub fn killed(scratch: &Scratch, args: &[&str], victim: Victim, delay: Duration) -> Result<()> {
    // A worker whose broker is killed becomes our child, so that nobody else's pace says when it is gone.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    let mut child = plain(scratch, args)?.start()?;
    let broker = i32::try_from(child.id())?;
    std::thread::sleep(delay);
    let target = match victim {
        Victim::Broker => Some(broker),
        Victim::Worker => worker_of(broker),
    };
    for pid in target
        .iter()
        .filter_map(|pid| rustix::process::Pid::from_raw(*pid))
    {
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    child.wait()?;
    // A worker whose broker is gone is ended by the kernel; both are in the group of the first.
    let group = rustix::process::Pid::from_raw(broker).context("process id 0")?;
    let started = std::time::Instant::now();
    while rustix::process::test_kill_process_group(group).is_ok() {
        ensure!(
            started.elapsed() < Duration::from_secs(120),
            "the worker outlives its broker"
        );
        // An error says that it is not our child yet, or has been waited for.
        let _ = rustix::process::waitpgid(group, rustix::process::WaitOptions::NOHANG);
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

fn worker_of(broker: i32) -> Option<i32> {
    let children = std::fs::read_to_string(format!("/proc/{broker}/task/{broker}/children"));
    children.ok()?.split_whitespace().next()?.parse().ok()
}
