//! Whatever ends a commit, what is read through the overlay stays as it was, and a second run completes it.
//!
//! `INSTAR_KILLS` says how often it is killed, and takes all calls; `INSTAR_SEED` repeats a run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use instar_tests::faults::{self, Victim};
use instar_tests::image::{self, io, qemu_img};
use instar_tests::rng::Rng;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

const KILLS: u64 = 8;
const BASE: &str = "base.img";
const TOP: &str = "top.qcow2";
const ARGS: &[&str] = &["commit", TOP];

/// A chain, a copy of its files, and its content.
struct Stage {
    scratch: Scratch,
    options: &'static str,
    names: Vec<&'static str>,
}

impl Stage {
    fn new(options: &'static str) -> Result<Self> {
        let scratch = Scratch::new()?;
        let format = if options == "raw" { "raw" } else { "qcow2" };
        if options == "raw" {
            scratch.write(BASE, &vec![7; 1 << 20])?;
        } else {
            image::create(&scratch, BASE, &[options], "2M")?;
            io(&scratch, BASE, &["write -P 1 0 1M", "write -P 2 1800k 9k"])?;
        }
        qemu_img(
            &scratch,
            &[
                "create", "-q", "-f", "qcow2", "-b", BASE, "-F", format, TOP, "3M",
            ],
        )?;
        let writes = [
            "write -P 3 500k 700k",
            "write -z 1M 200k",
            "write -P 4 2500k 300k",
            "write -c -P 5 0 64k",
        ];
        io(&scratch, TOP, &writes)?;
        qemu_img(&scratch, &["convert", "-O", "raw", TOP, "old.raw"])?;
        let names = vec![BASE, TOP];
        for name in &names {
            std::fs::copy(scratch.file(name), scratch.file(&format!("{name}.kept")))?;
        }
        Ok(Self {
            scratch,
            options,
            names,
        })
    }

    fn restore(&self) -> Result<()> {
        for name in &self.names {
            let kept = self.scratch.file(&format!("{name}.kept"));
            std::fs::copy(kept, self.scratch.file(name))?;
        }
        Ok(())
    }

    /// What is read through the overlay is as it was, and nothing is damaged.
    fn judge(&self, what: &str) -> Result<()> {
        let told = || format!("{}, {what}", self.options);
        let same = ["compare", "-f", "raw", "-F", "qcow2", "old.raw", TOP];
        qemu_img(&self.scratch, &same).with_context(told)?;
        for name in self
            .names
            .iter()
            .filter(|name| self.options != "raw" || **name == TOP)
        {
            let check = Run::new(&tools::qemu_img()?, self.scratch.path())
                .args(["check", *name])
                .go()?;
            ensure!(
                matches!(check.code, Some(0 | 3)),
                "{}: {}",
                told(),
                check.describe()
            );
        }
        Ok(())
    }

    /// A second run does what the first was to do.
    fn again(&self, what: &str) -> Result<()> {
        let again = faults::plain(&self.scratch, ARGS)?.go()?;
        again.expect_code(0).with_context(|| what.to_owned())?;
        self.judge(&format!("{what}, again"))?;
        let same = ["compare", "-f", "raw", "old.raw", BASE];
        qemu_img(&self.scratch, &same).with_context(|| format!("{what}: the base"))?;
        Ok(())
    }
}

fn for_each(test: impl Fn(&Stage) -> Result<()>) -> Outcome {
    for options in ["raw", "cluster_size=4k", "compat=0.10"] {
        test(&Stage::new(options)?).with_context(|| options.to_owned())?;
    }
    Ok(())
}

/// Calls that change a file fail, or end the process; of many calls, some.
fn every_call(stage: &Stage) -> Result<()> {
    let all = std::env::var_os("INSTAR_KILLS").is_some();
    let mut errnos = ["28", "5", "122"].iter().cycle();
    let mut deaths = ["kill", "tear"].iter().cycle();
    let (mut nth, mut last, mut failed) = (0, 0, 0);
    // A call that fails without harm is a hint; many in a row are none at all.
    while nth <= last + 30 {
        stage.restore()?;
        let fate = if nth % 2 == 0 {
            errnos.next()
        } else {
            deaths.next()
        };
        let fault = format!("{nth}:{}", fate.copied().unwrap_or("5"));
        let done = faults::with_fault(&stage.scratch, ARGS, &fault)?;
        stage.judge(&format!("{fault}: {}", done.describe()))?;
        if done.code != Some(0) {
            (last, failed) = (nth, failed + 1);
            ensure!(!done.stderr.is_empty(), "{fault}: no word of why");
            stage.again(&fault)?;
        }
        nth += if all { 1 } else { 3 };
    }
    println!(
        "{}: {failed} of the calls up to {nth} fail it",
        stage.options
    );
    ensure!(failed > 3, "only {failed} calls");
    Ok(())
}

fn random_kills(stage: &Stage) -> Result<()> {
    let mut rng = Rng::for_test("commit kills");
    let kills = std::env::var("INSTAR_KILLS")
        .ok()
        .and_then(|n| n.parse().ok());
    for _ in 0..kills.unwrap_or(KILLS) {
        let victim = *rng.pick(&[Victim::Broker, Victim::Worker]);
        let delay = Duration::from_micros(rng.below(15_000));
        stage.restore()?;
        faults::killed(&stage.scratch, ARGS, victim, delay)?;
        let what = format!("{victim:?} killed after {delay:?}");
        stage.judge(&what)?;
        stage.again(&what)?;
    }
    Ok(())
}

#[test]
fn failing_calls_of_a_commit_change_nothing_that_is_seen() -> Outcome {
    for_each(every_call)
}

#[test]
fn kills_of_a_commit_change_nothing_that_is_seen() -> Outcome {
    for_each(random_kills)
}
