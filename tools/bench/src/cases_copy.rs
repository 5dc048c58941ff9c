//! Cases of the commands that make images.

use crate::cases::{Case, Promise, Rival, case, moving};
use crate::images::Image;
use crate::place::Place;

/// What holds for every copy.
const COPY: Promise = moving(1.0);

/// `convert`, `create` and `measure`.
pub fn all() -> Vec<Case> {
    let mut cases = convert();
    cases.extend(compress());
    cases.extend(share());
    cases.extend(small());
    cases
}

/// A copy of what does not compress.
fn copy(name: &'static str, image: Image, place: Place, args: &'static [&'static str]) -> Case {
    Case {
        place,
        output: args.last().copied(),
        slow: place == Place::Memory,
        ..case(name, image, args, COPY)
    }
}

fn convert() -> Vec<Case> {
    const TO_QCOW2: &[&str] = &["convert", "-f", "raw", "-O", "qcow2", "one.raw", "out"];
    const TO_RAW: &[&str] = &["convert", "-f", "qcow2", "-O", "raw", "two.qcow2", "out"];
    const FLATTEN: &[&str] = &["convert", "-f", "qcow2", "-O", "qcow2", "over.qcow2", "out"];
    let (memory, disk) = (Place::Memory, Place::Disk);
    vec![
        copy(
            "convert, 4 GiB raw to qcow2",
            Image::NoiseRaw(4),
            memory,
            TO_QCOW2,
        ),
        copy(
            "convert, 4 GiB qcow2 to raw",
            Image::Noise(4),
            memory,
            TO_RAW,
        ),
        copy(
            "convert, 4 GiB scattered qcow2 to raw",
            Image::NoiseScattered(4),
            memory,
            TO_RAW,
        ),
        copy(
            "convert, 4 GiB in two layers to qcow2",
            Image::NoiseLayers(4),
            memory,
            FLATTEN,
        ),
        copy(
            "convert, 1 GiB raw to qcow2, on disk",
            Image::NoiseRaw(1),
            disk,
            TO_QCOW2,
        ),
        copy(
            "convert, 1 GiB qcow2 to raw, on disk",
            Image::Noise(1),
            disk,
            TO_RAW,
        ),
    ]
}

/// With `-c`, how much faster and smaller is promised.
fn compress() -> Vec<Case> {
    let packed = |name, args, ratio, size| Case {
        slow: true,
        promise: Promise {
            size: Some(size),
            ..moving(ratio)
        },
        ..copy(name, Image::Corpus, Place::Disk, args)
    };
    const ZSTD: &str = "compression_type=zstd";
    vec![
        packed(
            "convert -c, zlib, 192 MiB of text, programs and free space",
            &[
                "convert",
                "-c",
                "-f",
                "raw",
                "-O",
                "qcow2",
                "corpus.raw",
                "out",
            ],
            1.0,
            1.02,
        ),
        packed(
            "convert -c, zstd, the same",
            &[
                "convert",
                "-c",
                "-f",
                "raw",
                "-O",
                "qcow2",
                "-o",
                ZSTD,
                "corpus.raw",
                "out",
            ],
            1.2,
            1.03,
        ),
    ]
}

/// Copies that share blocks, against `qemu-img -C` and against `cp`.
fn share() -> Vec<Case> {
    const COPY_RANGE: &[&str] = &["convert", "-C", "-f", "raw", "-O", "raw", "one.raw", "out"];
    const REFLINK: &[&str] = &[
        "convert",
        "--reflink",
        "-f",
        "raw",
        "-O",
        "raw",
        "one.raw",
        "out",
    ];
    const CP: &[&str] = &["--reflink=always", "one.raw", "out"];
    let image = Image::NoiseRaw(1);
    let shared = |name, place, args| copy(name, image, place, args);
    let against_cp = |name, place| Case {
        rival: Rival::Cp(CP),
        promise: Promise::default(),
        ..shared(name, place, REFLINK)
    };
    vec![
        shared("convert -C, 1 GiB raw, xfs", Place::Xfs, COPY_RANGE),
        shared("convert -C, 1 GiB raw, btrfs", Place::Btrfs, COPY_RANGE),
        against_cp("convert --reflink against cp, 1 GiB raw, xfs", Place::Xfs),
        against_cp(
            "convert --reflink against cp, 1 GiB raw, btrfs",
            Place::Btrfs,
        ),
    ]
}

fn small() -> Vec<Case> {
    let made = |name, args: &'static [&'static str]| Case {
        output: Some("new.qcow2"),
        promise: moving(0.75),
        ..case(name, Image::Nothing, args, COPY)
    };
    vec![
        made(
            "create, 10 GiB qcow2",
            &["create", "-f", "qcow2", "new.qcow2", "10G"],
        ),
        made(
            "create, 64 GiB qcow2, metadata preallocated",
            &[
                "create",
                "-f",
                "qcow2",
                "-o",
                "preallocation=metadata",
                "new.qcow2",
                "64G",
            ],
        ),
        case(
            "measure --size 1T",
            Image::Nothing,
            &["measure", "-O", "qcow2", "--size", "1T"],
            moving(0.75),
        ),
        case(
            "measure, small qcow2",
            Image::Small,
            &["measure", "-O", "qcow2", "small.qcow2"],
            moving(0.75),
        ),
        case(
            "measure, 20,000 clusters of 4 KiB",
            Image::Fragmented,
            &["measure", "-O", "qcow2", "fragmented.qcow2"],
            moving(0.75),
        ),
    ]
}
