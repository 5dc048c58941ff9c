//! Cases of encrypted images.

use crate::cases::{Case, Promise, case, moving};
use crate::images::Image;
use crate::noise::{LUKS, SECRET};
use crate::place::Place;

const COPY: Promise = moving(1.0);

/// The image with its key.
const OPENED: &str = "driver=qcow2,encrypt.key-secret=key,file.filename=luks.qcow2";
/// The same for what both programs make.
const MADE: [&str; 2] = [
    "driver=qcow2,encrypt.key-secret=key,file.filename=first",
    "driver=qcow2,encrypt.key-secret=key,file.filename=out",
];

/// `convert` to LUKS, from it, and from one key to another.
pub fn all() -> Vec<Case> {
    const PROOF: &[&str] = &[
        "compare",
        "--object",
        SECRET,
        "--image-opts",
        MADE[0],
        MADE[1],
    ];
    let copy = |name, place, args: &'static [&'static str]| Case {
        place,
        output: args.last().copied(),
        slow: true,
        ..case(name, Image::NoiseLuks(1), args, COPY)
    };
    const TO: &[&str] = &[
        "convert", "--object", SECRET, "-f", "raw", "-O", "qcow2", "-o", LUKS, "one.raw", "out",
    ];
    const FROM: &[&str] = &[
        "convert",
        "--object",
        SECRET,
        "-O",
        "raw",
        "--image-opts",
        OPENED,
        "out",
    ];
    const OVER: &[&str] = &[
        "convert",
        "--object",
        SECRET,
        "-O",
        "qcow2",
        "-o",
        LUKS,
        "--image-opts",
        OPENED,
        "out",
    ];
    let proven = |case| Case {
        proof: PROOF,
        ..case
    };
    vec![
        proven(copy("convert, 1 GiB raw to LUKS", Place::Memory, TO)),
        copy("convert, 1 GiB LUKS to raw", Place::Memory, FROM),
        proven(copy("convert, 1 GiB LUKS to LUKS", Place::Memory, OVER)),
        proven(copy("convert, 1 GiB raw to LUKS, on disk", Place::Disk, TO)),
        copy("convert, 1 GiB LUKS to raw, on disk", Place::Disk, FROM),
    ]
}
