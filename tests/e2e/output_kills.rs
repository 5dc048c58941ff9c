//! New images whose making is cut off at a random moment, by SIGKILL or Ctrl-C: no file that looks whole and is not.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_KILLS` says how often each command is cut off.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use instar_tests::faults::{self, Victim};
use instar_tests::rng::{Rng, count};
use instar_tests::scratch::Scratch;
use instar_tests::totals::total;
use instar_tests::{image, tools};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::Outcome;
use crate::block_device::Loop;

/// Times that each command is cut off.
const KILLS: u64 = 6;
/// What a target held that was there before.
const OLD: &[u8] = b"what was there";
/// What is made.
const OUT: &str = "out";

/// Commands that make [`OUT`].
const MAKERS: [&str; 8] = [
    "convert -O raw top.qcow2 out",
    "convert -O qcow2 top.qcow2 out",
    "convert -O qcow2 -W -m 16 -o cluster_size=4k top.qcow2 out",
    "convert -c -O qcow2 top.qcow2 out",
    "convert -O raw -C base.raw out",
    "create -f qcow2 -o preallocation=full out 24M",
    "create -f qcow2 -o cluster_size=4k out 100G",
    "dd -O qcow2 if=top.qcow2 of=out bs=64k",
];

/// How a command is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cut {
    Kill(Victim),
    /// To the broker alone, or to both as from a terminal.
    Interrupt {
        both: bool,
    },
}

const CUTS: [Cut; 4] = [
    Cut::Kill(Victim::Broker),
    Cut::Kill(Victim::Worker),
    Cut::Interrupt { both: false },
    Cut::Interrupt { both: true },
];

fn kills() -> u64 {
    count("INSTAR_KILLS", KILLS)
}

fn stage() -> Result<Scratch> {
    let scratch = Scratch::new()?;
    scratch.write("base.raw", &vec![5; 24 << 20])?;
    let below = "backing_file=base.raw,backing_fmt=raw";
    image::create(&scratch, "top.qcow2", &[below], "24M")?;
    image::io(&scratch, "top.qcow2", &["write -P 6 1M 8M"])?;
    Ok(scratch)
}

/// Starts a run and interrupts it after `delay`; its exit code and what it said.
fn interrupted(
    scratch: &Scratch,
    words: &[&str],
    both: bool,
    delay: Duration,
) -> Result<(Option<i32>, String)> {
    let child = faults::plain(scratch, words)?.start()?;
    std::thread::sleep(delay);
    let broker = Pid::from_raw(i32::try_from(child.id())?).context("process id 0")?;
    // It may have ended by itself.
    let _ = if both {
        kill_process_group(broker, Signal::INT)
    } else {
        kill_process(broker, Signal::INT)
    };
    let done = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    Ok((done.status.code(), said))
}

/// One command, what it makes, and how long that takes.
struct Bed<'a> {
    scratch: &'a Scratch,
    words: Vec<&'a str>,
    others: BTreeSet<String>,
    whole: Vec<u8>,
    takes: Duration,
}

impl<'a> Bed<'a> {
    fn new(scratch: &'a Scratch, words: &'a str) -> Result<Self> {
        let words: Vec<&str> = words.split(' ').collect();
        let _ = std::fs::remove_file(scratch.file(OUT));
        let others = scratch.names()?;
        let started = Instant::now();
        faults::plain(scratch, &words)?.go()?.expect_code(0)?;
        let takes = started.elapsed();
        let whole = scratch.read(OUT)?;
        Ok(Self {
            scratch,
            words,
            others,
            whole,
            takes,
        })
    }

    /// Cuts it off once. The bytes that are left.
    fn cut(&self, rng: &mut Rng, existing: bool) -> Result<()> {
        let cut = *rng.pick(&CUTS);
        let most = u64::try_from(self.takes.as_micros())?;
        let delay = Duration::from_micros(rng.below(most + most / 5));
        let _ = std::fs::remove_file(self.scratch.file(OUT));
        if existing {
            self.scratch.write(OUT, OLD)?;
        }
        let told = || format!("{cut:?} after {delay:?}, existing {existing}");
        match cut {
            Cut::Kill(victim) => faults::killed(self.scratch, &self.words, victim, delay)?,
            Cut::Interrupt { both } => {
                let (code, said) = interrupted(self.scratch, &self.words, both, delay)?;
                // A signal that comes before there is a handler for it ends the process.
                let ended = matches!(code, Some(0 | 130) | None);
                ensure!(ended, "{}: exit code {code:?}: {said}", told());
                let lines = said.lines().filter(|l| !l.starts_with("hint: ")).count();
                ensure!(lines <= 1, "{}: {said}", told());
            }
        }
        self.judge(cut, existing).with_context(told)
    }

