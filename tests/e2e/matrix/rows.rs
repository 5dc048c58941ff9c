//! The features and the operations of the matrix.

use instar_tests::hidden;

/// The image.
pub const NAME: &str = "disk.qcow2";

/// What is done to each image; `disk.qcow2` is the image.
pub const COLUMNS: [(&str, Prepared, &str); 33] = [
    ("info", No, "info disk.qcow2"),
    ("check", No, "check disk.qcow2"),
    ("check -r leaks", No, "check -r leaks disk.qcow2"),
    ("check -r all", No, "check -r all disk.qcow2"),
    ("snapshot -l", Both, "snapshot -l disk.qcow2"),
    ("snapshot -c", No, "snapshot -c new disk.qcow2"),
    ("snapshot -a", Snapshot, "snapshot -a prepared disk.qcow2"),
    ("snapshot -d", Both, "snapshot -d prepared disk.qcow2"),
    ("resize +", No, "resize disk.qcow2 +3M"),
    ("resize + (b)", Both, "resize disk.qcow2 +3M"),
    ("resize --shrink", No, "resize --shrink disk.qcow2 -1M"),
    (
        "resize metadata",
        No,
        "resize --preallocation=metadata disk.qcow2 +2M",
    ),
    (
        "resize falloc",
        No,
        "resize --preallocation=falloc disk.qcow2 +2M",
    ),
    (
        "resize full",
        No,
        "resize --preallocation=full disk.qcow2 +2M",
    ),
    ("amend compat=0.10", No, "amend -o compat=0.10 disk.qcow2"),
    (
        "amend compat=0.10 (b)",
        Both,
        "amend -o compat=0.10 disk.qcow2",
    ),
    ("amend compat=1.1", No, "amend -o compat=1.1 disk.qcow2"),
    (
        "amend refcount_bits=8",
        No,
        "amend -o refcount_bits=8 disk.qcow2",
    ),
    (
        "amend refcount_bits=1",
        Both,
        "amend -o refcount_bits=1 disk.qcow2",
    ),
    (
        "amend lazy_refcounts",
        No,
        "amend -o lazy_refcounts=on disk.qcow2",
    ),
    ("amend size", No, "amend -o size=10M disk.qcow2"),
    (
        "amend data_file",
        No,
        "amend -o data_file=other.data disk.qcow2",
    ),
    (
        "amend data_file_raw",
        No,
        "amend -o data_file_raw=on disk.qcow2",
    ),
    (
        "amend backing_file",
        No,
        "amend -o backing_file=base.qcow2 disk.qcow2",
    ),
    (
        "amend backing_fmt",
        No,
        "amend -o backing_fmt=qcow2 disk.qcow2",
    ),
    ("bitmap --add", No, "bitmap --add -g 64k disk.qcow2 new"),
    ("bitmap --remove", Both, "bitmap --remove disk.qcow2 b1"),
    ("bitmap --clear", Both, "bitmap --clear disk.qcow2 b1"),
    ("bitmap --enable", Both, "bitmap --enable disk.qcow2 b2"),
    ("bitmap --disable", Both, "bitmap --disable disk.qcow2 b1"),
    ("bitmap --merge", Both, "bitmap --merge b2 disk.qcow2 b1"),
    (
        "bitmap --merge -b",
        Both,
        "bitmap --merge src -b source.qcow2 disk.qcow2 b1",
    ),
    (
        "bitmap (several)",
        Both,
        "bitmap --add --merge b1 --disable -g 128k disk.qcow2 n",
    ),
];

/// What the image has before the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Prepared {
    /// Nothing but its feature.
    No,
    /// A snapshot, which differs from the image.
    Snapshot,
    /// That, two bitmaps, and a neighbour with a bitmap.
    Both,
}
pub use Prepared::{Both, No, Snapshot};

/// An image with one feature.
pub struct Row {
    pub feature: &'static str,
    /// Options of `qemu-img create`.
    pub options: &'static [&'static str],
    pub size: &'static str,
    pub make: Make,
    pub finish: Finish,
    pub keyed: bool,
}

