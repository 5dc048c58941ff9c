//! Runs the program under test and the oracle with the same words and says
//! where they differ.
//!
//! The allowed differences: our prefix `instar: ` for `qemu-img: `, one line
//! starting `hint: ` on standard error, and no line `Try '… --help' for more
//! info`, whose place the hint takes.
//!
//! Three listed differences: `check` of an encrypted image needs no key, so the
//! oracle gets one; formats other than qcow2 and raw are refused by name; and
//! bytes that are not UTF-8 show as U+FFFD in the sentence of a refusal.

use std::ffi::{OsStr, OsString};

use anyhow::{Context, Result, bail};

use crate::run::{Outcome, Run};
use crate::scratch::Scratch;
use crate::tools;
use crate::twins::without_node_numbers;

/// The largest resident set that a run on any image may have, in KiB.
pub const RSS_LIMIT_KIB: u64 = 256 << 10;

/// What the oracle says when it wants the key of an encrypted image.
const KEY_WANTED: &str = "Parameter 'encrypt.key-secret' is required for cipher";
/// What it says when the key does not fit: it gives no answer about the image then.
const KEY_REFUSED: [&str; 2] = ["cannot unlock any keyslot", KEY_WANTED];

/// A sentence after which the oracle writes no line end.
const WITHOUT_LINE_END: &[u8] = b"run 'qemu-img check -r' on the image file to fix.";
/// What a line of standard error has between the program's name and the colon.
const COMMANDS: [&str; 7] = [
    "",
    " info",
    " check",
    " snapshot",
    " resize",
    " amend",
    " bitmap",
];

/// Failures of one test, gathered so that one run shows all of them.
#[derive(Debug)]
pub struct Bench<'a> {
    scratch: &'a Scratch,
    env: Vec<(String, OsString)>,
    cases: usize,
    failures: Vec<String>,
}

impl<'a> Bench<'a> {
    /// An empty list for tests in this folder.
    pub fn new(scratch: &'a Scratch) -> Self {
        Self {
            scratch,
            env: Vec::new(),
            cases: 0,
            failures: Vec::new(),
        }
    }

