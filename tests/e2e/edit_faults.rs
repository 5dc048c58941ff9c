//! Whatever ends a change, the image is the old one or the new one: errors and death at every call, `kill -9`
//! at random moments, and power cuts replayed from a recording.
//!
//! `INSTAR_KILLS` says how often each operation is killed; `INSTAR_SEED` repeats a run.

use std::cell::RefCell;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instar_tests::faults::{self, Seen, Victim};
use instar_tests::image;
use instar_tests::rng::{Rng, count};
use instar_tests::scratch::Scratch;
use instar_tests::totals::total;

use crate::Outcome;

const NAME: &str = "disk.qcow2";
const KEPT: &str = "kept.qcow2";
const KILLS: u64 = 8;
/// Crash states of one recording that `qemu-img` looks at.
const STATES: usize = 25;
/// Calls of one change that fail.
const CALLS: usize = 20;

/// Judged files that are kept.
const JUDGED: usize = 64;

/// A change, and the image that it is made to.
struct Change {
    options: &'static [&'static str],
    args: &'static [&'static str],
}

const fn change(options: &'static [&'static str], args: &'static [&'static str]) -> Change {
    Change { options, args }
}

const CHANGES: [Change; 12] = [
    change(&["cluster_size=4k"], &["snapshot", "-c", "new", NAME]),
    change(&["compat=0.10"], &["snapshot", "-c", "new", NAME]),
    change(&["refcount_bits=64"], &["snapshot", "-d", "first", NAME]),
    change(
        &["compat=0.10", "cluster_size=512"],
        &["snapshot", "-a", "first", NAME],
    ),
    change(
        &["compat=0.10", "cluster_size=2k"],
        &["snapshot", "-a", "second", NAME],
    ),
    change(&["cluster_size=512"], &["resize", NAME, "+200M"]),
    change(&[], &["resize", "--preallocation=metadata", NAME, "+16M"]),
    change(
        &["cluster_size=4k"],
        &["amend", "-o", "refcount_bits=8", NAME],
    ),
    change(
        &["cluster_size=1k"],
        &["amend", "-o", "compat=0.10", "plain.qcow2"],
    ),
    change(
        &["compat=0.10"],
        &["amend", "-o", "compat=1.1,lazy_refcounts=on", NAME],
    ),
    change(&[], &["bitmap", "--add", "--merge", "nightly", NAME, "new"]),
    change(
        &["cluster_size=4k"],
        &["bitmap", "--remove", NAME, "nightly"],
    ),
];

/// A folder with the image to change and a copy of it, and what it is before and after.
struct Stage {
    scratch: Scratch,
    name: &'static str,
    args: &'static [&'static str],
    old: Seen,
    new: Seen,
    /// Files that were judged, and whether they are the new image: the same bytes are judged once.
    judged: RefCell<Vec<(Vec<u8>, bool)>>,
}

impl Stage {
    fn new(change: &Change) -> Result<Self> {
        let scratch = Scratch::new()?;
        let name = change.args.iter().find(|arg| arg.ends_with(".qcow2"));
        let name = *name.context("a change has no image")?;
        if name == NAME {
            image::create_rich(&scratch, name, change.options)?;
        } else {
            image::create_filled(&scratch, name, change.options)?;
        }
        std::fs::copy(scratch.file(name), scratch.file(KEPT))?;
        let old = faults::seen(&scratch, name)?;
        let done = faults::plain(&scratch, change.args)?.go()?;
        done.expect_code(0)?;
        let new = faults::seen(&scratch, name)?;
        ensure!(old != new, "{:?} changes nothing that is seen", change.args);
        let args = change.args;
        Ok(Self {
            scratch,
            name,
            args,
            old,
            new,
            judged: RefCell::default(),
        })
    }

    fn restore(&self) -> Result<()> {
        std::fs::copy(self.scratch.file(KEPT), self.scratch.file(self.name))?;
        Ok(())
    }

    /// The image is the old or the new one; true if it is the new one.
    fn judge(&self, what: &str) -> Result<bool> {
        let bytes = std::fs::read(self.scratch.file(self.name))?;
        let before = self
            .judged
            .borrow()
            .iter()
            .find_map(|(b, is_new)| (*b == bytes).then_some(*is_new));
        if let Some(is_new) = before {
            return Ok(is_new);
        }
        let is_new = self.judge_unseen(what)?;
        let mut judged = self.judged.borrow_mut();
        if judged.len() < JUDGED {
            judged.push((bytes, is_new));
        }
        Ok(is_new)
    }

