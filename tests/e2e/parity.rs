//! Every option of every command of `qemu-img`: `docs/qemu-img-parity.md` is what these tests find.
//!
//! What `qemu-img` has is asked of the oracle itself, by its help and by its parser, which is not of one mind with the
//! help. What instar makes of it stands in `parity/judgements.txt`, with the tests that show it. An option without a
//! judgement fails, a judgement of no option, a test that is not there or types no such option, an option that instar
//! does not take, and a document that says something else. `INSTAR_BLESS=1` writes the document anew.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;
use judgement::{Judgement, judgements};

mod judgement;

/// Where options stand that stand before a command.
const PROGRAM: &str = "qemu-img";

const PREFACE: &str = "\
# Every option of qemu-img

Written by the tests in `tests/e2e/parity.rs` (`INSTAR_BLESS=1` writes it anew) from `qemu-img` 10.0 itself and from
`tests/e2e/parity/judgements.txt`. *Same*: the same words, streams, exit codes and results. *More*: what `qemu-img` does
and something else, or an option that it does not have. *Different*: with the reason, or in
[the list of differences](qemu-img-differences.md). A spelling in *italics* stands in the help of `qemu-img`, and its
parser does not take it. What shows it are tests in `tests/e2e`, or in the file that is named.
";

/// What a program has: the spellings of each command's options.
type Options = BTreeMap<String, BTreeSet<String>>;

fn first_line(program: &Path, folder: &Scratch, args: &[&str]) -> Result<String> {
    let done = Run::new(program, folder.path()).args(args).go()?;
    Ok(done.err().lines().next().unwrap_or_default().to_owned())
}

fn help(program: &Path, folder: &Scratch, args: &[&str]) -> Result<String> {
    let done = Run::new(program, folder.path()).args(args).go()?;
    done.expect_code(0)?;
    Ok(done.out())
}

/// The commands that the oracle's help lists.
fn commands(folder: &Scratch) -> Result<Vec<String>> {
    let text = help(&tools::qemu_img()?, folder, &["--help"])?;
    let (_, list) = text.split_once("Recognized commands").context("commands")?;
    let list = list.split("Supported image formats").next().unwrap_or(list);
    let named = list
        .lines()
        .filter_map(|line| line.trim().split_once(" - "));
    let commands: Vec<_> = named.map(|(name, _)| name.to_owned()).collect();
    ensure!(commands.len() == 15, "{commands:?}");
    Ok(commands)
}

/// The spellings that a text of help has, operands such as `bs=` among them.
fn spellings(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| c.is_whitespace() || "[](),|<>'\"`".contains(c));
    let spelled = words.filter_map(|word| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        let letters = |name: &str| {
            let mut chars = name.chars();
            chars.next().is_some_and(|c| c.is_ascii_alphabetic())
                && chars.all(|c| c.is_ascii_lowercase() || c == '-')
        };
        if let Some(long) = name.strip_prefix("--") {
            return letters(long).then(|| name.to_owned());
        }
        match name.strip_prefix('-') {
            Some(short) => (short.len() == 1 && letters(short)).then(|| name.to_owned()),
            None => (letters(name) && !value.is_empty()).then(|| format!("{name}=")),
        }
    });
    spelled.collect()
}

/// What the oracle's parser takes: it lists the long options when it is asked for one without a name, and
/// letters are tried one by one. No file is named, so that nothing is done.
fn parsed(folder: &Scratch, command: &str) -> Result<BTreeSet<String>> {
    let oracle = tools::qemu_img()?;
    let listed = first_line(&oracle, folder, &[command, "--=x"])?;
    let (_, listed) = listed.split_once("possibilities: ").context("a list")?;
    let mut found: BTreeSet<_> = listed
        .split(' ')
        .map(|word| word.trim_matches('\'').to_owned())
        .collect();
    for letter in ('a'..='z').chain('A'..='Z') {
        let option = format!("-{letter}");
        let said = first_line(&oracle, folder, &[command, &option])?;
        if !said.contains("invalid option") {
            found.insert(option);
        }
    }
    Ok(found)
}

