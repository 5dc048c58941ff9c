//! `qemu-img` and `qemu-io`.

use serde_json::Value;
use std::path::Path;
use std::process::Command;

/// The secret of encrypted images.
pub const SECRET: &str = "secret,id=sec0,data=example";

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

/// A file name, or for an encrypted image the options to open it.
pub fn target(name: &str, encrypted: bool) -> Vec<String> {
    let options = format!("driver=qcow2,file.filename={name},encrypt.key-secret=sec0");
    if encrypted {
        ["--object", SECRET, "--image-opts", &options]
            .map(String::from)
            .to_vec()
    } else {
        vec!["-f".into(), "qcow2".into(), name.into()]
    }
}

/// `qemu-img COMMAND ARGS` on an image.
pub fn on(dir: &Path, command: &[&str], name: &str, encrypted: bool) -> Said {
    let target = target(name, encrypted);
    let mut args = command.to_vec();
    args.extend(target.iter().map(String::as_str));
    img(dir, &args)
}

/// `qemu-io` on an image.
pub fn io(dir: &Path, name: &str, encrypted: bool, command: &str) {
    let target = target(name, encrypted);
    let mut args = vec!["-c", command];
    args.extend(target.iter().map(String::as_str));
    let said = run("qemu-io", dir, &args);
    assert_eq!(said.code, 0, "qemu-io {command}: {}", said.stderr);
}

fn json(said: &Said) -> Value {
    serde_json::from_slice(&said.stdout).unwrap_or_else(|e| panic!("{e}: {}", said.stderr))
}

/// `qemu-img info`, without what depends on the file's name and place.
pub fn info(dir: &Path, name: &str, encrypted: bool) -> Value {
    let mut info = json(&on(dir, &["info", "--output=json"], name, encrypted));
    let fields = info.as_object_mut().expect("an object");
    for key in ["actual-size", "filename", "children"] {
        fields.remove(key);
    }
    info
}

/// `qemu-img map`, without offsets in the file. Which data reads as zeros only because the file has a hole there
/// depends on what was in the clusters before, so it does not count.
pub fn map(dir: &Path, name: &str, encrypted: bool) -> Vec<Value> {
    let map = json(&on(dir, &["map", "--output=json"], name, encrypted));
    let mut extents: Vec<Value> = Vec::new();
    for extent in map.as_array().expect("an array") {
        let mut extent = extent.clone();
        let fields = extent.as_object_mut().expect("an object");
        fields.remove("offset");
        if fields["data"] == true {
            fields.remove("zero");
        }
        let (start, len) = (fields["start"].as_u64(), fields["length"].as_u64().unwrap());
        let same = |last: &&mut Value| {
            let [mut one, mut two] = [&**last, &extent].map(Clone::clone);
            let end = last["start"]
                .as_u64()
                .zip(last["length"].as_u64())
                .map(|(a, b)| a + b);
            for extent in [&mut one, &mut two] {
                extent["start"] = Value::Null;
                extent["length"] = Value::Null;
            }
            one == two && end == start
        };
        match extents.last_mut().filter(same) {
            Some(last) => last["length"] = (last["length"].as_u64().unwrap() + len).into(),
            None => extents.push(extent),
        }
    }
    extents
}

/// The check has to find nothing.
pub fn check(dir: &Path, name: &str, encrypted: bool, what: &str) {
    let said = on(dir, &["check"], name, encrypted);
    let stdout = String::from_utf8_lossy(&said.stdout);
    assert_eq!(said.code, 0, "{what}: {stdout}{}", said.stderr);
}

/// The disk, or one of its snapshots, as a raw file.
pub fn content(dir: &Path, name: &str, encrypted: bool, id: Option<&str>) -> Vec<u8> {
    let out = "content.raw";
    let mut command = vec!["convert", "-O", "raw"];
    let option = id.map(|id| format!("snapshot.id={id}"));
    if let Some(option) = &option {
        command.extend(["-l", option]);
    }
    let target = target(name, encrypted);
    command.extend(target.iter().map(String::as_str));
    command.push(out);
    img_ok(dir, &command);
    std::fs::read(dir.join(out)).unwrap()
}
