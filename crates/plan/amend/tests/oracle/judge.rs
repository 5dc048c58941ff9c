//! Both amends, and what can be seen of an image after them.

use instar_plan_amend::{AmendError, Image, Layer, Request, amend, amend_keeping_size};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::FileStorage;
use serde_json::Value;
use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};

/// Grants everything.
pub struct Free;

impl Monitor for Free {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total, "{done} of {total}");
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// Reads options as the command line does; sizes are plain numbers.
pub fn request(options: &str) -> Request<'_> {
    let mut request = Request::default();
    for option in options.split(',') {
        let (name, value) = option.split_once('=').unwrap();
        let on = value == "on";
        match name {
            "size" => request.size = Some(value.parse().unwrap()),
            "compat" => request.version = Some(if value == "0.10" { 2 } else { 3 }),
            "backing_file" => request.backing_file = Some(value.as_bytes()),
            "backing_fmt" => request.backing_format = Some(value.as_bytes()),
            "data_file" => request.data_file = Some(value.as_bytes()),
            "data_file_raw" => request.data_file_raw = Some(on),
            "lazy_refcounts" => request.lazy_refcounts = Some(on),
            "refcount_bits" => request.refcount_bits = Some(value.parse().unwrap()),
            other => panic!("no option {other}"),
        }
    }
    request
}

fn open(path: &Path) -> FileStorage {
    let file = File::options().read(true).write(true).open(path);
    FileStorage::new(file.unwrap_or_else(|e| panic!("{}: {e}", path.display()))).unwrap()
}

/// Our amend of a file, whose backing file is raw if it has one.
pub fn ours(path: &Path, options: &str) -> Result<(), AmendError> {
    let storage = open(path);
    let header = Header::read(&storage, OpenMode::Change).unwrap_or_else(|e| panic!("{e}"));
    let beside = |name: &Vec<u8>| open(&path.with_file_name(str::from_utf8(name).unwrap()));
    let backing = header.backing_file.as_ref().map(beside);
    let data_name = header.extensions.data_file_name.as_ref();
    let data = data_name.map(beside);
    let below: Vec<_> = backing
        .iter()
        .map(|storage| Layer {
            storage,
            data: None,
            header: None,
            cipher: None,
        })
        .collect();
    let image = Image {
        storage: &storage,
        data: data.as_ref(),
        header: &header,
        cipher: None,
    };
    let request = request(options);
    // As the programs do it: one that changes no size refuses to before anything is written.
    let after = match request.size {
        None => amend_keeping_size(image, &request, &mut Free)?,
        Some(_) => amend(image, &below, &request, &mut Free)?,
    };
    let mode = if request.data_file == Some(b"") {
        OpenMode::Info
    } else {
        OpenMode::Change
    };
    let there = Header::read(&storage, mode).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        after, there,
        "the header that is returned is the one on the disk"
    );
    Ok(())
}

/// `qemu-img` with these arguments, in the image's folder: names in images are relative to it.
pub fn qemu_img(args: &[&str], path: &Path) -> Output {
    Command::new("qemu-img")
        .args(args)
        .arg(path.file_name().unwrap())
        .current_dir(path.parent().unwrap())
        .output()
        .expect("qemu-img is needed")
}

/// `qemu-img amend`; its sentence if it fails.
pub fn qemu(path: &Path, options: &str) -> Result<(), String> {
    let out = qemu_img(&["amend", "-f", "qcow2", "-o", options], path);
    let text = String::from_utf8(out.stderr).unwrap();
    if out.status.success() {
        return Ok(());
    }
    let text = text.trim_end().strip_prefix("qemu-img: ").unwrap_or(&text);
    Err(text.to_owned())
}

/// What a user sees of an image.
#[derive(Debug, PartialEq)]
pub struct View {
    pub info: Value,
    pub map: Value,
}

/// `None` if `qemu-img` does not open it.
pub fn view(path: &Path) -> Option<View> {
    let mut info = json(&["info", "--output=json"], path)?;
    let fields = info.as_object_mut().unwrap();
    for volatile in ["filename", "actual-size", "children"] {
        fields.remove(volatile);
    }
    let mut map = json(&["map", "--output=json"], path)?;
    let mut runs: Vec<Value> = Vec::new();
    for run in map.as_array_mut().unwrap() {
        let mut run = run.take();
        run.as_object_mut().unwrap().remove("offset");
        match runs.last_mut() {
            Some(last) if same_kind(last, &run) => {
                let length = number(last, "length") + number(&run, "length");
                last["length"] = length.into();
            }
            _ => runs.push(run),
        }
    }
    let map = Value::Array(runs);
    Some(View { info, map })
}

fn number(run: &Value, key: &str) -> u64 {
    run[key].as_u64().unwrap()
}

/// Runs that only their places keep apart.
fn same_kind(one: &Value, next: &Value) -> bool {
    let keys = ["depth", "present", "zero", "data", "compressed"];
    keys.iter().all(|key| one[key] == next[key])
}

fn json(args: &[&str], path: &Path) -> Option<Value> {
    let out = qemu_img(args, path);
    out.status
        .success()
        .then(|| serde_json::from_slice(&out.stdout).unwrap())
}

/// Numbers of `qemu-img check`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    pub corruptions: u64,
    pub leaks: u64,
    pub allocated: u64,
    pub compressed: u64,
    pub fragmented: u64,
}

pub fn check(path: &Path) -> Checked {
    let out = qemu_img(&["check", "--output=json"], path);
    let json: Value = serde_json::from_slice(&out.stdout)
        .unwrap_or_else(|_| panic!("check: {}", String::from_utf8_lossy(&out.stderr)));
    let get = |key: &str| json.get(key).and_then(Value::as_u64).unwrap_or(0);
    assert_eq!(get("check-errors"), 0);
    Checked {
        corruptions: get("corruptions"),
        leaks: get("leaks"),
        allocated: get("allocated-clusters"),
        compressed: get("compressed-clusters"),
        fragmented: get("fragmented-clusters"),
    }
}

/// Guest-visible bytes: the disk's, then those of each snapshot by name.
pub fn content(path: &Path) -> Vec<(String, Vec<u8>)> {
    let info = json(&["info", "--output=json"], path).expect("an image that opens");
    let mut disks = vec![("the disk".to_owned(), read(path, None))];
    for snapshot in info["snapshots"].as_array().into_iter().flatten() {
        let name = snapshot["name"].as_str().unwrap();
        disks.push((name.to_owned(), read(path, Some(name))));
    }
    disks
}

fn read(path: &Path, snapshot: Option<&str>) -> Vec<u8> {
    let raw = path.with_extension("raw");
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", "qcow2", "-O", "raw"]);
    if let Some(name) = snapshot {
        command.args(["-l", name]);
    }
    command.current_dir(path.parent().unwrap());
    let out = command.arg(path).arg(&raw).output().unwrap();
    // A snapshot with a compressed cluster of a type that the image no longer has cannot be read.
    if !out.status.success() {
        return out.stderr;
    }
    let bytes = fs::read(&raw).unwrap();
    fs::remove_file(raw).unwrap();
    bytes
}