    /// Sets an environment variable for both programs from here on.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) {
        self.env.retain(|(known, _)| known != name);
        self.env.push((name.to_owned(), value.as_ref().to_owned()));
    }

    /// Runs the program under test.
    pub fn instar<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Outcome> {
        self.with_env(Run::new(&tools::instar()?, self.scratch.path()).args(args))
            .go()
    }

    /// Runs the oracle.
    pub fn qemu_img<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Outcome> {
        self.with_env(Run::new(&tools::qemu_img()?, self.scratch.path()).args(args))
            .go()
    }

    fn with_env(&self, run: Run) -> Run {
        self.env
            .iter()
            .fold(run, |run, (name, value)| run.env(name, value))
    }

    /// Both programs must say the same and leave every file as it was.
    pub fn same<S: AsRef<OsStr>>(&mut self, label: &str, args: &[S]) -> Result<()> {
        self.cases += 1;
        let before = self.scratch.fingerprints()?;
        let mut want = self.qemu_img(args)?;
        let mut got = self.instar(args)?;
        if only_disk_size_differs(&want, &got) {
            // The file system may still have been allocating blocks.
            rustix::fs::sync();
            want = self.qemu_img(args)?;
            got = self.instar(args)?;
        }
        for outcome in [&mut want, &mut got] {
            outcome.stderr = without_node_numbers(&outcome.stderr);
        }
        if want.err().contains(KEY_WANTED) {
            want = self.qemu_img_with_key(args)?;
        }
        let no_answer = want.signal.is_some()
            || want.timed_out
            || KEY_REFUSED.iter().any(|t| want.err().contains(t));
        let foreign = got.err().contains("which instar does not read yet") && got.code == Some(1);
        let mut complaints = if no_answer || foreign {
            // The oracle gives no answer: ours must still be an orderly one.
            orderly(&got)
        } else {
            differences(&want, &got)
        };
        complaints.extend(manners(&got));
        if before != self.scratch.fingerprints()? {
            complaints.push("a file was changed".into());
        }
        if !complaints.is_empty() {
            self.fail(format!(
                "{label}: {}\n{}\nqemu-img {}\ninstar {}",
                words(args),
                complaints.join("\n"),
                want.describe(),
                got.describe()
            ));
        }
        Ok(())
    }

    /// The oracle's `check` of an encrypted image, with the key that the tests' images have.
    fn qemu_img_with_key<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Outcome> {
        let (name, options) = args.split_last().context("no file name")?;
        let name = name.as_ref().to_str().context("the name is not UTF-8")?;
        let image =
            format!("driver=qcow2,encrypt.key-secret=key,file.driver=file,file.filename={name}");
        let mut keyed: Vec<OsString> = options.iter().map(|arg| arg.as_ref().to_owned()).collect();
        keyed.extend(
            [
                "--object",
                "secret,id=key,data=password",
                "--image-opts",
                &image,
            ]
            .map(OsString::from),
        );
        let mut outcome = self.qemu_img(&keyed)?;
        for stream in [&mut outcome.stdout, &mut outcome.stderr] {
            *stream = String::from_utf8_lossy(stream)
                .replace(&image, name)
                .into_bytes();
        }
        Ok(outcome)
    }

    /// `info` in both output formats.
    pub fn same_info(&mut self, label: &str, image: &str) -> Result<()> {
        self.same(label, &["info", image])?;
        self.same(label, &["info", "--output=json", image])
    }

    /// `check` in both output formats.
    pub fn same_check(&mut self, label: &str, image: &str) -> Result<()> {
        self.same(label, &["check", image])?;
        self.same(label, &["check", "--output=json", image])
    }

    /// `info` and `check` in both output formats.
    pub fn same_both(&mut self, label: &str, image: &str) -> Result<()> {
        self.same_info(label, image)?;
        self.same_check(label, image)
    }

    /// The program under test must refuse: exit 1, nothing on standard output,
    /// one error line that contains each of `needles`, at most one hint.
    pub fn refused<S: AsRef<OsStr>>(
        &mut self,
        label: &str,
        args: &[S],
        needles: &[&str],
    ) -> Result<()> {
        self.cases += 1;
        let before = self.scratch.fingerprints()?;
        let got = self.instar(args)?;
        let mut complaints = orderly(&got);
        complaints.extend(manners(&got));
        if got.code != Some(1) {
            complaints.push("exit code 1 expected".into());
        }
        let said = got.err();
        for needle in needles.iter().filter(|needle| !said.contains(**needle)) {
            complaints.push(format!("the message does not contain {needle:?}"));
        }
        if before != self.scratch.fingerprints()? {
            complaints.push("a file was changed".into());
        }
        if !complaints.is_empty() {
            self.fail(format!(
                "{label}: {}\n{}\ninstar {}",
                words(args),
                complaints.join("\n"),
                got.describe()
            ));
        }
        Ok(())
    }

    /// Records a failure.
    pub fn fail(&mut self, message: String) {
        self.failures.push(message);
    }

    /// Ends the test: an error that lists the first failures.
    pub fn finish(self) -> Result<()> {
        println!("{} cases, {} failed", self.cases, self.failures.len());
        if self.cases == 0 {
            bail!("this test compared nothing");
        }
        if self.failures.is_empty() {
            return Ok(());
        }
        let shown: Vec<_> = self.failures.iter().take(6).cloned().collect();
        bail!(
            "{} of {} cases failed; the first:\n\n{}",
            self.failures.len(),
            self.cases,
            shown.join("\n==========\n")
        );
    }
}

fn words<S: AsRef<OsStr>>(args: &[S]) -> String {
    args.iter()
        .map(|arg| arg.as_ref().to_string_lossy().into_owned())
        .collect::<Vec<_>>()
        .join(" ")
}

/// Standard error with the oracle's prefix and without the allowed extras.
/// The hint may only be the last line.
pub fn normal_stderr(raw: &[u8]) -> Vec<u8> {
    let mut lines: Vec<Vec<u8>> = raw
        .split_inclusive(|byte| *byte == b'\n')
        .map(<[u8]>::to_vec)
        .collect();
    if lines.last().is_some_and(|line| line.starts_with(b"hint: ")) {
        lines.pop();
    }
    lines.retain(|line| !(line.starts_with(b"Try '") && line.ends_with(b"for more info\n")));
    for line in &mut lines {
        // `getopt_long` names the program as it was started.
        if let Some(rest) = without_folder(line) {
            *line = rest;
        }
        if let Some(rest) = line.strip_prefix(b"instar") {
            let names = COMMANDS
                .iter()
                .map(|name| rest.strip_prefix(name.as_bytes()));
            if names.flatten().any(|rest| rest.starts_with(b": ")) {
                *line = [b"qemu-img", rest].concat();
            }
        }
    }
    let mut text = lines.concat();
    let end = |w: &[u8]| w.strip_suffix(b"\n") == Some(WITHOUT_LINE_END);
    while let Some(at) = text.windows(WITHOUT_LINE_END.len() + 1).position(end) {
        text.remove(at + WITHOUT_LINE_END.len());
    }
    text
}

