//! The two checks, brought to one form.

use crate::base::{Base, SECRET};
use instar_plan_check::{Cancelled, CheckError, CheckSummary, MessageKind, Reporter, check};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use std::fs::File;
use std::path::Path;
use std::process::Command;

/// Lines of stderr, and the totals if the check came to an end.
pub struct Verdict {
    pub lines: Vec<Vec<u8>>,
    pub totals: Option<CheckSummary>,
}

/// Lines with which qemu-img's open, not its check, comments.
const OPEN_NOTES: [&[u8]; 2] = [
    b"qemu-img: warning: a program lacking bitmap support modified this file, so all bitmaps are now considered inconsistent\n",
    b"Some clusters may be leaked, run 'qemu-img check -r' on the image file to fix.",
];

/// `qemu-img check`; `Err` if it could not open the image.
pub fn qemu(base: &Base, path: &Path) -> Result<Verdict, String> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "--output=json"]);
    if base.luks {
        let options = format!(
            "driver=qcow2,encrypt.key-secret=sec0,file.filename={}",
            path.display()
        );
        command.args(["--object", SECRET, "--image-opts", &options]);
    } else {
        command.args(["-f", "qcow2"]).arg(path);
    }
    let out = command.output().expect("qemu-img is needed");
    let mut stderr = out.stderr.as_slice();
    for note in OPEN_NOTES {
        stderr = stderr.strip_prefix(note).unwrap_or(stderr);
    }
    let lines: Vec<Vec<u8>> = stderr
        .split(|b| *b == b'\n')
        .map(<[u8]>::to_vec)
        .filter(|l| !l.is_empty())
        .collect();
    if let Some(line) = lines
        .iter()
        .find(|line| line.starts_with(b"qemu-img: Could not open"))
    {
        return Err(String::from_utf8_lossy(line).into_owned());
    }
    let totals = (!out.stdout.is_empty()).then(|| totals(&out.stdout));
    let code = out.status.code().expect("an exit code");
    if let Some(totals) = totals {
        let expected = match (totals.check_errors, totals.corruptions, totals.leaks) {
            (1.., _, _) => 1,
            (0, 1.., _) => 2,
            (0, 0, 1..) => 3,
            _ => 0,
        };
        assert_eq!(code, expected, "exit code and totals");
    }
    Ok(Verdict { lines, totals })
}

fn totals(json: &[u8]) -> CheckSummary {
    let json: serde_json::Value = serde_json::from_slice(json).expect("JSON");
    let get = |key: &str| {
        json.get(key)
            .and_then(serde_json::Value::as_u64)
            .unwrap_or(0)
    };
    CheckSummary {
        corruptions: get("corruptions"),
        leaks: get("leaks"),
        check_errors: get("check-errors"),
        image_end_offset: get("image-end-offset"),
        total_clusters: get("total-clusters"),
        allocated_clusters: get("allocated-clusters"),
        compressed_clusters: get("compressed-clusters"),
        fragmented_clusters: get("fragmented-clusters"),
        passes: 0,
    }
}

struct Collect {
    lines: Vec<Vec<u8>>,
    grant: u64,
}

impl Reporter for Collect {
    fn message(&mut self, kind: MessageKind, line: &[u8]) {
        let prefix: &[u8] = if kind == MessageKind::Prefixed {
            b"qemu-img: "
        } else {
            b""
        };
        self.lines.extend(
            [prefix, line]
                .concat()
                .split(|b| *b == b'\n')
                .map(<[u8]>::to_vec),
        );
    }

    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total);
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes.min(self.grant)
    }
}

/// Our check, with the line that a command line adds to a failure.
pub fn ours(path: &Path, grant: u64) -> Result<Verdict, String> {
    let storage = FileStorage::new(File::open(path).unwrap()).unwrap();
    let header = Header::read(&storage, OpenMode::CheckWithKey).map_err(|e| e.to_string())?;
    let mut collect = Collect {
        lines: Vec::new(),
        grant,
    };
    let result = check(&storage, &header, &mut collect);
    let mut lines = collect.lines;
    lines.retain(|line| !line.is_empty());
    let totals = match result {
        Ok(totals) => {
            if totals.check_errors > 0 {
                lines.push(b"qemu-img: Check failed".to_vec());
            }
            Some(CheckSummary {
                passes: 0,
                ..totals
            })
        }
        Err(CheckError::Failed { errno }) => {
            let error = std::io::Error::from_raw_os_error(errno as i32).to_string();
            let text = error.split(" (os error").next().unwrap_or_default();
            lines.push(format!("qemu-img: Check failed: {text}").into_bytes());
            None
        }
        Err(other) => return Err(other.to_string()),
    };
    Ok(Verdict { lines, totals })
}
