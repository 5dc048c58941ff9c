//! Kinds of qcow2 images on which those are tried that write into an existing one.

// Only tests use it.
#![allow(clippy::unwrap_used)]

use crate::judge::{check, compress, content, frozen, load, ok, save};
use crate::rng::Rng;
use instar_storage::MemStorage;
use std::path::Path;
use tempfile::TempDir;

/// The image's name in its folder.
pub const NAME: &str = "a.qcow2";
/// The name of its external data file, where it has one.
pub const DATA_NAME: &str = "d.raw";
/// Bytes of the disk.
pub const SIZE: u64 = 300 << 10;

/// Options, and what is done to the image: `backing`, `compressed backing`, `snapshot`, `bitmap`, or a command of
/// `qemu-io`.
pub type Kind = (&'static str, &'static [&'static str]);

/// All that the format has.
pub const KINDS: &[Kind] = &[
    ("cluster_size=64k", &["write -P 1 0 100k"]),
    (
        "cluster_size=512",
        &["write -P 1 0 100k", "snapshot", "write -P 2 50k 10k"],
    ),
    ("cluster_size=512,refcount_bits=1", &["write -P 1 3k 10k"]),
    ("cluster_size=512,refcount_bits=64", &[]),
    (
        "cluster_size=4k,compat=0.10",
        &["backing", "write -P 1 0 100k", "snapshot"],
    ),
    (
        "cluster_size=4k,refcount_bits=2",
        &["backing", "write -c -P 5 0 64k", "write -z 80k 40k"],
    ),
    (
        "cluster_size=4k,preallocation=metadata",
        &["write -P 1 0 10k"],
    ),
    (
        "cluster_size=8k,refcount_bits=8",
        &["write -c -P 5 16k 64k", "snapshot", "write -P 6 20k 5k"],
    ),
    (
        "cluster_size=16k,extended_l2=on",
        &[
            "backing",
            "write -P 1 5k 9k",
            "write -z 40k 3k",
            "discard 64k 16k",
        ],
    ),
    (
        "cluster_size=16k,extended_l2=on",
        &["write -c -P 5 32k 16k", "write -P 1 5k 99k", "snapshot"],
    ),
    (
        "cluster_size=32k,lazy_refcounts=on",
        &[
            "compressed backing",
            "write -z 0 200k",
            "snapshot",
            "write -P 3 64k 32k",
        ],
    ),
    ("cluster_size=2M", &["backing", "write -P 1 5k 9k"]),
    ("cluster_size=4k", &["compressed backing"]),
    (
        "cluster_size=4k,data_file=d.raw",
        &["write -P 1 0 10k", "write -z 20k 8k"],
    ),
    (
        "cluster_size=4k,data_file=d.raw,data_file_raw=on",
        &["write -P 1 0 10k"],
    ),
    (
        "cluster_size=16k,extended_l2=on,data_file=d.raw",
        &["backing", "write -P 1 0 10k"],
    ),
    (
        "cluster_size=4k,compression_type=zstd",
        &["write -c -P 5 0 64k", "snapshot"],
    ),
    (
        "cluster_size=4k",
        &["backing", "bitmap", "write -P 1 0 40k"],
    ),
];

/// What differs where the power fails.
pub const CUT: &[Kind] = &[
    (
        "cluster_size=4k",
        &[
            "backing",
            "write -P 1 0 20k",
            "snapshot",
            "write -P 2 4k 8k",
        ],
    ),
    (
        "cluster_size=512,refcount_bits=64",
        &["write -P 1 0 20k", "snapshot"],
    ),
    (
        "cluster_size=16k,extended_l2=on",
        &["backing", "write -c -P 5 0 32k", "write -P 1 33k 5k"],
    ),
    (
        "cluster_size=4k",
        &["write -c -P 5 0 32k", "write -z 32k 16k"],
    ),
    ("cluster_size=64k", &["backing", "write -P 1 0 100k"]),
];

/// Makes an image: `what` is applied in order.
pub fn make(dir: &Path, options: &str, what: &[&str]) {
    let pattern: Vec<u8> = (0..250_u32 << 10)
        .map(|n| (n / 512 % 251) as u8 + 1)
        .collect();
    // It ends inside a sector.
    std::fs::write(dir.join("base.raw"), &pattern[..pattern.len() - 100]).unwrap();
    compress(dir, "base.raw", "base.qcow2");
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

/// Where a random request goes: its first byte and how many, whole sectors, few or many.
pub fn range(rng: &mut Rng) -> (u64, u64) {
    let at = rng.below(SIZE / 512) * 512;
    let most = if rng.below(4) == 0 {
        100 << 10
    } else {
        9 << 10
    };
    let len = (rng.below(most) / 512 * 512 + 512).min(SIZE - at);
    (at, len)
}

/// An image in a folder of its own, and its files in memory.
#[derive(Debug)]
pub struct Made {
    folder: TempDir,
    kind: Kind,
    /// The image file.
    pub image: MemStorage,
    /// Its data file, where it has one.
    pub data: Option<MemStorage>,
    old: Option<Vec<u8>>,
}

impl Made {
    /// Makes an image of a kind.
    pub fn new(kind: &Kind) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let (options, what) = *kind;
        make(dir, options, what);
        let data = options.contains("data_file");
        Self {
            old: what.contains(&"snapshot").then(|| frozen(dir, NAME)),
            image: load(&dir.join(NAME)),
            data: data.then(|| load(&dir.join(DATA_NAME))),
            kind: *kind,
            folder,
        }
    }

    /// Its folder.
    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// What a guest read of it when it was made, or judged for the last time.
    pub fn content(&self) -> Vec<u8> {
        content(self.dir(), NAME)
    }

    /// Judges what the files are now: sound without leaks, with `model` as content, and the snapshot as it was.
    pub fn judge(&self, model: &[u8]) {
        let (dir, kind) = (self.dir(), &self.kind);
        save(&self.image, &dir.join(NAME));
        if let Some(data) = &self.data {
            save(data, &dir.join(DATA_NAME));
        }
        assert_eq!(check(dir, NAME), 0, "{kind:?}");
        let now = self.content();
        let differs = now.iter().zip(model).position(|(a, b)| a != b);
        assert_eq!((differs, now.len()), (None, model.len()), "{kind:?}");
        if let Some(old) = &self.old {
            assert!(*old == frozen(dir, NAME), "snapshot of {kind:?}");
        }
        if let (Some(data), true) = (&self.data, kind.0.contains("data_file_raw")) {
            let raw = data.to_vec();
            assert!(raw[..model.len()] == *model, "raw file of {kind:?}");
        }
    }
}
