//! Measures instar against `qemu-img` and prints a table for `SPECIFICATION.md`.
//!
//! ```text
//! instar-bench [--runs N] [--only WORD] [--check]
//! ```
//!
//! Each case is one command line for both programs. Both must first give the
//! same output; then they run in turn, `N` times each (15 unless told), every
//! run a new process on files that are in the page cache. A case whose runs take
//! `qemu-img` many seconds runs three times. What both make is compared once, and removed before each run.
//! Cases on xfs and btrfs need root, a loop device and `mkfs`; without, they count as missed. `--check` ends with
//! exit code 1 if a promise is missed. `INSTAR_BIN` names another program.

mod cases;
mod cases_backing;
mod cases_content;
mod cases_copy;
mod cases_encrypted;
mod host;
mod images;
mod measure;
mod memory;
mod noise;
mod place;
mod report;
mod stats;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use cases::{Case, Rival};
use measure::Program;
use place::Ground;

/// Fewest runs of each program that a median is taken of.
const MIN_RUNS: usize = 15;

/// What the command line says.
struct Options {
    runs: usize,
    only: Option<String>,
    check: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("instar-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<bool> {
    let options = options(std::env::args().skip(1))?;
    let here = std::env::temp_dir();
    let instar = Program::new(subject()?, &here);
    let qemu_img = Program::new(PathBuf::from("qemu-img"), &here);
    println!("{}", host::facts(&qemu_img, options.runs)?);
    let mut missed = Vec::new();
    let mut rows = Vec::new();
    for case in cases::all() {
        if options
            .only
            .as_ref()
            .is_some_and(|word| !case.name.contains(word))
        {
            continue;
        }
        eprintln!("instar-bench: {}", case.name);
        let ground = match Ground::new(case.place) {
            Ok(ground) => ground,
            Err(error) => {
                missed.push(format!("{}: not measured: {error:#}", case.name));
                continue;
            }
        };
        let row = measure_case(&case, &instar, &qemu_img, &ground, options.runs)?;
        missed.extend(report::missed(&case, &row));
        rows.push((case, row));
    }
    ensure!(!rows.is_empty(), "no case has that word in its name");
    println!("{}", report::table(&rows));
    for sentence in &missed {
        println!("missed: {sentence}");
    }
    Ok(missed.is_empty() || !options.check)
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        runs: MIN_RUNS,
        only: None,
        check: false,
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--check" => options.check = true,
            "--only" => options.only = Some(words.next().context("--only WORD")?),
            "--runs" => options.runs = words.next().context("--runs N")?.parse()?,
            _ => bail!("usage: instar-bench [--runs N] [--only WORD] [--check]"),
        }
    }
    ensure!(options.runs >= MIN_RUNS, "--runs takes {MIN_RUNS} or more");
    Ok(options)
}

/// The program to measure: `INSTAR_BIN`, or the `instar` beside this one.
fn subject() -> Result<PathBuf> {
    let path = match std::env::var_os("INSTAR_BIN") {
        Some(path) => PathBuf::from(path),
        None => std::env::current_exe()?.with_file_name("instar"),
    };
    let path = path.canonicalize().with_context(|| {
        let path = Path::new(&path).display();
        format!("{path}: build it with `cargo build --release -p instar`")
    })?;
    Ok(path)
}

fn measure_case(
    case: &Case,
    instar: &Program,
    qemu_img: &Program,
    ground: &Ground,
    runs: usize,
) -> Result<report::Row> {
    let runs = if case.slow { cases::SLOW_RUNS } else { runs };
    let instar = instar.within(ground.folder());
    let qemu_img = qemu_img.within(ground.folder());
    images::make(case.image, &qemu_img)?;
    images::settle(&qemu_img)?;
    let (rival, theirs) = match case.rival {
        Rival::QemuImg => (qemu_img.within(ground.folder()), case.args),
        Rival::Cp(args) => (Program::new("cp".into(), ground.folder()), args),
    };
    for program in [&instar, &rival] {
        program.keep(&case.changes())?;
        program.remove_first(case.output);
    }
    let output = compare(case, &instar, (&rival, theirs), &qemu_img)?;
    let row = measure(case, &instar, (&rival, theirs), runs, output)?;
    images::remove(&qemu_img)?;
    Ok(row)
}

/// Runs both once: they must say the same and make the same. Gives the lengths of the files made.
fn compare(
    case: &Case,
    instar: &Program,
    (rival, args): (&Program, &[&str]),
    qemu_img: &Program,
) -> Result<Option<(u64, u64)>> {
    const OURS: &str = "first";
    let said = instar.answer(case.args)?;
    if case.output.is_none() && !case.proof.is_empty() {
        qemu_img.must(case.proof)?;
    }
    let made = case.output.map(|name| instar.folder().join(name));
    let ours = match &made {
        Some(path) => {
            let kept = path.with_file_name(OURS);
            std::fs::rename(path, &kept)?;
            Some(std::fs::metadata(kept)?.len())
        }
        None => None,
    };
    let theirs = rival.answer(args)?;
    ensure!(
        said == theirs,
        "{}: the programs disagree.\ninstar: {said}\nthe other: {theirs}",
        case.name
    );
    let (Some(ours), Some(path), Some(name)) = (ours, made, case.output) else {
        return Ok(None);
    };
    let theirs = std::fs::metadata(path)?.len();
    match case.proof {
        [] => qemu_img.must(&["compare", OURS, name])?,
        proof => qemu_img.must(proof)?,
    }
    std::fs::remove_file(instar.folder().join(OURS))?;
    Ok(Some((ours, theirs)))
}

/// The timed runs, and those that are watched.
fn measure(
    case: &Case,
    instar: &Program,
    (rival, args): (&Program, &[&str]),
    runs: usize,
    output: Option<(u64, u64)>,
) -> Result<report::Row> {
    memory::forget_own_peak()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for turn in 0..runs {
        // Who runs first changes, so that neither always follows the other.
        if turn % 2 == 0 {
            ours.push(instar.run(case.args)?);
            theirs.push(rival.run(args)?);
        } else {
            theirs.push(rival.run(args)?);
            ours.push(instar.run(case.args)?);
        }
    }
    // `qemu-img` is one process, of which the timed runs say enough where each takes long.
    let (watched, watched_rival) = if case.slow {
        (1, 0)
    } else {
        (memory::RUNS, memory::RUNS)
    };
    let asked = if case.slow { 1 } else { runs };
    Ok(report::Row {
        instar: stats::Summary::of(&ours),
        qemu_img: stats::Summary::of(&theirs),
        instar_memory: memory::peak(instar, case.args, &ours, watched)?,
        qemu_img_memory: memory::peak(rival, args, &theirs, watched_rival)?,
        output,
        own: instar.own_statistics(case.args, asked)?,
    })
}
