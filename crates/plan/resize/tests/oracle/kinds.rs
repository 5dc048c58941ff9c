//! Images of every kind.

use crate::qemu::{img_ok, io};
use std::path::Path;

/// What an image stands on.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Below {
    Nothing,
    /// A qcow2 image with standard clusters.
    Qcow2,
    /// One whose clusters are compressed, with zlib or zstd.
    Compressed(&'static str),
    /// A raw file.
    Raw,
    /// An overlay over a raw file.
    Chain,
}

/// A kind of image.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub options: &'static str,
    /// Bytes of a cluster.
    pub cluster: u64,
    pub below: Below,
    pub bitmaps: bool,
    pub data_file: bool,
    /// Snapshots may be taken: refcounts of more than one bit, no data file.
    pub snapshots: bool,
}

const fn kind(name: &'static str, options: &'static str, cluster: u64) -> Kind {
    Kind {
        name,
        options,
        cluster,
        below: Below::Nothing,
        bitmaps: false,
        data_file: false,
        snapshots: true,
    }
}

const fn over(name: &'static str, options: &'static str, cluster: u64, below: Below) -> Kind {
    Kind {
        below,
        ..kind(name, options, cluster)
    }
}

const fn outside(name: &'static str, options: &'static str, cluster: u64) -> Kind {
    Kind {
        data_file: true,
        snapshots: false,
        ..kind(name, options, cluster)
    }
}

/// All of them.
pub const KINDS: &[Kind] = &[
    kind("v3", "", 65536),
    kind("v2", "compat=0.10", 65536),
    kind("512", "cluster_size=512", 512),
    kind("512-v2", "cluster_size=512,compat=0.10", 512),
    kind("4k", "cluster_size=4k", 4096),
    kind("2M", "cluster_size=2M", 2 << 20),
    Kind {
        snapshots: false,
        ..kind("1-bit", "refcount_bits=1,cluster_size=4k", 4096)
    },
    kind("4-bit", "refcount_bits=4,cluster_size=1k", 1024),
    kind("64-bit", "refcount_bits=64,cluster_size=1k", 1024),
    kind("extended", "extended_l2=on,cluster_size=16k", 16384),
    kind("extended-64k", "extended_l2=on", 65536),
    kind("zstd", "compression_type=zstd,cluster_size=4k", 4096),
    kind("lazy", "lazy_refcounts=on,cluster_size=8k", 8192),
    kind(
        "preallocated",
        "preallocation=metadata,cluster_size=1k",
        1024,
    ),
    over("over-qcow2", "", 65536, Below::Qcow2),
    over("over-qcow2-4k", "cluster_size=4k", 4096, Below::Qcow2),
    over("over-v2", "compat=0.10,cluster_size=4k", 4096, Below::Qcow2),
    over("over-raw", "cluster_size=16k", 16384, Below::Raw),
    over("over-chain", "cluster_size=32k", 32768, Below::Chain),
    over("over-zlib", "", 65536, Below::Compressed("zlib")),
    over("over-zstd", "", 65536, Below::Compressed("zstd")),
    over("extended-over", "extended_l2=on", 65536, Below::Qcow2),
    over(
        "extended-over-16k",
        "extended_l2=on,cluster_size=16k",
        16384,
        Below::Raw,
    ),
    Kind {
        bitmaps: true,
        ..kind("bitmaps", "cluster_size=4k", 4096)
    },
    Kind {
        bitmaps: true,
        ..kind("bitmaps-512", "cluster_size=512", 512)
    },
    outside("data-file", "", 65536),
    outside("data-file-4k", "cluster_size=4k", 4096),
    outside("data-file-raw", "data_file_raw=on,cluster_size=4k", 4096),
    outside(
        "data-file-extended",
        "extended_l2=on,cluster_size=16k",
        16384,
    ),
    Kind {
        below: Below::Qcow2,
        ..outside("data-file-over", "cluster_size=16k", 16384)
    },
];

/// Bytes of the image that others stand on.
pub const BELOW_BYTES: u64 = (3 << 20) + 1536;

impl Kind {
    /// Its options start a version 2 image.
    pub fn is_v2(&self) -> bool {
        self.options.contains("0.10")
    }

    /// Its L2 entries are extended.
    pub fn is_extended(&self) -> bool {
        self.options.contains("extended")
    }

    /// Makes an image of `size` bytes called `a.qcow2`, its data file `a.data`, and what it stands on.
    pub fn make(&self, dir: &Path, size: u64) {
        self.make_below(dir);
        let mut options = self.options.to_owned();
        if self.data_file {
            let comma = if options.is_empty() { "" } else { "," };
            options = format!("{options}{comma}data_file=a.data");
        }
        let size = size.to_string();
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if !options.is_empty() {
            args.extend(["-o", &options]);
        }
        match self.below {
            Below::Nothing => {}
            Below::Raw => args.extend(["-b", "base.raw", "-F", "raw"]),
            _ => args.extend(["-b", "base.qcow2", "-F", "qcow2"]),
        }
        args.extend(["a.qcow2", &size]);
        img_ok(dir, &args);
    }

    fn make_below(&self, dir: &Path) {
        if self.below == Below::Nothing {
            return;
        }
        let bytes: Vec<u8> = (0..BELOW_BYTES)
            .map(|at| (at / 977 * (at % 61) + 1) as u8)
            .collect();
        std::fs::write(dir.join("base.raw"), bytes).unwrap();
        let convert = ["convert", "-f", "raw", "-O", "qcow2"];
        let names = ["base.raw", "base.qcow2"];
        match self.below {
            Below::Nothing | Below::Raw => {}
            Below::Qcow2 => drop(img_ok(dir, &[&convert[..], &names].concat())),
            Below::Compressed(how) => {
                let how = format!("compression_type={how}");
                img_ok(dir, &[&convert[..], &["-c", "-o", &how], &names].concat());
            }
            Below::Chain => {
                let args = ["create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw"];
                img_ok(
                    dir,
                    &[&args[..], &["-o", "cluster_size=4k", "base.qcow2"]].concat(),
                );
                io(dir, "base.qcow2", "write -P 9 100k 700k");
                io(dir, "base.qcow2", "write -z 1M 100k");
            }
        }
    }
}