/// A line that starts with the path of the oracle, from the program's name on.
fn without_folder(line: &[u8]) -> Option<Vec<u8>> {
    let program = tools::qemu_img().ok()?;
    let folder = [program.parent()?.as_os_str().as_encoded_bytes(), b"/"].concat();
    let rest = line.strip_prefix(folder.as_slice())?;
    rest.starts_with(b"qemu-img").then(|| rest.to_vec())
}

/// What differs beyond the allowed differences.
pub fn differences(want: &Outcome, got: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    if want.code != got.code {
        found.push(format!("exit code {:?}, not {:?}", got.code, want.code));
    }
    if want.stdout != got.stdout {
        found.push(first_difference("stdout", &want.stdout, &got.stdout));
    }
    let (theirs, ours) = (normal_stderr(&want.stderr), normal_stderr(&got.stderr));
    // Names in refusals go through text: bytes that are not UTF-8 show as U+FFFD.
    if String::from_utf8_lossy(&theirs) != String::from_utf8_lossy(&ours) {
        found.push(first_difference("stderr", &theirs, &ours));
    }
    found
}

fn first_difference(stream: &str, want: &[u8], got: &[u8]) -> String {
    let split = |bytes: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(bytes)
            .split('\n')
            .map(str::to_owned)
            .collect()
    };
    let (want, got) = (split(want), split(got));
    let line = want.iter().zip(&got).take_while(|(a, b)| a == b).count();
    format!(
        "{stream} differs in line {}:\n  want {:?}\n  got  {:?}",
        line + 1,
        want.get(line),
        got.get(line)
    )
}

/// What holds for every run on every input: it ends by itself, in bounded
/// memory, without a crash, and an error has a line to read.
pub fn manners(got: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    if got.timed_out {
        found.push("it did not end in time".into());
    }
    if got.signal.is_some() && !got.timed_out {
        found.push(format!("signal {:?} ended it", got.signal));
    }
    if got.max_rss_kib > RSS_LIMIT_KIB {
        found.push(format!("it used {} KiB of memory", got.max_rss_kib));
    }
    let said = got.err();
    for bad in ["panicked at", "RUST_BACKTRACE", "operation crashed"] {
        if said.contains(bad) {
            found.push(format!("it said {bad:?}"));
        }
    }
    let hints = said.lines().filter(|l| l.starts_with("hint: ")).count();
    if hints > 1 {
        found.push(format!("{hints} hint lines"));
    }
    found
}

/// An answer where the oracle gives none: one error line, exit 1.
pub fn orderly(got: &Outcome) -> Vec<String> {
    let mut found = Vec::new();
    match got.code {
        Some(0 | 2 | 3 | 63) => {}
        Some(1) => {
            let text = normal_stderr(&got.stderr);
            let lines = text.iter().filter(|byte| **byte == b'\n').count();
            let named = COMMANDS
                .iter()
                .any(|name| text.starts_with(format!("qemu-img{name}: ").as_bytes()));
            if lines != 1 || !named {
                found.push("one line `instar: …` expected on standard error".into());
            }
            if !got.stdout.is_empty() {
                found.push("an error left text on standard output".into());
            }
        }
        other => found.push(format!("exit code {other:?}")),
    }
    found
}

fn only_disk_size_differs(want: &Outcome, got: &Outcome) -> bool {
    let keep = |bytes: &[u8]| -> Vec<String> {
        String::from_utf8_lossy(bytes)
            .lines()
            .filter(|line| {
                let line = line.trim_start();
                !line.starts_with("disk size: ") && !line.starts_with("\"actual-size\": ")
            })
            .map(str::to_owned)
            .collect()
    };
    want.stdout != got.stdout && keep(&want.stdout) == keep(&got.stdout)
}