    fn judge(&self, cut: Cut, existing: bool) -> Result<()> {
        let mut left = self.scratch.names()?;
        let is_there = left.remove(OUT);
        ensure!(left == self.others, "{left:?} are left");
        if !is_there {
            ensure!(!existing, "the old file is gone");
            return Ok(());
        }
        let bytes = self.scratch.read(OUT)?;
        if self.is_whole(&bytes) {
            return Ok(());
        }
        ensure!(existing, "{} bytes of a new file are left", bytes.len());
        // Nobody is left to empty a file that was there when the broker is killed: it is no image then.
        let unfinished = cut == Cut::Kill(Victim::Broker) && !bytes.starts_with(b"QFI");
        let empty = bytes.is_empty() || bytes == OLD;
        ensure!(empty || unfinished, "{} bytes are left", bytes.len());
        Ok(())
    }

    /// The same bytes as without a cut, or at least the same content: where they lie may depend on time.
    fn is_whole(&self, bytes: &[u8]) -> bool {
        if bytes == self.whole {
            return true;
        }
        let sound = image::qemu_img(self.scratch, &["check", "-q", OUT]).is_ok();
        let source = *self.words.get(self.words.len() - 2).unwrap_or(&OUT);
        let is_copy = self.words.contains(&"convert");
        sound && is_copy && image::qemu_img(self.scratch, &["compare", source, OUT]).is_ok()
    }
}

fn part(number: usize) -> Outcome {
    let scratch = stage()?;
    let mut rng = Rng::for_test("output kills");
    for words in MAKERS.iter().skip(number).step_by(2) {
        let bed = Bed::new(&scratch, words).context(*words)?;
        for round in 0..kills() {
            let told = || format!("round {round}, seed {}: {words}", rng.seed());
            let told = told();
            bed.cut(&mut rng, round % 2 == 0).context(told)?;
        }
        let command = bed.words.first().unwrap_or(&OUT);
        total(kills(), &format!("kills of {command}"));
        // What was cut off can be done again.
        faults::plain(&scratch, &bed.words)?
            .go()?
            .expect_code(0)
            .context(*words)?;
    }
    Ok(())
}

#[test]
fn a_command_that_is_cut_off_leaves_no_image_first() -> Outcome {
    part(0)
}

#[test]
fn a_command_that_is_cut_off_leaves_no_image_second() -> Outcome {
    part(1)
}

/// A device is written in place: it stays one, nobody holds it, and the conversion can be done again.
#[test]
fn a_conversion_to_a_device_that_is_cut_off_can_be_done_again() -> Outcome {
    let scratch = stage()?;
    scratch.set_len("inner", 26 << 20)?;
    let device = Loop::attach(&scratch, &[], "inner")?;
    let mut rng = Rng::for_test("device kills");
    for format in ["raw", "qcow2"] {
        let words = ["convert", "-O", format, "top.qcow2", device.path()];
        for round in 0..kills() {
            let told = format!("round {round}, seed {}: {words:?}", rng.seed());
            let delay = Duration::from_millis(rng.below(60));
            match *rng.pick(&CUTS) {
                Cut::Kill(victim) => faults::killed(&scratch, &words, victim, delay)?,
                Cut::Interrupt { both } => {
                    let (code, said) = interrupted(&scratch, &words, both, delay)?;
                    let ended = matches!(code, Some(0 | 130) | None);
                    ensure!(ended, "{told}: exit code {code:?}: {said}");
                }
            }
            if format == "qcow2" {
                let image = image::qemu_img(&scratch, &["check", "-q", "-f", format, words[4]]);
                let none = !scratch.read("inner")?.starts_with(b"QFI\xfb");
                ensure!(image.is_ok() || none, "{told}: half an image");
            }
        }
        total(kills(), "kills of convert to a device");
        faults::plain(&scratch, &words)?.go()?.expect_code(0)?;
        let compare = ["compare", "-F", format, "top.qcow2", words[4]];
        image::qemu_img(&scratch, &compare)?;
        scratch.write("zeros", &[0; 65536])?;
        let wipe = ["convert", "-n", "-O", "raw", "zeros", words[4]];
        image::qemu_img(&scratch, &wipe)?;
    }
    tools::qemu_img().map(drop)
}
