//! A machine of another architecture: QEMU interprets it, its kernel is Debian's, and its KVM runs the operations.
//!
//! The machine has no disk and no network. What it needs is in its initial file system, and what it has to say comes
//! through its serial line, in base64, so that no byte of an output is lost.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::run::Run;
use crate::scratch::Scratch;
use crate::tools;

/// The longest time that the machine may take.
const TIME_LIMIT: Duration = Duration::from_secs(600);
/// What starts a line that is for us.
const MARK: &str = "@@";

/// What a command said in the lab.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: Vec<u8>,
}

/// What the lab has said at its end.
#[derive(Debug)]
pub struct Said {
    /// An answer for each command.
    pub answers: Vec<Answer>,
    /// The files that were asked for, by name.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// An arm64 machine with KVM.
#[derive(Debug)]
pub struct Arm64 {
    kernel: PathBuf,
    busybox: PathBuf,
    program: PathBuf,
}

impl Arm64 {
    /// The lab that `make setup` fetches and `make arm64` builds the program for.
    pub fn new() -> Result<Self> {
        let program = "aarch64-unknown-linux-musl/release/instar";
        Ok(Self {
            kernel: super::built("lab/arm64/vmlinuz", "`make setup` fetches it")?,
            busybox: super::built("lab/arm64/busybox", "`make setup` fetches it")?,
            program: super::built(program, "`make arm64` builds it")?,
        })
    }

    /// Boots the machine with the files of `inputs`, runs `commands` there as `qemu-img`, and brings `outputs` back.
    pub fn run(&self, inputs: &Scratch, commands: &[&str], outputs: &[&str]) -> Result<Said> {
        let work = Scratch::new()?;
        self.pack(&work, inputs, &script(commands, outputs))?;
        let initrd = work.file("initrd");
        let machine = "virt,virtualization=on,gic-version=3";
        let done = Run::new(
            &tools::in_path(Path::new("qemu-system-aarch64"))?,
            work.path(),
        )
        .args(["-M", machine, "-cpu", "max", "-m", "1G", "-nodefaults"])
        .args(["-nographic", "-serial", "stdio", "-no-reboot"])
        .args([Path::new("-kernel"), &self.kernel])
        .args([Path::new("-initrd"), &initrd])
        .args(["-append", "console=ttyAMA0 quiet panic=-1"])
        .limit(TIME_LIMIT)
        .go()?;
        let said = parse(&done.out(), commands.len());
        let said = said.with_context(|| format!("the lab said: {}", done.describe()))?;
        for name in outputs {
            let there = said.files.contains_key(*name);
            ensure!(there, "no file {name} from the lab: {}", done.describe());
        }
        Ok(said)
    }

    /// Writes the machine's initial file system as `initrd`.
    fn pack(&self, work: &Scratch, inputs: &Scratch, script: &str) -> Result<()> {
        let root = work.file("root");
        for folder in ["bin", "proc", "sys", "dev", "work"] {
            std::fs::create_dir_all(root.join(folder))?;
        }
        for (from, name) in [(&self.busybox, "busybox"), (&self.program, "instar")] {
            let to = root.join("bin").join(name);
            std::fs::copy(from, &to)?;
            std::fs::set_permissions(&to, PermissionsExt::from_mode(0o755))?;
        }
        std::os::unix::fs::symlink("instar", root.join("bin/qemu-img"))?;
        for entry in std::fs::read_dir(inputs.path())? {
            let entry = entry?;
            std::fs::copy(entry.path(), root.join("work").join(entry.file_name()))?;
        }
        let init = root.join("init");
        std::fs::write(&init, script)?;
        std::fs::set_permissions(&init, PermissionsExt::from_mode(0o755))?;
        piped("find . | cpio --quiet -o -H newc >../initrd", &root, b"")?;
        Ok(())
    }
}

/// What the machine does instead of an init.
fn script(commands: &[&str], outputs: &[&str]) -> String {
    let mut script = String::from(
        "#!/bin/busybox sh\nB=/bin/busybox; export PATH=/bin TZ=UTC LC_ALL=C\n\
         $B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev\ncd /work\n",
    );
    for (index, command) in commands.iter().enumerate() {
        let _ = writeln!(
            script,
            "qemu-img {command} >/out 2>/err; echo \"{MARK} {index} code $?\"\n\
             echo '{MARK} {index} out'; $B base64 /out; echo '{MARK} {index} err'; $B base64 /err; echo '{MARK} end'"
        );
    }
    for name in outputs {
        let _ = writeln!(
            script,
            "echo '{MARK} file {name}'; $B gzip -c {name} | $B base64; echo '{MARK} end'"
        );
    }
    script.push_str("$B poweroff -f\n");
    script
}

/// Reads what came through the serial line.
fn parse(console: &str, commands: usize) -> Result<Said> {
    let empty = Answer {
        code: -1,
        stdout: Vec::new(),
        stderr: Vec::new(),
    };
    let mut answers = vec![empty; commands];
    let mut files = BTreeMap::new();
    let mut lines = console.lines().map(str::trim_end);
    let mut next = lines.next();
    while let Some(line) = next {
        let words: Vec<&str> = line.split(' ').collect();
        let [MARK, what, rest @ ..] = words.as_slice() else {
            next = lines.next();
            continue;
        };
        let mut text = String::new();
        next = lines.next();
        while let Some(line) = next.filter(|line| !line.starts_with(MARK)) {
            text.push_str(line);
            text.push('\n');
            next = lines.next();
        }
        if let (&"file", [name]) = (what, rest) {
            let bytes = piped("base64 -d | gzip -d", Path::new("/"), text.as_bytes())?;
            files.insert((*name).to_owned(), bytes);
            continue;
        }
        let answer = what
            .parse()
            .ok()
            .and_then(|index: usize| answers.get_mut(index));
        let Some(answer) = answer else { continue };
        match rest {
            ["code", code] => answer.code = code.parse()?,
            ["out"] => answer.stdout = piped("base64 -d", Path::new("/"), text.as_bytes())?,
            ["err"] => answer.stderr = piped("base64 -d", Path::new("/"), text.as_bytes())?,
            _ => bail!("a line from the lab that means nothing: {line}"),
        }
    }
    ensure!(
        answers.iter().all(|a| a.code >= 0),
        "not every command has answered"
    );
    Ok(Said { answers, files })
}

/// Runs a pipeline of the shell with this input; its output.
fn piped(pipeline: &str, folder: &Path, input: &[u8]) -> Result<Vec<u8>> {
    let mut child = Command::new("sh")
        .args(["-c", pipeline])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {pipeline}"))?;
    let mut stdin = child.stdin.take().context("no pipe")?;
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let done = child.wait_with_output()?;
    ensure!(done.status.success(), "{pipeline}: {}", done.status);
    let _ = writer.join();
    Ok(done.stdout)
}
