//! Undamaged images of every kind, made by `qemu-img` and `qemu-io`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The secret of the encrypted image.
pub const SECRET: &str = "secret,id=sec0,data=example";

/// An image to be damaged.
pub struct Base {
    pub name: &'static str,
    #[allow(dead_code)]
    pub path: PathBuf,
    pub bytes: Vec<u8>,
    #[allow(dead_code)]
    pub luks: bool,
    /// Snapshots, named snap0 and so on.
    #[allow(dead_code)]
    pub snapshots: u32,
}

struct Plan {
    name: &'static str,
    options: &'static str,
    size: &'static str,
    io: &'static [&'static str],
    snapshots: u32,
    bitmaps: u32,
    /// Bitmaps are marked "in use", so that their damage does not stop the open.
    in_use: bool,
    compressed: bool,
    data_file: bool,
    luks: bool,
}

const IO: &[&str] = &[
    "write 0 256k",
    "write 1M 64k",
    "write -z 1216k 64k",
    "write 2M 100k",
];

const DEFAULT: Plan = Plan {
    name: "v3",
    options: "",
    size: "4M",
    io: IO,
    snapshots: 0,
    bitmaps: 0,
    in_use: false,
    compressed: false,
    data_file: false,
    luks: false,
};

const PLANS: &[Plan] = &[
    DEFAULT,
    Plan {
        name: "v2",
        options: "compat=0.10",
        snapshots: 2,
        ..DEFAULT
    },
    Plan {
        name: "v3 snapshots",
        snapshots: 3,
        ..DEFAULT
    },
    Plan {
        name: "512",
        options: "cluster_size=512",
        snapshots: 1,
        ..DEFAULT
    },
    Plan {
        name: "512 compressed",
        options: "cluster_size=512",
        compressed: true,
        ..DEFAULT
    },
    Plan {
        name: "1k 64 bit",
        options: "cluster_size=1k,refcount_bits=64",
        snapshots: 2,
        ..DEFAULT
    },
    Plan {
        name: "4k 32 bit",
        options: "cluster_size=4k,refcount_bits=32",
        snapshots: 1,
        bitmaps: 2,
        in_use: true,
        ..DEFAULT
    },
    Plan {
        name: "2M",
        options: "cluster_size=2M",
        snapshots: 1,
        ..DEFAULT
    },
    Plan {
        name: "1 bit",
        options: "refcount_bits=1",
        ..DEFAULT
    },
    Plan {
        name: "1 bit 512",
        options: "refcount_bits=1,cluster_size=512",
        ..DEFAULT
    },
    Plan {
        name: "2 bit",
        options: "refcount_bits=2",
        snapshots: 2,
        ..DEFAULT
    },
    Plan {
        name: "4 bit",
        options: "refcount_bits=4,cluster_size=4k",
        snapshots: 3,
        ..DEFAULT
    },
    Plan {
        name: "8 bit",
        options: "refcount_bits=8",
        snapshots: 2,
        ..DEFAULT
    },
    Plan {
        name: "64 bit",
        options: "refcount_bits=64",
        snapshots: 2,
        ..DEFAULT
    },
    Plan {
        name: "extended",
        options: "extended_l2=on",
        snapshots: 1,
        io: &[
            "write 0 256k",
            "write 1M 64k",
            "write 1090k 2k",
            "write -z 4k 8k",
        ],
        ..DEFAULT
    },
    Plan {
        name: "extended 16k",
        options: "extended_l2=on,cluster_size=16k",
        compressed: true,
        ..DEFAULT
    },
    Plan {
        name: "compressed",
        compressed: true,
        snapshots: 1,
        ..DEFAULT
    },
    Plan {
        name: "zstd",
        options: "compression_type=zstd,cluster_size=4k",
        compressed: true,
        ..DEFAULT
    },
    Plan {
        name: "bitmaps",
        bitmaps: 2,
        ..DEFAULT
    },
    Plan {
        name: "bitmaps in use",
        bitmaps: 3,
        in_use: true,
        snapshots: 1,
        ..DEFAULT
    },
    Plan {
        name: "data file",
        data_file: true,
        ..DEFAULT
    },
    Plan {
        name: "data file extended",
        options: "extended_l2=on,cluster_size=16k",
        data_file: true,
        ..DEFAULT
    },
    Plan {
        name: "raw data file",
        options: "data_file_raw=on,cluster_size=4k",
        data_file: true,
        ..DEFAULT
    },
    Plan {
        name: "preallocated",
        options: "preallocation=metadata,cluster_size=512",
        io: &[],
        ..DEFAULT
    },
    Plan {
        name: "luks",
        luks: true,
        io: &[],
        ..DEFAULT
    },
    Plan {
        name: "aes",
        options: "encrypt.format=aes,encrypt.key-secret=sec0",
        io: &[],
        ..DEFAULT
    },
    Plan {
        name: "empty",
        size: "0",
        io: &[],
        ..DEFAULT
    },
    Plan {
        name: "odd size",
        size: "1000000",
        io: &["write 0 100k"],
        options: "cluster_size=512",
        ..DEFAULT
    },
];

