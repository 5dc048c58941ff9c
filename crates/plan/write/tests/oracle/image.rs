//! Images that the judge makes and looks at.

use instar_codec::Decoder;
use instar_layers::{Chain, Layer};
use instar_plan_write::{Below, NothingBelow, WriteImage};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, StorageMut};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

/// The image's name in its folder.
pub const NAME: &str = "a.qcow2";
/// Bytes of the disk.
pub const SIZE: u64 = 300 << 10;

/// Runs the judge.
pub fn run(dir: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(dir).output();
    output.unwrap_or_else(|e| panic!("{program} is needed: {e}"))
}

/// Runs the judge, who has to be content.
pub fn ok(dir: &Path, program: &str, args: &[&str]) -> Vec<u8> {
    let output = run(dir, program, args);
    let said = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {said}{out}");
    output.stdout
}

/// Makes an image: `what` is applied in order.
pub fn make(dir: &Path, options: &str, what: &[&str]) {
    let pattern: Vec<u8> = (0..250_u32 << 10)
        .map(|n| (n / 512 % 251) as u8 + 1)
        .collect();
    std::fs::write(dir.join("base.raw"), pattern).unwrap();
    let size = SIZE.to_string();
    let mut create = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if what.contains(&"backing") {
        create.extend(["-b", "base.raw", "-F", "raw"]);
    }
    create.extend([NAME, &size]);
    ok(dir, "qemu-img", &create);
    for step in what {
        match *step {
            "backing" => {}
            "snapshot" => drop(ok(dir, "qemu-img", &["snapshot", "-c", "one", NAME])),
            "bitmap" => drop(ok(dir, "qemu-img", &["bitmap", "--add", NAME, "rec"])),
            command => drop(ok(dir, "qemu-io", &["-c", command, NAME])),
        }
    }
}

/// What a guest reads, or what it read when the snapshot was made.
pub fn content(dir: &Path, name: &str, snapshot: bool) -> Vec<u8> {
    let mut args = vec!["convert", "-O", "raw"];
    if snapshot {
        args.extend(["-l", "one"]);
    }
    args.extend([name, "out.raw"]);
    ok(dir, "qemu-img", &args);
    std::fs::read(dir.join("out.raw")).unwrap()
}

/// The judge's check: 0 sound, 3 leaks.
pub fn check(dir: &Path, name: &str) -> i32 {
    let output = run(dir, "qemu-img", &["check", name]);
    let code = output.status.code().unwrap();
    if code != 0 && code != 3 {
        println!("{}", String::from_utf8_lossy(&output.stdout));
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    code
}

/// A file as a store.
pub fn load(path: &Path) -> MemStorage {
    MemStorage::load(&File::open(path).unwrap()).unwrap()
}

/// A store as a file.
pub fn save(store: &MemStorage, path: &Path) {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    store.save(&file.unwrap()).unwrap();
}

/// Opens for writing.
pub fn open<'a, S: StorageMut>(dir: &Path, image: &'a S, data: Option<&'a S>) -> WriteImage<'a, S> {
    let header = Header::read(image, OpenMode::Change).unwrap();
    let below: Box<dyn Below> = match header.backing_file {
        Some(_) => {
            let layers = vec![Layer::raw(load(&dir.join("base.raw")))];
            Box::new((Chain::new(layers), Decoder::new()))
        }
        None => Box::new(NothingBelow),
    };
    WriteImage::open(image, data, &header, below, Box::new(Decoder::new())).unwrap()
}
