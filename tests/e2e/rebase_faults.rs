//! Whatever ends a rebase, what is read through the image is what it was, and another run completes: errors and death
//! at calls, kills at random moments, and power cuts replayed from a recording.
//!
//! `INSTAR_KILLS` says how often each rebase is killed; `INSTAR_SEED` repeats a run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instar_tests::faults::{self, Victim};
use instar_tests::image::{self, qemu_img};
use instar_tests::rng::Rng;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use instar_tests::twins::sum;

use crate::Outcome;

const NAME: &str = "disk.qcow2";
const KEPT: &str = "kept.qcow2";
const KILLS: u64 = 6;
/// Calls of one rebase that fail.
const CALLS: usize = 16;
/// Crash states of one recording that `qemu-img` looks at.
const STATES: usize = 20;

/// Options of the image, and how it is rebased.
const CASES: [(&[&str], &[&str]); 4] = [
    (
        &["cluster_size=4k"],
        &["rebase", "-b", "new", "-F", "qcow2", NAME],
    ),
    (
        &["cluster_size=64k", "extended_l2=on"],
        &["rebase", "-b", "new", "-F", "qcow2", NAME],
    ),
    (&["compat=0.10"], &["rebase", "-b", "", NAME]),
    (
        &["cluster_size=16k"],
        &["rebase", "-c", "-b", "new", "-F", "qcow2", NAME],
    ),
];

/// A folder with the image, a copy of it, and its backing files.
struct Stage {
    scratch: Scratch,
    args: &'static [&'static str],
    shown: u64,
}

impl Stage {
    fn new(options: &[&str], args: &'static [&'static str]) -> Result<Self> {
        let scratch = Scratch::new()?;
        image::create(&scratch, "old", &[], "3M")?;
        image::create(&scratch, "new", &[], "2M")?;
        let old = [
            "write -P 1 0 1M",
            "write -P 2 1100k 90k",
            "write -P 3 2500k 5k",
        ];
        image::io(&scratch, "old", &old)?;
        image::io(
            &scratch,
            "new",
            &["write -P 1 64k 512k", "write -P 4 1500k 200k"],
        )?;
        let mut create = vec!["create", "-q", "-f", "qcow2", "-b", "old", "-F", "qcow2"];
        create.extend(options.iter().flat_map(|option| ["-o", option]));
        create.extend([NAME, "4M"]);
        qemu_img(&scratch, &create)?;
        image::io(&scratch, NAME, &["write -P 5 300k 70k"])?;
        qemu_img(&scratch, &["snapshot", "-c", "one", NAME])?;
        std::fs::copy(scratch.file(NAME), scratch.file(KEPT))?;
        let mut stage = Self {
            scratch,
            args,
            shown: 0,
        };
        stage.shown = stage.content()?;
        Ok(stage)
    }

    fn content(&self) -> Result<u64> {
        qemu_img(
            &self.scratch,
            &["convert", "-O", "raw", NAME, "content.raw"],
        )?;
        let path = self.scratch.file("content.raw");
        let found = sum(&std::fs::File::open(&path)?)?;
        std::fs::remove_file(&path)?;
        Ok(found)
    }

    fn restore(&self) -> Result<()> {
        std::fs::copy(self.scratch.file(KEPT), self.scratch.file(NAME))?;
        Ok(())
    }

    /// The image shows what it did, and nothing is wrong with it but leaks.
    fn judge(&self, what: &str) -> Result<()> {
        let told = || format!("{:?}, {what}", self.args);
        let check = Run::new(&tools::qemu_img()?, self.scratch.path())
            .args(["check", NAME])
            .go()?;
        let sound = matches!(check.code, Some(0 | 3));
        ensure!(sound, "{}: {}", told(), check.describe());
        let shown = self.content().with_context(told)?;
        ensure!(shown == self.shown, "{}: what is read has changed", told());
        Ok(())
    }

    /// As [`Self::judge`]; another run completes.
    fn judge_and_go_on(&self, what: &str) -> Result<()> {
        self.judge(what)?;
        faults::plain(&self.scratch, self.args)?
            .go()?
            .expect_code(0)?;
        self.judge(&format!("{what}, and another run"))?;
        let info = qemu_img(&self.scratch, &["info", "--output=json", NAME])?;
        let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
        let name = info["backing-filename"].as_str().unwrap_or_default();
        let wanted = self.args.iter().skip_while(|arg| **arg != "-b").nth(1);
        ensure!(wanted == Some(&name), "it stands on '{name}'");
        Ok(())
    }
}

fn for_each(test: impl Fn(&Stage) -> Result<()>) -> Outcome {
    for (options, args) in CASES {
        let told = || format!("{args:?} on {options:?}");
        test(&Stage::new(options, args).with_context(told)?).with_context(told)?;
    }
    Ok(())
}

#[test]
fn failing_calls_of_rebase_leave_what_is_read() -> Outcome {
    for_each(|stage| {
        let (done, calls) = faults::recorded(&stage.scratch, stage.args)?;
        done.expect_code(0)?;
        ensure!(calls.len() > 5, "only {} calls", calls.len());
        let step = calls.len().div_ceil(CALLS);
        let errnos = ["28", "5", "122"].iter().cycle();
        let deaths = ["kill", "tear"].iter().cycle();
        for ((nth, errno), death) in (0..calls.len()).step_by(step).zip(errnos).zip(deaths) {
            for fate in [errno, death] {
                stage.restore()?;
                let fault = format!("{nth}:{fate}");
                let done = faults::with_fault(&stage.scratch, stage.args, &fault)?;
                match done.code {
                    Some(0) => {}
                    Some(1) => ensure!(!done.stderr.is_empty(), "{fault}: no word of why"),
                    other => anyhow::bail!("{fault}: {other:?}\n{}", done.describe()),
                }
                stage.judge_and_go_on(&fault)?;
            }
        }
        Ok(())
    })
}

#[test]
fn power_cuts_of_rebase_leave_what_is_read() -> Outcome {
    for_each(|stage| {
        let start = faults::load(&stage.scratch, NAME)?;
        let (done, calls) = faults::recorded(&stage.scratch, stage.args)?;
        done.expect_code(0)?;
        let recording = faults::replay(start, &calls)?;
        let seed = Rng::for_test("power cuts of rebase").seed();
        let judge = |label: &str| stage.judge_and_go_on(label);
        let total = faults::for_some_states(&stage.scratch, NAME, &recording, seed, STATES, judge)?;
        println!("{:?}: {total} states, {} calls", stage.args, calls.len());
        ensure!(total > 1, "{total} states");
        Ok(())
    })
}

#[test]
fn kills_of_rebase_leave_what_is_read() -> Outcome {
    let kills = std::env::var("INSTAR_KILLS").ok();
    let kills = kills.and_then(|n| n.parse().ok()).unwrap_or(KILLS);
    for_each(|stage| {
        let mut rng = Rng::for_test("kills of rebase");
        for _ in 0..kills {
            let victim = *rng.pick(&[Victim::Broker, Victim::Worker]);
            let delay = Duration::from_micros(rng.below(20_000));
            stage.restore()?;
            faults::killed(&stage.scratch, stage.args, victim, delay)?;
            stage.judge_and_go_on(&format!("{victim:?} killed after {delay:?}"))?;
        }
        Ok(())
    })
}
