//! Images that the judge makes and looks at.

use instar_codec::Decoder;
use instar_layers::{Chain, Layer, View};
use instar_plan_check::{Cancelled, MessageKind, Reporter};
use instar_plan_live::{Backing, LiveImage, Place};
use instar_plan_write::WriteImage;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{CrashStorage, MemStorage, StorageMut};
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

/// The image's name in its folder.
pub const NAME: &str = "a.qcow2";
/// Bytes of the disk.
pub const SIZE: u64 = 300 << 10;

/// The image file's number.
pub const IMAGE: u16 = 0;
/// The data file's number.
pub const DATA: u16 = 1;
/// The backing file's number.
pub const BASE: u16 = 2;

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
    // It ends inside a sector.
    std::fs::write(dir.join("base.raw"), &pattern[..pattern.len() - 100]).unwrap();
    let convert = [
        "convert",
        "-c",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "base.raw",
        "base.qcow2",
    ];
    ok(dir, "qemu-img", &convert);
    let size = SIZE.to_string();
    let mut create = vec!["create", "-q", "-f", "qcow2", "-o", options];
    if what.contains(&"backing") {
        create.extend(["-b", "base.raw", "-F", "raw"]);
    }
    if what.contains(&"compressed backing") {
        create.extend(["-b", "base.qcow2", "-F", "qcow2"]);
    }
    create.extend([NAME, &size]);
    ok(dir, "qemu-img", &create);
    for step in what {
        match *step {
            "backing" | "compressed backing" => {}
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

/// Prints what is found.
struct Lines(Vec<String>);

impl Reporter for Lines {
    fn message(&mut self, _kind: MessageKind, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }

    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// Our check: whether there is nothing worse than leaks, and what it says if there is.
pub fn sound(store: &MemStorage) -> Result<(), String> {
    let header = Header::read(store, OpenMode::Check).map_err(|e| e.to_string())?;
    let mut lines = Lines(Vec::new());
    let summary = instar_plan_check::check(store, &header, &mut lines);
    let summary = summary.map_err(|e| e.to_string())?;
    if summary.corruptions == 0 {
        Ok(())
    } else {
        Err(lines.0.join("\n"))
    }
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

/// A store that can be made of a file.
pub trait Store: StorageMut {
    /// A store with the content of `image`.
    fn of(image: MemStorage) -> Self;
}

impl Store for MemStorage {
    fn of(image: MemStorage) -> Self {
        image
    }
}

impl Store for CrashStorage {
    fn of(image: MemStorage) -> Self {
        Self::new(image)
    }
}

pub type Live<'a, S> = LiveImage<'a, S, Decoder>;

/// What lies below the image, as it says.
fn below<S: Store>(dir: &Path, header: &Header) -> Option<Backing<S, Decoder>> {
    let name = header.backing_file.as_ref()?;
    let name = std::str::from_utf8(name).unwrap();
    let store = S::of(load(&dir.join(name)));
    let layer = if name.ends_with(".raw") {
        Layer::raw(store)
    } else {
        let header = Header::read(&store, OpenMode::Change).unwrap();
        Layer::qcow2(store, None, header, View::Active)
    };
    Some(Backing::new(
        Chain::new(vec![layer]),
        Decoder::new(),
        |_| BASE,
    ))
}

/// Opens for use.
pub fn open<'a, S: Store>(dir: &Path, image: &'a S, data: Option<&'a S>) -> Live<'a, S> {
    let header = Header::read(image, OpenMode::Change).unwrap();
    let files = Place {
        image: IMAGE,
        data: if data.is_some() { DATA } else { IMAGE },
    };
    let opened = LiveImage::written(below(dir, &header), files, |below| {
        WriteImage::open(image, data, &header, below, Box::new(Decoder::new()))
    });
    opened.unwrap()
}
