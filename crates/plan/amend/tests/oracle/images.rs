//! Images of every kind, made by `qemu-img` and `qemu-io`, and patched where these make none.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// How an image is made.
pub struct Plan {
    pub name: &'static str,
    /// Options of `qemu-img create`.
    pub options: &'static str,
    pub size: &'static str,
    /// It has a backing file full of data.
    pub backing: bool,
    /// It has an external data file.
    pub data_file: bool,
    pub steps: &'static [Step],
    /// What `qemu-img amend -o compat=0.10` makes of it is damaged.
    pub qemu_breaks: bool,
}

/// One step of making an image.
#[derive(Clone, Copy)]
pub enum Step {
    /// A command of `qemu-io`.
    Io(&'static str),
    /// A snapshot of this name.
    Snapshot(&'static str),
    /// A bitmap of this name.
    Bitmap(&'static str),
    /// `qemu-img resize --shrink` to this size.
    Resize(&'static str),
    /// Snapshot table entries lose their extra data: all, or all but 8 bytes.
    StripExtra(u32),
    /// A header extension that nobody knows, of so many bytes.
    UnknownExtension(usize),
    /// Compatible and autoclear feature bits that nobody knows.
    UnknownFeatures,
}

use Step::{Bitmap, Io, Resize, Snapshot, StripExtra, UnknownExtension, UnknownFeatures};

const DATA: Step = Io("write -P 1 0 640k");
const ZEROS: &[Step] = &[
    DATA,
    Io("write -z 64k 64k"),
    Io("write -z -u 256k 128k"),
    Io("write -z -u 1M 512k"),
    Io("write -z 1999k 1k"),
];

const DEFAULT: Plan = Plan {
    name: "v3",
    options: "",
    size: "2000k",
    backing: false,
    data_file: false,
    steps: &[DATA],
    qemu_breaks: false,
};

pub const PLANS: &[Plan] = &[
    DEFAULT,
    Plan {
        name: "v2",
        options: "compat=0.10",
        ..DEFAULT
    },
    Plan {
        name: "v2 snapshots",
        options: "compat=0.10",
        steps: &[
            DATA,
            Snapshot("a"),
            Io("write -P 2 64k 200k"),
            Snapshot("b"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "v2 short snapshots",
        options: "compat=0.10",
        steps: &[
            DATA,
            Snapshot("a"),
            Io("write -P 2 64k 200k"),
            Snapshot("b"),
            StripExtra(0),
        ],
        ..DEFAULT
    },
    Plan {
        name: "v2 snapshots with 8 bytes",
        options: "compat=0.10,cluster_size=512",
        steps: &[DATA, Snapshot("a"), Snapshot("b"), StripExtra(8)],
        ..DEFAULT
    },
    Plan {
        name: "v2 backing unknown extension",
        options: "compat=0.10",
        backing: true,
        ..DEFAULT
    },
    Plan {
        name: "v2 full header",
        options: "compat=0.10,cluster_size=512",
        steps: &[DATA, UnknownExtension(400)],
        ..DEFAULT
    },
    Plan {
        name: "v3 unknown things",
        steps: &[DATA, UnknownExtension(33), UnknownFeatures],
        ..DEFAULT
    },
    Plan {
        name: "zeros",
        steps: ZEROS,
        ..DEFAULT
    },
    Plan {
        name: "zeros 512",
        options: "cluster_size=512",
        steps: ZEROS,
        ..DEFAULT
    },
    Plan {
        name: "zeros over backing",
        backing: true,
        steps: ZEROS,
        ..DEFAULT
    },
    Plan {
        name: "zeros over backing 4k",
        options: "cluster_size=4k",
        backing: true,
        steps: ZEROS,
        ..DEFAULT
    },
    Plan {
        name: "shared table of zeros",
        backing: true,
        steps: &[
            DATA,
            Io("write -z 64k 64k"),
            Io("write -z -u 256k 128k"),
            Snapshot("a"),
            Snapshot("b"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "zeros in snapshots",
        backing: true,
        steps: &[
            Io("write -z -u 0 2000k"),
            Snapshot("a"),
            Io("write -P 5 128k 64k"),
            Snapshot("b"),
            Io("write -P 6 512k 64k"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "zeros only in a snapshot",
        options: "cluster_size=2k",
        steps: &[
            DATA,
            Io("write -z 64k 64k"),
            Snapshot("a"),
            Io("write -P 3 0 2000k"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "zeros over a snapshot's data",
        steps: &[
            DATA,
            Snapshot("a"),
            Io("write -z 64k 128k"),
            Snapshot("b"),
            Io("write -P 7 500k 100k"),
        ],
        qemu_breaks: true,
        ..DEFAULT
    },
    Plan {
        name: "shared zeros, tables apart",
        backing: true,
        steps: &[
            DATA,
            Io("write -z 64k 128k"),
            Snapshot("a"),
            Io("write -P 7 300k 8k"),
        ],
        qemu_breaks: true,
        ..DEFAULT
    },
    Plan {
        name: "preallocated zeros",
        options: "preallocation=metadata",
        steps: &[Io("write -z 0 2000k"), Io("write -P 4 700k 3k")],
        ..DEFAULT
    },
    Plan {
        name: "lazy",
        options: "lazy_refcounts=on",
        ..DEFAULT
    },
    Plan {
        name: "1 bit",
        options: "refcount_bits=1,cluster_size=4k",
        ..DEFAULT
    },
    Plan {
        name: "2 bit snapshots",
        options: "refcount_bits=2,cluster_size=4k",
        steps: &[DATA, Snapshot("a"), Io("write -P 2 64k 64k"), Snapshot("b")],
        ..DEFAULT
    },
    Plan {
        name: "64 bit 512 zeros",
        options: "refcount_bits=64,cluster_size=512,lazy_refcounts=on",
        steps: ZEROS,
        ..DEFAULT
    },
    Plan {
        name: "17 references",
        options: "cluster_size=4k",
        steps: &[
            Io("write -P 2 1M 4k"),
            Snapshot("a"),
            Snapshot("b"),
            Snapshot("c"),
            Snapshot("d"),
            Snapshot("e"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "extended",
        options: "extended_l2=on",
        steps: &[
            DATA,
            Io("write -z 64k 8k"),
            Snapshot("a"),
            Io("write 70k 2k"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "extended zstd 8 bit",
        options: "extended_l2=on,compression_type=zstd,refcount_bits=8",
        ..DEFAULT
    },
    Plan {
        name: "zstd",
        options: "compression_type=zstd",
        steps: ZEROS,
        ..DEFAULT
    },
    Plan {
        name: "zstd compressed",
        options: "compression_type=zstd",
        steps: &[Io("write -c -P 9 0 64k"), Io("write -z 128k 64k")],
        ..DEFAULT
    },
    Plan {
        name: "zstd compressed in a snapshot",
        options: "compression_type=zstd",
        steps: &[
            Io("write -c -P 9 0 64k"),
            Snapshot("a"),
            Io("write -P 8 0 64k"),
        ],
        qemu_breaks: true,
        ..DEFAULT
    },
    Plan {
        name: "compressed",
        options: "cluster_size=4k",
        steps: &[
            Io("write -c -P 9 0 256k"),
            Io("write -z 512k 64k"),
            Snapshot("a"),
            Io("write -P 8 0 64k"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "bitmaps",
        options: "cluster_size=4k",
        steps: &[
            DATA,
            Bitmap("x"),
            Bitmap("y"),
            Io("write -P 8 0 300k"),
            Io("write -z 64k 64k"),
        ],
        ..DEFAULT
    },
    Plan {
        name: "snapshot of another size",
        steps: &[DATA, Snapshot("a"), Resize("1M")],
        ..DEFAULT
    },
    Plan {
        name: "data file",
        options: "lazy_refcounts=on",
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
        name: "data file 512",
        options: "refcount_bits=8,cluster_size=512",
        data_file: true,
        ..DEFAULT
    },
    Plan {
        name: "empty",
        size: "0",
        steps: &[],
        ..DEFAULT
    },
];

/// Runs a program in `dir`; it has to succeed.
fn run(dir: &Path, program: &str, args: &[&str]) {
    let out = Command::new(program)
        .args(args)
        .current_dir(dir)
        .output()
        .unwrap_or_else(|e| panic!("{program} is needed: {e}"));
    assert!(
        out.status.success(),
        "{program} {args:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The backing file of all images that have one.
pub const BACKING: &str = "backing.raw";

/// Makes an image in `dir`.
pub fn make(plan: &Plan, dir: &Path) -> PathBuf {
    let name = plan.name.replace([' ', ',', '\''], "-");
    let path = dir.join(format!("{name}.qcow2"));
    let file = path.to_str().unwrap();
    let mut options = plan.options.to_owned();
    if plan.data_file {
        let comma = if options.is_empty() { "" } else { "," };
        options = format!("{options}{comma}data_file={name}.data");
    }
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    if !options.is_empty() {
        args.extend(["-o", &options]);
    }
    if plan.backing {
        let backing = dir.join(BACKING);
        if !backing.exists() {
            fs::write(backing, vec![0xbb; 2000 << 10]).unwrap();
        }
        args.extend(["-b", BACKING, "-F", "raw"]);
    }
    run(dir, "qemu-img", &[&args[..], &[file, plan.size]].concat());
    for step in plan.steps {
        take(*step, dir, file);
    }
    path
}

fn take(step: Step, dir: &Path, file: &str) {
    match step {
        Io(command) => run(dir, "qemu-io", &["-f", "qcow2", "-c", command, file]),
        Snapshot(name) => run(dir, "qemu-img", &["snapshot", "-c", name, file]),
        Bitmap(name) => run(
            dir,
            "qemu-img",
            &["bitmap", "--add", "-g", "64k", file, name],
        ),
        Resize(size) => run(
            dir,
            "qemu-img",
            &["resize", "-q", "-f", "qcow2", "--shrink", file, size],
        ),
        StripExtra(kept) => patch(file, |bytes| strip_extra(bytes, kept as usize)),
        UnknownExtension(len) => patch(file, |bytes| {
            let start = if be::<4>(bytes, 4) == 2 {
                72
            } else {
                be::<4>(bytes, 100) as usize
            };
            bytes[start..start + 4].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
            bytes[start + 4..start + 8].copy_from_slice(&(len as u32).to_be_bytes());
            let data = start + 8;
            bytes[data..data + len.next_multiple_of(8) + 8].fill(0);
            bytes[data..data + len].fill(b'u');
        }),
        UnknownFeatures => patch(file, |bytes| {
            bytes[87] |= 0xf0;
            bytes[95] |= 0xf0;
        }),
    }
}

fn patch(file: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(file).unwrap();
    change(&mut bytes);
    fs::write(file, bytes).unwrap();
}

/// A big-endian number of `N` bytes.
pub fn be<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + N]
        .iter()
        .fold(0, |n, b| (n << 8) | u64::from(*b))
}

/// Rewrites the snapshot table with `kept` bytes of extra data in each entry.
fn strip_extra(bytes: &mut [u8], kept: usize) {
    let start = be::<8>(bytes, 64) as usize;
    let (mut from, mut table) = (start, Vec::new());
    for _ in 0..be::<4>(bytes, 60) {
        from = from.next_multiple_of(8);
        let mut fixed = bytes[from..from + 40].to_vec();
        let names = (be::<2>(&fixed, 12) + be::<2>(&fixed, 14)) as usize;
        let extra = be::<4>(&fixed, 36) as usize;
        fixed[36..40].copy_from_slice(&(kept as u32).to_be_bytes());
        table.resize(table.len().next_multiple_of(8), 0);
        table.extend(fixed);
        table.extend_from_slice(&bytes[from + 40..from + 40 + kept]);
        from += 40 + extra;
        table.extend_from_slice(&bytes[from..from + names]);
        from += names;
    }
    bytes[start..from].fill(0);
    bytes[start..start + table.len()].copy_from_slice(&table);
}
