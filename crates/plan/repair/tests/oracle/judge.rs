//! Repairs by both programs, and what they leave.

use crate::base::{Base, SECRET};
use instar_plan_repair::{
    Cancelled, CheckError, CheckSummary, MessageKind, Mode, Repaired, Reporter, repair,
};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use std::fs::OpenOptions;
use std::path::Path;
use std::process::{Command, Output};

/// Collects lines.
pub struct Collect {
    pub lines: Vec<String>,
    pub grant: u64,
}

impl Reporter for Collect {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        let prefix = if kind == MessageKind::Prefixed {
            "qemu-img: "
        } else {
            ""
        };
        self.lines
            .push(format!("{prefix}{}", String::from_utf8_lossy(line)));
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total);
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes.min(self.grant)
    }
}

/// What a repair said.
pub struct Told {
    pub lines: Vec<String>,
    pub result: Result<Repaired, CheckError>,
}

/// Our repair; `Err` if the image cannot be opened.
pub fn ours(path: &Path, mode: Mode, grant: u64) -> Result<Told, String> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let storage = FileStorage::new(file).unwrap();
    let header = Header::read(&storage, OpenMode::CheckWithKey).map_err(|e| e.to_string())?;
    let mut collect = Collect {
        lines: Vec::new(),
        grant,
    };
    let result = repair(&storage, &header, mode, &mut collect);
    Ok(Told {
        lines: collect.lines,
        result,
    })
}

/// The exit code that a summary stands for.
pub const fn exit_code(sum: &CheckSummary) -> i32 {
    match (sum.check_errors, sum.corruptions, sum.leaks) {
        (1.., _, _) => 1,
        (0, 1.., _) => 2,
        (0, 0, 1..) => 3,
        _ => 0,
    }
}

fn qemu_img(base: &Base, args: &[&str], path: &Path, tail: &[&str]) -> Output {
    let mut command = Command::new("qemu-img");
    command.args(args);
    if base.luks {
        let options = format!(
            "driver=qcow2,encrypt.key-secret=sec0,file.filename={}",
            path.display()
        );
        command.args(["--object", SECRET, "--image-opts", &options]);
    } else {
        command.args(["-f", "qcow2"]).arg(path);
    }
    command.args(tail).output().expect("qemu-img is needed")
}

/// `qemu-img check`: exit code, corruptions, leaks.
pub fn check(base: &Base, path: &Path) -> (i32, Option<(u64, u64)>, String) {
    let out = qemu_img(base, &["check", "--output=json"], path, &[]);
    let totals = serde_json::from_slice(&out.stdout)
        .ok()
        .map(|json: serde_json::Value| {
            let get = |key: &str| json.get(key).and_then(serde_json::Value::as_u64);
            (get("corruptions").unwrap_or(0), get("leaks").unwrap_or(0))
        });
    let stderr = String::from_utf8_lossy(&out.stderr).into_owned();
    (out.status.code().expect("an exit code"), totals, stderr)
}

/// `qemu-img check -r`: its exit code, totals repaired and lines of stderr.
pub fn qemu_repair(base: &Base, path: &Path, mode: Mode) -> (i32, (u64, u64), Vec<String>) {
    let word = if mode == Mode::All { "all" } else { "leaks" };
    let out = qemu_img(base, &["check", "--output=json", "-r", word], path, &[]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
    let get = |key: &str| {
        json.get(key)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    };
    let stderr = String::from_utf8_lossy(&out.stderr);
    (
        out.status.code().expect("an exit code"),
        (get("corruptions-fixed"), get("leaks-fixed")),
        stderr.lines().map(str::to_owned).collect(),
    )
}

/// What can be read of the disk and of each snapshot; `None` where reading fails.
pub fn contents(base: &Base, path: &Path, scratch: &Path) -> Vec<Option<Vec<u8>>> {
    let out = scratch.join("content.raw");
    let read = |args: &[&str]| {
        let mut all = vec!["convert", "-O", "raw"];
        all.extend(args);
        let done = qemu_img(base, &all, path, &[out.to_str().unwrap()]);
        done.status.success().then(|| std::fs::read(&out).unwrap())
    };
    let mut contents = vec![read(&[])];
    for number in 0..base.snapshots {
        contents.push(read(&["-l", &format!("snap{number}")]));
    }
    contents
}
