//! One command done by both, and the images that come of it.

use crate::decode::{self, Decoded};
use crate::image::{self, SECRET, luks_options, output};
use instar_plan_bitmap::{Action, Request, SourceImage, change, refuse_raw};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// An option of the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

/// A command line.
#[derive(Clone, Debug)]
pub struct Line {
    pub name: String,
    pub acts: Vec<Act>,
    pub granularity: Option<u64>,
    /// Where the merged bitmaps are, and its format.
    pub source: Option<(PathBuf, &'static str)>,
}

impl Line {
    pub fn new(name: &str, acts: &[Act]) -> Self {
        Self {
            name: name.to_owned(),
            acts: acts.to_vec(),
            granularity: None,
            source: None,
        }
    }

    pub fn granularity(mut self, bytes: u64) -> Self {
        self.granularity = Some(bytes);
        self
    }

    pub fn source(mut self, path: &Path, format: &'static str) -> Self {
        self.source = Some((path.to_owned(), format));
        self
    }
}

/// Exit code and stderr.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    pub code: i32,
    pub stderr: String,
}

/// The random number of a node's name taken out, and this image's name.
fn normal(stderr: &str, path: &Path) -> String {
    let mut parts = stderr.split("#block");
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        text.push_str("#block");
        text.push_str(part.trim_start_matches(|c: char| c.is_ascii_digit()));
    }
    text.replace(path.to_str().unwrap(), "IMAGE")
}

/// `qemu-img bitmap`.
pub fn qemu(path: &Path, format: &str, luks: bool, line: &Line) -> Ended {
    let mut args: Vec<String> = vec!["bitmap".into()];
    for act in &line.acts {
        match act {
            Act::Add => args.push("--add".into()),
            Act::Remove => args.push("--remove".into()),
            Act::Clear => args.push("--clear".into()),
            Act::Enable => args.push("--enable".into()),
            Act::Disable => args.push("--disable".into()),
            Act::Merge(source) => args.extend(["--merge".into(), source.clone()]),
        }
    }
    if let Some(granularity) = line.granularity {
        args.extend(["-g".into(), granularity.to_string()]);
    }
    if let Some((source, format)) = &line.source {
        let source = source.to_str().unwrap().to_owned();
        args.extend(["-b".into(), source, "-F".into(), (*format).into()]);
    }
    if luks {
        args.extend([
            "--object".into(),
            SECRET.into(),
            "--image-opts".into(),
            luks_options(path),
        ]);
    } else {
        args.extend(["-f".into(), format.into(), path.to_str().unwrap().into()]);
    }
    args.push(line.name.clone());
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let out = output("qemu-img", &args);
    Ended {
        code: out.status.code().expect("an exit code"),
        stderr: normal(&String::from_utf8_lossy(&out.stderr), path),
    }
}

/// A monitor that neither stops nor refuses.
pub struct Quiet;

impl Monitor for Quiet {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total);
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn open(path: &Path, write: bool, stderr: &mut String) -> Result<(FileStorage, Header), Ended> {
    let file = File::options().read(true).write(write).open(path).unwrap();
    let storage = FileStorage::new(file).unwrap();
    match Header::read(&storage, OpenMode::Change) {
        Ok(header) => {
            if let Some(warning) = &header.extensions.bitmaps_ignored {
                *stderr += &format!("qemu-img: warning: {warning}");
            }
            Ok((storage, header))
        }
        Err(e) => Err(Ended {
            code: 1,
            stderr: format!("qemu-img: Could not open 'IMAGE': {e}\n"),
        }),
    }
}

/// The actions of a line.
pub fn actions(line: &Line) -> Vec<Action<'_>> {
    let granularity = line.granularity.unwrap_or(0);
    let acts = line.acts.iter();
    acts.map(|act| match act {
        Act::Add => Action::Add { granularity },
        Act::Remove => Action::Remove,
        Act::Clear => Action::Clear,
        Act::Enable => Action::Enable,
        Act::Disable => Action::Disable,
        Act::Merge(source) => Action::Merge {
            source: source.as_bytes(),
        },
    })
    .collect()
}

/// The same by the planner.
pub fn ours(path: &Path, format: &str, line: &Line) -> Ended {
    try_ours(path, format, line).unwrap_or_else(|ended| ended)
}