    fn judge_unseen(&self, what: &str) -> Result<bool> {
        let told = || format!("{:?}, {what}", self.args);
        let now = faults::seen(&self.scratch, self.name).with_context(told)?;
        ensure!(
            now == self.old || now == self.new,
            "{}: neither the old nor the new image:\n{now:?}\nold\n{:?}\nnew\n{:?}",
            told(),
            self.old,
            self.new
        );
        Ok(now == self.new)
    }
}

fn for_each(from: usize, to: usize, test: impl Fn(&Stage) -> Result<()>) -> Outcome {
    for change in &CHANGES[from..to] {
        let told = || format!("{:?} on {:?}", change.args, change.options);
        test(&Stage::new(change).with_context(told)?).with_context(told)?;
    }
    Ok(())
}

/// Every call that changes the file fails, or ends the process; of many calls, some. `INSTAR_KILLS` takes all.
fn every_call(stage: &Stage) -> Result<()> {
    stage.restore()?;
    let (done, calls) = faults::recorded(&stage.scratch, stage.args)?;
    done.expect_code(0)?;
    ensure!(calls.len() > 1, "only {} calls", calls.len());
    let all = std::env::var_os("INSTAR_KILLS").is_some();
    let step = if all { 1 } else { calls.len().div_ceil(CALLS) };
    let errnos = ["28", "5", "122"].iter().cycle();
    let deaths = ["kill", "tear"].iter().cycle();
    for ((nth, errno), death) in (0..calls.len()).step_by(step).zip(errnos).zip(deaths) {
        for fate in [errno, death] {
            stage.restore()?;
            let fault = format!("{nth}:{fate}");
            let done = faults::with_fault(&stage.scratch, stage.args, &fault)?;
            let is_new = stage.judge(&format!("{fault}: {}", done.describe()))?;
            match done.code {
                Some(0) => ensure!(is_new, "{fault}: success, and the image is the old one"),
                Some(1) => ensure!(!done.stderr.is_empty(), "{fault}: no word of why"),
                other => anyhow::bail!("{fault}: exit code {other:?}\n{}", done.describe()),
            }
        }
    }
    Ok(())
}

fn every_power_cut(stage: &Stage) -> Result<()> {
    stage.restore()?;
    let start = faults::load(&stage.scratch, stage.name)?;
    let (done, calls) = faults::recorded(&stage.scratch, stage.args)?;
    done.expect_code(0)?;
    let recording = faults::replay(start, &calls)?;
    let seed = Rng::for_test("power cuts").seed();
    let mut new = 0;
    let judge = |label: &str| {
        new += usize::from(stage.judge(label)?);
        Ok(())
    };
    let total =
        faults::for_some_states(&stage.scratch, stage.name, &recording, seed, STATES, judge)?;
    println!(
        "{:?}: {total} states, {} calls, {new} of those looked at are new",
        stage.args,
        calls.len()
    );
    ensure!(total > 1 && new > 0, "{total} states, {new} of them new");
    Ok(())
}

fn random_kills(stage: &Stage) -> Result<()> {
    let mut rng = Rng::for_test("kills");
    let kills = count("INSTAR_KILLS", KILLS);
    for _ in 0..kills {
        let victim = *rng.pick(&[Victim::Broker, Victim::Worker]);
        let delay = Duration::from_micros(rng.below(6000));
        stage.restore()?;
        faults::killed(&stage.scratch, stage.args, victim, delay)?;
        stage.judge(&format!("{victim:?} killed after {delay:?}"))?;
        // And a second attempt does what the first was to do, or says that it is done.
        let again = faults::plain(&stage.scratch, stage.args)?.go()?;
        ensure!(matches!(again.code, Some(0 | 1)), "{}", again.describe());
    }
    let command = stage.args.first().unwrap_or(&NAME);
    total(kills, &format!("kills of {command}"));
    Ok(())
}

#[test]
fn failing_calls_of_snapshots_leave_the_old_or_the_new_image() -> Outcome {
    for_each(0, 5, every_call)
}

#[test]
fn failing_calls_of_resize_and_amend_leave_the_old_or_the_new_image() -> Outcome {
    for_each(5, 9, every_call)
}

#[test]
fn failing_calls_of_amend_and_bitmap_leave_the_old_or_the_new_image() -> Outcome {
    for_each(9, CHANGES.len(), every_call)
}

#[test]
fn power_cuts_leave_the_old_or_the_new_image() -> Outcome {
    for_each(0, CHANGES.len(), every_power_cut)
}

#[test]
fn kills_leave_the_old_or_the_new_image() -> Outcome {
    for_each(0, CHANGES.len(), random_kills)
}
