//! Images with bitmaps, made by `qemu-img` and `qemu-io`.

use crate::decode;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The secret of the encrypted image.
pub const SECRET: &str = "secret,id=sec0,data=example";

/// An image to start from.
#[derive(Clone)]
pub struct Base {
    pub name: &'static str,
    pub path: PathBuf,
    pub luks: bool,
}

#[derive(Clone, Copy)]
struct Plan {
    name: &'static str,
    options: &'static str,
    size: &'static str,
    /// Name and granularity of each bitmap.
    bitmaps: &'static [(&'static str, &'static str)],
    io: &'static [&'static str],
    snapshots: u32,
    data_file: bool,
    backing: bool,
    luks: bool,
}

const BITMAPS: &[(&str, &str)] = &[
    ("a", "64k"),
    ("fine", "512"),
    ("coarse", "1M"),
    ("off", "4k"),
];

const IO: &[&str] = &[
    "write 0 100k",
    "write 1M 4k",
    "write 3000k 70k",
    "write -z 5M 200k",
];

const DEFAULT: Plan = Plan {
    name: "v3",
    options: "",
    size: "20M",
    bitmaps: BITMAPS,
    io: IO,
    snapshots: 0,
    data_file: false,
    backing: false,
    luks: false,
};

/// The ones of equal size come first: each may be the other's merge source.
const PLANS: &[Plan] = &[
    DEFAULT,
    Plan {
        name: "512",
        options: "cluster_size=512",
        ..DEFAULT
    },
    Plan {
        name: "4k 64 bit",
        options: "cluster_size=4k,refcount_bits=64",
        snapshots: 2,
        ..DEFAULT
    },
    Plan {
        name: "2M",
        options: "cluster_size=2M",
        ..DEFAULT
    },
    Plan {
        name: "1 bit",
        options: "refcount_bits=1,cluster_size=1k",
        ..DEFAULT
    },
    Plan {
        name: "extended",
        options: "extended_l2=on,cluster_size=16k",
        snapshots: 1,
        ..DEFAULT
    },
    Plan {
        name: "data file",
        data_file: true,
        options: "data_file_raw=on,cluster_size=4k",
        ..DEFAULT
    },
    Plan {
        name: "backing",
        backing: true,
        ..DEFAULT
    },
    Plan {
        name: "none",
        bitmaps: &[],
        ..DEFAULT
    },
    Plan {
        name: "luks",
        luks: true,
        io: &[],
        ..DEFAULT
    },
    Plan {
        name: "odd size",
        size: "7654400",
        options: "cluster_size=512",
        ..DEFAULT
    },
    Plan {
        name: "large",
        size: "300G",
        options: "cluster_size=4k",
        bitmaps: &[
            ("a", "64k"),
            ("fine", "16k"),
            ("coarse", "2G"),
            ("off", "1M"),
        ],
        io: &["write 100G 10M", "write 290G 1M", "write 0 512"],
        ..DEFAULT
    },
];

/// How many images have the default size.
pub const EQUAL: usize = 10;

/// Runs a program to its end.
pub fn output(program: &str, args: &[&str]) -> Output {
    Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed: {e}"))
}

/// Runs a program that has to succeed.
pub fn run(program: &str, args: &[&str]) {
    let out = output(program, args);
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// Creates a qcow2 image.
pub fn create(path: &Path, size: &str, options: &str) {
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", options]);
    }
    args.extend([path.to_str().unwrap(), size]);
    run("qemu-img", &args);
}

/// Adds an empty bitmap.
pub fn add(path: &Path, name: &str, granularity: &str) {
    let path = path.to_str().unwrap();
    let options = ["-f", "qcow2", "-g", granularity];
    run(
        "qemu-img",
        &[&["bitmap", "--add"], &options[..], &[path, name]].concat(),
    );
}

/// The name of an encrypted image with its key.
pub fn luks_options(path: &Path) -> String {
    format!(
        "driver=qcow2,encrypt.key-secret=sec0,file.filename={}",
        path.display()
    )
}

fn make(plan: &Plan, dir: &Path) -> Base {
    let path = dir.join(format!("{}.qcow2", plan.name.replace(' ', "-")));
    let text = path.to_str().unwrap();
    let mut options = plan.options.to_owned();
    let mut option = |text: String| {
        let comma = if options.is_empty() { "" } else { "," };
        options = format!("{options}{comma}{text}");
    };
    if plan.data_file {
        option(format!(
            "data_file={}",
            path.with_extension("raw").display()
        ));
    }
    if plan.luks {
        option("encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10".to_owned());
    }
    if plan.backing {
        let base = dir.join("below.qcow2");
        create(&base, "20M", "");
        option(format!("backing_file={},backing_fmt=qcow2", base.display()));
    }
    let mut args = vec!["create", "-q", "-f", "qcow2", "--object", SECRET];
    if !options.is_empty() {
        args.extend(["-o", &options]);
    }
    args.extend([text, plan.size]);
    run("qemu-img", &args);
    let named = luks_options(&path);
    let image: &[&str] = if plan.luks {
        &["--object", SECRET, "--image-opts", &named]
    } else {
        &["-f", "qcow2", text]
    };
    for (name, granularity) in plan.bitmaps {
        let head = ["bitmap", "--add", "-g", granularity];
        run("qemu-img", &[&head, image, &[name]].concat());
    }
    for (at, io) in plan.io.iter().enumerate() {
        if at == 2 && !plan.bitmaps.is_empty() {
            let head = ["bitmap", "--disable"];
            run("qemu-img", &[&head, image, &["off"]].concat());
        }
        run("qemu-io", &["-f", "qcow2", "-c", io, text]);
    }
    for number in 0..plan.snapshots {
        run("qemu-img", &["snapshot", "-c", &format!("s{number}"), text]);
        run("qemu-io", &["-f", "qcow2", "-c", "write 9M 100k", text]);
    }
    Base {
        name: plan.name,
        path,
        luks: plan.luks,
    }
}

/// All images.
pub fn all(dir: &Path) -> Vec<Base> {
    PLANS.iter().map(|plan| make(plan, dir)).collect()
}

/// Sets and clears flags of the bitmap called `name`.
pub fn set_flags(path: &Path, name: &str, set: u32, clear: u32) {
    let mut bytes = fs::read(path).unwrap();
    let entries = decode::entries(&bytes);
    let entry = entries.iter().find(|e| e.decoded.name == name.as_bytes());
    let entry = entry.expect("the bitmap");
    let flags = (entry.decoded.flags | set) & !clear;
    bytes[entry.at + 12..entry.at + 16].copy_from_slice(&flags.to_be_bytes());
    fs::write(path, bytes).unwrap();
}

/// Clears the autoclear bits, as a program does that knows no bitmaps.
pub fn clear_autoclear(path: &Path) {
    patch(path, 88, &[0; 8]);
}

/// Overwrites bytes of a file.
pub fn patch(path: &Path, at: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let file = fs::File::options().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}