/// What is in the image.
#[derive(Clone, Copy)]
pub enum Make {
    /// Data, holes, and zero clusters where the version has them.
    Filled,
    Compressed,
    Overlay(&'static str),
    /// Snapshots, this many, with data written between them.
    Snapshots(usize),
    /// A snapshot, then another virtual size, then one more.
    Resized,
    Bitmaps,
    BitmapsAndSnapshot,
    ZeroPlain,
    ZeroPreallocated,
    Empty,
    Raw,
    /// The file is in a block device.
    Device,
    RawDevice,
}

/// What is done last, by hand.
#[derive(Clone, Copy)]
pub enum Finish {
    Nothing,
    /// Written to by a program that was killed.
    Dirty,
    Feature(u64, u32, bool),
    Extension,
    BitmapInUse,
    StripSnapshots,
    Leak,
}

const PLAIN: Row = Row {
    feature: "",
    options: &[],
    size: "8M",
    make: Make::Filled,
    finish: Finish::Nothing,
    keyed: false,
};

const fn row(feature: &'static str, options: &'static [&'static str]) -> Row {
    Row {
        feature,
        options,
        ..PLAIN
    }
}

const fn made(feature: &'static str, options: &'static [&'static str], make: Make) -> Row {
    Row {
        feature,
        options,
        make,
        ..PLAIN
    }
}

const fn finished(feature: &'static str, make: Make, finish: Finish) -> Row {
    Row {
        feature,
        make,
        finish,
        ..PLAIN
    }
}

const fn sized(feature: &'static str, make: Make, size: &'static str) -> Row {
    Row {
        feature,
        make,
        size,
        ..PLAIN
    }
}

const fn keyed(feature: &'static str, options: &'static [&'static str]) -> Row {
    Row {
        feature,
        options,
        keyed: true,
        ..PLAIN
    }
}

pub const ROWS: [Row; 51] = [
    row("version 3, 64 KiB clusters", &[]),
    row("version 2", &["compat=0.10"]),
    row(
        "version 2, 4 KiB clusters",
        &["compat=0.10", "cluster_size=4k"],
    ),
    row("512 B clusters", &["cluster_size=512"]),
    row("4 KiB clusters", &["cluster_size=4k"]),
    // The oracle takes half a minute for another width.
    row("2 MiB clusters", &["cluster_size=2M", "refcount_bits=8"]),
    row(
        "refcounts of 1 bit",
        &["refcount_bits=1", "cluster_size=4k"],
    ),
    row(
        "refcounts of 2 bits",
        &["refcount_bits=2", "cluster_size=4k"],
    ),
    row(
        "refcounts of 4 bits",
        &["refcount_bits=4", "cluster_size=4k"],
    ),
    row(
        "refcounts of 8 bits",
        &["refcount_bits=8", "cluster_size=4k"],
    ),
    row(
        "refcounts of 32 bits",
        &["refcount_bits=32", "cluster_size=4k"],
    ),
    row(
        "refcounts of 64 bits",
        &["refcount_bits=64", "cluster_size=4k"],
    ),
    row("extended L2", &["extended_l2=on"]),
    row(
        "extended L2, 16 KiB clusters",
        &["extended_l2=on", "cluster_size=16k"],
    ),
    made("zlib compressed", &[], Make::Compressed),
    made(
        "zstd compressed",
        &["compression_type=zstd"],
        Make::Compressed,
    ),
    row("data file", &["data_file=disk.data"]),
    row(
        "data file, raw",
        &["data_file=disk.data", "data_file_raw=on"],
    ),
    made("backing file, qcow2", &[], Make::Overlay("qcow2")),
    made(
        "backing file, raw",
        &["cluster_size=4k"],
        Make::Overlay("raw"),
    ),
    made("one snapshot", &[], Make::Snapshots(1)),
    made(
        "several snapshots",
        &["cluster_size=4k"],
        Make::Snapshots(3),
    ),
    made(
        "snapshots of another size",
        &["cluster_size=4k"],
        Make::Resized,
    ),
    finished(
        "snapshots, no extra data",
        Make::Snapshots(2),
        Finish::StripSnapshots,
    ),
    Row {
        options: &["compat=0.10"],
        ..finished(
            "version 2, no extra data",
            Make::Snapshots(2),
            Finish::StripSnapshots,
        )
    },
    made("bitmaps", &["cluster_size=4k"], Make::Bitmaps),
    made(
        "bitmaps and a snapshot",
        &["cluster_size=4k"],
        Make::BitmapsAndSnapshot,
    ),
    finished("bitmap in use", Make::Bitmaps, Finish::BitmapInUse),
    finished(
        "bitmaps, autoclear bit clear",
        Make::Bitmaps,
        Finish::Feature(hidden::AUTOCLEAR, 0, false),
    ),
    keyed("LUKS", &["encrypt.format=luks", "cluster_size=4k"]),
    keyed("legacy AES", &["encrypt.format=aes"]),
    keyed(
        "legacy AES, version 2",
        &["encrypt.format=aes", "compat=0.10"],
    ),
    row("lazy refcounts", &["lazy_refcounts=on"]),
    Row {
        finish: Finish::Dirty,
        ..row("dirty bit", &["lazy_refcounts=on"])
    },
    finished(
        "corrupt bit",
        Make::Filled,
        Finish::Feature(hidden::INCOMPATIBLE, 1, true),
    ),
    finished(
        "unknown incompatible bit",
        Make::Filled,
        Finish::Feature(hidden::INCOMPATIBLE, 60, true),
    ),
    finished(
        "unknown compatible bit",
        Make::Filled,
        Finish::Feature(hidden::COMPATIBLE, 60, true),
    ),
    finished(
        "unknown autoclear bit",
        Make::Filled,
        Finish::Feature(hidden::AUTOCLEAR, 60, true),
    ),
    finished("unknown extension", Make::Filled, Finish::Extension),
    made("zero clusters, plain", &[], Make::ZeroPlain),
    made(
        "zero clusters, preallocated",
        &["cluster_size=4k"],
        Make::ZeroPreallocated,
    ),
    row("preallocation=metadata", &["preallocation=metadata"]),
    row(
        "preallocation=full",
        &["preallocation=full", "cluster_size=4k"],
    ),
    finished("leaked cluster", Make::Filled, Finish::Leak),
    sized("size 0", Make::Empty, "0"),
    sized("size no multiple of a cluster", Make::Filled, "8389120"),
    sized("4 TiB", Make::Empty, "4T"),
    made("raw", &[], Make::Raw),
    sized("raw, size no multiple of 64 KiB", Make::Raw, "8389120"),
    made("qcow2 in a block device", &[], Make::Device),
    made("raw block device", &[], Make::RawDevice),
];