/// What the help of a command has, but for its prose.
fn helped(folder: &Scratch, command: &str) -> Result<BTreeSet<String>> {
    spelled_in_help(&help(&tools::qemu_img()?, folder, &[command, "--help"])?)
}

fn spelled_in_help(text: &str) -> Result<BTreeSet<String>> {
    // `[-r] [-u]` of `check` is a slip: what the parser does not take counts where the help explains it.
    let (_, explained) = text.split_once("Arguments:").context("arguments")?;
    let lines = explained.lines().map(str::trim_start);
    let heads = lines.filter(|line| line.starts_with('-') || line.contains('='));
    let heads = heads.map(|line| line.split("  ").next().unwrap_or(line));
    Ok(heads.flat_map(spellings).collect())
}

/// Everything that the oracle has, and of it what its parser does not take.
fn oracle(folder: &Scratch) -> Result<(Options, Options)> {
    let (mut all, mut help_only) = (Options::new(), Options::new());
    for command in commands(folder)? {
        let (parsed, helped) = (parsed(folder, &command)?, helped(folder, &command)?);
        let wrong = helped
            .difference(&parsed)
            .filter(|name| name.starts_with('-'));
        help_only.insert(command.clone(), wrong.cloned().collect());
        all.insert(command, &parsed | &helped);
    }
    let text = help(&tools::qemu_img()?, folder, &["--help"])?;
    let (_, standard) = text.split_once("Standard options:").context("options")?;
    let standard = standard.split("Recognized").next().unwrap_or(standard);
    let lines = standard
        .lines()
        .filter(|line| line.trim_start().starts_with('-'));
    all.insert(PROGRAM.to_owned(), lines.flat_map(spellings).collect());
    Ok((all, help_only))
}

/// The long options that instar's own help shows.
fn ours(folder: &Scratch, command: &str) -> Result<BTreeSet<String>> {
    let text = help(&tools::instar()?, folder, &[command, "--help"])?;
    let lines = text
        .lines()
        .filter(|line| line.trim_start().starts_with('-'));
    Ok(lines
        .flat_map(|line| spellings(line.trim_start().split("  ").next().unwrap_or(line)))
        .collect())
}

/// The judgements of a command.
fn of<'a>(all: &'a [Judgement], command: &'a str) -> impl Iterator<Item = &'a Judgement> {
    all.iter().filter(move |judgement| judgement.is_of(command))
}

fn differing(what: &str, names: BTreeSet<String>, failures: &mut Vec<String>) {
    if !names.is_empty() {
        failures.push(format!("{what}: {}", Vec::from_iter(names).join(" ")));
    }
}

