//! `qemu-img` and `qemu-io`.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// Exit code, standard output and error.
pub struct Said {
    pub code: i32,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

fn run(program: &str, dir: &Path, args: &[&str]) -> Said {
    let out = Command::new(program).current_dir(dir).args(args).output();
    let out = out.unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    Said {
        code: out.status.code().expect("an exit code"),
        stdout: out.stdout,
        stderr: String::from_utf8_lossy(&out.stderr).into_owned(),
    }
}

/// `qemu-img`, whatever comes of it.
pub fn img(dir: &Path, args: &[&str]) -> Said {
    run("qemu-img", dir, args)
}

/// `qemu-img`, which has to succeed.
pub fn img_ok(dir: &Path, args: &[&str]) -> Vec<u8> {
    let said = img(dir, args);
    assert_eq!(said.code, 0, "qemu-img {args:?}: {}", said.stderr);
    said.stdout
}

/// `qemu-io` on a qcow2 image, whatever comes of it.
pub fn try_io(dir: &Path, name: &str, command: &str) -> Said {
    run("qemu-io", dir, &["-f", "qcow2", "-c", command, name])
}

/// `qemu-io` on a qcow2 image.
pub fn io(dir: &Path, name: &str, command: &str) {
    let said = try_io(dir, name, command);
    let stdout = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.code, 0, "qemu-io {command}: {stdout}{}", said.stderr);
}

fn json(said: &Said) -> Value {
    serde_json::from_slice(&said.stdout).unwrap_or_else(|e| panic!("{e}: {}", said.stderr))
}

/// `qemu-img info`, without what depends on the file's length and place, or on the clock.
pub fn info(dir: &Path, name: &str) -> Value {
    let mut info = json(&img(dir, &["info", "--output=json", "-f", "qcow2", name]));
    let fields = info.as_object_mut().expect("an object");
    for key in [
        "actual-size",
        "filename",
        "full-backing-filename",
        "children",
    ] {
        fields.remove(key);
    }
    for snapshot in fields
        .get_mut("snapshots")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        let fields = snapshot.as_object_mut().expect("an object");
        fields.retain(|key, _| !key.starts_with("date"));
    }
    info
}

/// `qemu-img map` as runs of equal bytes of the disk: length, depth, presence, whether it has data. Offsets, and
/// whether data of the file is a hole there, are left out.
pub fn map(dir: &Path, name: &str) -> Vec<(u64, String)> {
    let map = json(&img(dir, &["map", "--output=json", "-f", "qcow2", name]));
    let mut runs: Vec<(u64, String)> = Vec::new();
    for extent in map.as_array().expect("an array") {
        let data = extent["data"] == true;
        let has_place = extent.get("offset").is_some();
        let zero = if data {
            Value::Null
        } else {
            extent["zero"].clone()
        };
        let kind = format!(
            "depth {} present {} data {data} zero {zero} compressed {} place {has_place}",
            extent["depth"], extent["present"], extent["compressed"]
        );
        let len = extent["length"].as_u64().expect("a length");
        match runs.last_mut() {
            Some((total, last)) if *last == kind => *total += len,
            _ => runs.push((len, kind)),
        }
    }
    runs
}

/// The check has to find nothing.
pub fn check(dir: &Path, name: &str, what: &str) {
    let said = img(dir, &["check", "-f", "qcow2", name]);
    let stdout = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.code, 0, "{what}: {stdout}{}", said.stderr);
}

/// The disk, or one of its snapshots, as a raw file.
pub fn content(dir: &Path, name: &str, id: Option<&str>) -> Vec<u8> {
    let out = "content.raw";
    let mut command = vec!["convert", "-f", "qcow2", "-O", "raw"];
    let option = id.map(|id| format!("snapshot.id={id}"));
    if let Some(option) = &option {
        command.extend(["-l", option]);
    }
    command.extend([name, out]);
    img_ok(dir, &command);
    std::fs::read(dir.join(out)).expect("what was written")
}