/// Runs a program that has to succeed.
fn run(program: &str, args: &[&str]) {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

fn write_compressed(plan: &Plan, dir: &Path, path: &str) {
    let source = dir.join("source.raw");
    let bytes: Vec<u8> = (0..4_u32 << 20)
        .map(|at| (at / 977 * (at % 61)) as u8)
        .collect();
    fs::write(&source, bytes).unwrap();
    let mut args = vec!["convert", "-c", "-f", "raw", "-O", "qcow2"];
    if !plan.options.is_empty() {
        args.extend(["-o", plan.options]);
    }
    args.extend([source.to_str().unwrap(), path]);
    run("qemu-img", &args);
    run("qemu-io", &["-f", "qcow2", "-c", "write 512k 128k", path]);
}

fn create(plan: &Plan, dir: &Path, path: &str) {
    let mut options = plan.options.to_owned();
    if plan.data_file {
        let data = dir.join(format!("{}.data", plan.name.replace(' ', "-")));
        let comma = if options.is_empty() { "" } else { "," };
        options = format!("{options}{comma}data_file={}", data.display());
    }
    if plan.luks {
        options = "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10".to_owned();
    }
    let mut args = vec!["create", "-q", "-f", "qcow2", "--object", SECRET];
    if !options.is_empty() {
        args.extend(["-o", &options]);
    }
    args.extend([path, plan.size]);
    run("qemu-img", &args);
    for command in plan.io {
        run("qemu-io", &["-f", "qcow2", "-c", command, path]);
    }
}

/// Sets the "in use" flag of each bitmap.
fn mark_in_use(bytes: &mut [u8]) {
    let places = crate::damage::Places::of(bytes);
    for entry in places.bitmaps {
        bytes[entry as usize + 15] |= 1;
    }
}

fn make(plan: &Plan, dir: &Path) -> Base {
    let path = dir.join(format!("{}.qcow2", plan.name.replace(' ', "-")));
    let text = path.to_str().unwrap();
    if plan.compressed {
        write_compressed(plan, dir, text)
    } else {
        create(plan, dir, text)
    }
    for number in 0..plan.bitmaps {
        run(
            "qemu-img",
            &[
                "bitmap",
                "--add",
                "-g",
                "64k",
                text,
                &format!("bitmap{number}"),
            ],
        );
    }
    if plan.bitmaps > 0 {
        run("qemu-io", &["-f", "qcow2", "-c", "write 3M 64k", text]);
    }
    for number in 0..plan.snapshots {
        run(
            "qemu-img",
            &["snapshot", "-c", &format!("snap{number}"), text],
        );
        run(
            "qemu-io",
            &[
                "-f",
                "qcow2",
                "-c",
                &format!("write {}k 64k", 64 * number),
                text,
            ],
        );
    }
    let mut bytes = fs::read(&path).unwrap();
    if plan.in_use {
        mark_in_use(&mut bytes);
        fs::write(&path, &bytes).unwrap();
    }
    Base {
        name: plan.name,
        path,
        bytes,
        luks: plan.luks || plan.name == "aes",
        snapshots: plan.snapshots,
    }
}

/// All images.
pub fn all(dir: &Path) -> Vec<Base> {
    PLANS.iter().map(|plan| make(plan, dir)).collect()
}