#[test]
fn every_option_of_the_oracle_is_judged() -> Outcome {
    let folder = Scratch::new()?;
    let (oracle, help_only) = oracle(&folder)?;
    let all = judgements()?;
    let mut failures = Vec::new();
    for (command, has) in &oracle {
        let spelled: Vec<_> = of(&all, command)
            .flat_map(|one| one.spellings.clone())
            .collect();
        let judged: BTreeSet<_> = spelled.iter().cloned().collect();
        ensure!(
            judged.len() == spelled.len(),
            "{command}: judged twice: {spelled:?}"
        );
        differing(
            &format!("{command}: not judged"),
            has - &judged,
            &mut failures,
        );
        let mut known = has.clone();
        if command != PROGRAM {
            let shown = ours(&folder, command)?;
            differing(
                &format!("{command}: of instar, not judged"),
                &shown - &judged,
                &mut failures,
            );
            known.extend(shown);
        }
        let operands: BTreeSet<_> = judged
            .iter()
            .filter(|name| name.ends_with('='))
            .cloned()
            .collect();
        differing(
            &format!("{command}: no such option"),
            &(&judged - &known) - &operands,
            &mut failures,
        );
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    document(&oracle, &help_only, &all)
}

/// Compares the document with what it has to say, or writes it.
fn document(oracle: &Options, help_only: &Options, all: &[Judgement]) -> Outcome {
    let mut text = PREFACE.to_owned();
    for (command, has) in oracle {
        text.push_str(&format!(
            "\n## {command}\n\n| option | instar | | shown by |\n|---|---|---|---|\n"
        ));
        for judgement in of(all, command) {
            text.push_str(&judgement.row(has, help_only.get(command)));
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/qemu-img-parity.md");
    if std::env::var_os("INSTAR_BLESS").is_some() {
        return Ok(std::fs::write(path, text)?);
    }
    ensure!(
        std::fs::read_to_string(path)? == text,
        "docs/qemu-img-parity.md says something else: INSTAR_BLESS=1 writes it anew"
    );
    Ok(())
}

#[test]
fn instar_takes_every_spelling() -> Outcome {
    let folder = Scratch::new()?;
    let instar = tools::instar()?;
    let mut failures = Vec::new();
    for (command, has) in oracle(&folder)?.0 {
        for name in has
            .iter()
            .filter(|name| command != PROGRAM && name.starts_with('-'))
        {
            let said = first_line(&instar, &folder, &[&command, name])?;
            let unknown = ["unrecognized", "invalid option", "ambiguous"];
            if unknown.iter().any(|word| said.contains(word)) {
                failures.push(format!("{command} {name}: {said}"));
            }
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The file of a test, and its function.
fn place(test: &str) -> Result<(PathBuf, &str)> {
    let (module, function) = test
        .rsplit_once("::")
        .context("a test is MODULE::FUNCTION")?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = match module.strip_suffix(".rs") {
        Some(_) => root.join("..").join(module),
        None => root.join("e2e").join(module).with_extension("rs"),
    };
    Ok((path, function))
}

/// The text of a file and of the folder of its modules.
fn text_of(path: &Path) -> Result<String> {
    let mut text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    if let Ok(folder) = std::fs::read_dir(path.with_extension("")) {
        for entry in folder {
            text.push_str(&std::fs::read_to_string(entry?.path())?);
        }
    }
    Ok(text)
}

/// Whether a text types a word: as one of its own, or with a value behind it.
fn types(text: &str, word: &str) -> bool {
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back().unwrap_or(' ');
        let behind = text[at + word.len()..].chars().next().unwrap_or(' ');
        let begins = before.is_whitespace() || before == '"';
        begins && (word.ends_with('=') || !behind.is_ascii_lowercase() && behind != '-')
    })
}

#[test]
fn the_tests_that_are_named_are_there_and_type_the_option() -> Outcome {
    let mut failures = Vec::new();
    for judgement in judgements()? {
        let mut typed = false;
        for test in &judgement.tests {
            let (path, function) = place(test)?;
            let text = text_of(&path)?;
            if !text.contains(&format!("#[test]\nfn {function}("))
                && !text.contains(&format!("#[test]\n    fn {function}("))
            {
                failures.push(format!("{test} is not there"));
            }
            let here = judgement.spellings.iter().any(|name| types(&text, name));
            typed |= here
                || !test.starts_with(|c: char| c.is_ascii_lowercase())
                || test.contains(".rs::");
        }
        if !typed {
            failures.push(format!(
                "{:?}: not typed by {:?}",
                judgement.spellings, judgement.tests
            ));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

#[test]
fn spellings_are_found_in_help() {
    let text = "-t, --cache CACHE_MODE image [--no-drain] (-q) bs=SIZE --x=3 well-known a=";
    let found = Vec::from_iter(spellings(text));
    assert_eq!(found, ["--cache", "--no-drain", "--x", "-q", "-t", "bs="]);
    assert!(types("[\"-S\", \"4k\"]", "-S") && types("\"bs=1M\"", "bs="));
    assert!(!types("--sparse-size", "-s") && !types("\"-Sx\"", "-S"));
}
