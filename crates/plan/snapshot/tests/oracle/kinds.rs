//! Images of every kind.

use crate::qemu::{SECRET, img_ok};
use std::path::Path;

/// A kind of image.
#[derive(Clone, Copy)]
pub struct Kind {
    pub name: &'static str,
    pub options: &'static str,
    /// The disk's size in KiB.
    pub size: u64,
    pub encrypted: bool,
    pub bitmaps: bool,
    pub backing: bool,
}

const fn kind(name: &'static str, options: &'static str, size: u64) -> Kind {
    Kind {
        name,
        options,
        size,
        encrypted: false,
        bitmaps: false,
        backing: false,
    }
}

/// All of them.
pub const KINDS: &[Kind] = &[
    kind("v3", "", 4096),
    kind("v2", "compat=0.10", 4096),
    kind("512", "cluster_size=512", 1024),
    kind("512 v2", "cluster_size=512,compat=0.10", 512),
    kind("4k", "cluster_size=4k", 8192),
    kind("2M", "cluster_size=2M", 16384),
    kind("1 bit", "refcount_bits=1,cluster_size=4k", 1024),
    kind("2 bit", "refcount_bits=2,cluster_size=4k", 1024),
    kind("4 bit", "refcount_bits=4,cluster_size=1k", 2048),
    kind("8 bit", "refcount_bits=8", 4096),
    kind("32 bit", "refcount_bits=32,cluster_size=512", 1024),
    kind("64 bit", "refcount_bits=64,cluster_size=1k", 2048),
    kind("extended", "extended_l2=on,cluster_size=16k", 4096),
    kind("extended 64k", "extended_l2=on", 8192),
    kind("zstd", "compression_type=zstd,cluster_size=4k", 2048),
    kind("lazy", "lazy_refcounts=on,cluster_size=8k", 2048),
    kind(
        "preallocated",
        "preallocation=metadata,cluster_size=1k",
        2048,
    ),
    // So many clusters that copies of tables need not be moved afterwards.
    kind(
        "many clusters",
        "preallocation=metadata,cluster_size=4k",
        16384,
    ),
    kind("empty disk", "", 0),
    Kind {
        bitmaps: true,
        ..kind("bitmaps", "cluster_size=4k", 2048)
    },
    Kind {
        backing: true,
        ..kind("backing", "cluster_size=4k", 2048)
    },
    Kind {
        encrypted: true,
        ..kind(
            "luks",
            "encrypt.format=luks,encrypt.key-secret=sec0,encrypt.iter-time=10,cluster_size=4k",
            1024,
        )
    },
];

impl Kind {
    /// Makes the image `name` in `dir`.
    pub fn make(&self, dir: &Path, name: &str) {
        let size = format!("{}k", self.size);
        let mut args = vec!["create", "-q", "-f", "qcow2"];
        if self.encrypted {
            args.extend(["--object", SECRET]);
        }
        if self.backing {
            img_ok(dir, &["create", "-q", "-f", "raw", "base.raw", &size]);
            std::fs::write(dir.join("base.raw"), vec![0x5a; self.size as usize * 1024]).unwrap();
            args.extend(["-b", "base.raw", "-F", "raw"]);
        }
        if !self.options.is_empty() {
            args.extend(["-o", self.options]);
        }
        args.extend([name, &size]);
        img_ok(dir, &args);
        if self.bitmaps {
            img_ok(dir, &["bitmap", "--add", name, "b0"]);
            img_ok(
                dir,
                &["bitmap", "--add", "--disable", "-g", "4k", name, "b1"],
            );
        }
    }

    /// True if it has compressed clusters, too.
    pub const fn compresses(&self) -> bool {
        !self.encrypted
    }
}