fn try_ours(path: &Path, format: &str, line: &Line) -> Result<Ended, Ended> {
    let actions = actions(line);
    let request = Request {
        name: line.name.as_bytes(),
        actions: &actions,
    };
    let mut stderr = String::new();
    let report = if format == "raw" {
        Ok(refuse_raw(&request))
    } else {
        let (storage, header) = open(path, true, &mut stderr)?;
        match &line.source {
            None => {
                let source: SourceImage<'_, FileStorage> = SourceImage::Same;
                change(&storage, &header, &source, &request, &mut Quiet)
            }
            Some((_, "raw")) => {
                let source: SourceImage<'_, FileStorage> = SourceImage::Raw;
                change(&storage, &header, &source, &request, &mut Quiet)
            }
            Some((other, _)) => {
                let (other, other_header) = open(other, false, &mut stderr)?;
                let source = SourceImage::Other {
                    storage: &other,
                    header: &other_header,
                };
                change(&storage, &header, &source, &request, &mut Quiet)
            }
        }
    };
    let code = match report {
        Ok(report) => {
            for sentence in report.sentences() {
                stderr += &format!("qemu-img: {sentence}\n");
            }
            i32::from(!report.is_success())
        }
        Err(e) => {
            stderr += &format!("qemu-img: {e}\n");
            1
        }
    };
    Ok(Ended {
        code,
        stderr: normal(&stderr, path),
    })
}

fn json(args: &[&str]) -> Value {
    let out = output("qemu-img", args);
    serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|e| panic!("{args:?}: {e}: {}", String::from_utf8_lossy(&out.stderr)))
}

/// What `qemu-img` and the tests' decoder say of an image.
pub struct Seen {
    pub info: Value,
    pub leaks: u64,
    pub corruptions: u64,
    pub bitmaps: Vec<Decoded>,
    pub len: u64,
    cluster: u64,
}

pub fn look(path: &Path, luks: bool) -> Seen {
    let text = path.to_str().unwrap();
    let mut info = json(&["info", "-f", "qcow2", "--output=json", text]);
    let fields = info.as_object_mut().unwrap();
    for key in ["actual-size", "filename", "children"] {
        fields.remove(key);
    }
    let named = luks_options(path);
    let check = if luks {
        json(&[
            "check",
            "--output=json",
            "--object",
            SECRET,
            "--image-opts",
            &named,
        ])
    } else {
        json(&["check", "-f", "qcow2", "--output=json", text])
    };
    let count = |key| check.get(key).and_then(Value::as_u64).unwrap_or(0);
    let bytes = fs::read(path).unwrap();
    Seen {
        cluster: info["cluster-size"].as_u64().unwrap(),
        info,
        leaks: count("leaks"),
        corruptions: count("corruptions") + count("check-errors"),
        bitmaps: decode::bitmaps(&bytes),
        len: bytes.len() as u64,
    }
}

/// Compares what became of the two copies; panics with `label` where they differ.
pub fn compare_images(theirs: &Path, mine: &Path, luks: bool, label: &str) {
    let (a, b) = (look(theirs, luks), look(mine, luks));
    assert_eq!(b.info, a.info, "{label}: info (left: ours)");
    assert_eq!(b.bitmaps, a.bitmaps, "{label}: bitmaps (left: ours)");
    assert_eq!(b.corruptions, a.corruptions, "{label}: check (left: ours)");
    assert!(
        b.leaks <= a.leaks,
        "{label}: {} leaks, qemu-img {}",
        b.leaks,
        a.leaks
    );
    let most = a.len.next_multiple_of(a.cluster) * 102 / 100;
    assert!(
        b.len <= most,
        "{label}: {} bytes, qemu-img {}",
        b.len,
        a.len
    );
    if !luks {
        let names = [theirs.to_str().unwrap(), mine.to_str().unwrap()];
        image::run(
            "qemu-img",
            &[&["compare", "-q", "-f", "qcow2", "-F", "qcow2"], &names[..]].concat(),
        );
    }
}

/// Does `line` to copies of an image by both; gives how it ended.
pub fn same(theirs: &Path, mine: &Path, luks: bool, line: &Line, label: &str) -> Ended {
    let expected = qemu(theirs, "qcow2", luks, line);
    let got = ours(mine, "qcow2", line);
    assert_eq!(got, expected, "{label}: {line:?} (left: ours)");
    compare_images(theirs, mine, luks, &format!("{label}: {line:?}"));
    got
}
