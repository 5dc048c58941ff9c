//! Cases of the commands that read what a guest would, and their images.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use crate::cases::{Case, Promise, case};
use crate::images::Image;
use crate::measure::Program;

const MIB: u64 = 1 << 20;
/// Bytes of the disks that are compared.
const DISK_BYTES: u64 = 4 << 30;
/// Where the host offset of an L1 or L2 entry stands.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// `map` and `compare`.
pub fn all() -> Vec<Case> {
    let promise = |ratio: f64| Promise {
        ratio: Some(ratio),
        memory_over_bytes: Some(48 * MIB),
        ..Promise::default()
    };
    let (map, compare) = (promise(1.0 / 2.0), promise(1.0 / 1.2));
    vec![
        case(
            "map, 64 GiB in a million pieces, JSON",
            Image::Scattered,
            &["map", "--output=json", "scattered.qcow2"],
            map,
        ),
        case(
            "map, 64 GiB in a million pieces",
            Image::Scattered,
            &["map", "scattered.qcow2"],
            map,
        ),
        case(
            "map, 256 GiB, metadata preallocated",
            Image::Full,
            &["map", "full.qcow2"],
            map,
        ),
        case(
            "map, 20,000 clusters of 4 KiB, JSON",
            Image::Fragmented,
            &["map", "--output=json", "fragmented.qcow2"],
            map,
        ),
        case(
            "map, two layers, JSON",
            Image::Overlay,
            &["map", "--output=json", "overlay.qcow2"],
            map,
        ),
        case(
            "compare, 4 GiB raw and qcow2",
            Image::Twins,
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "qcow2",
                "one.raw",
                "two.qcow2",
            ],
            compare,
        ),
        case(
            "compare, 64 GiB in a million pieces with itself",
            Image::Scattered,
            &["compare", "scattered.qcow2", "scattered.qcow2"],
            compare,
        ),
    ]
}

/// 64 GiB of clusters that all exist, none behind its neighbour of the disk: each L2 table backwards.
pub fn make_scattered(qemu_img: &Program) -> Result<()> {
    let name = "scattered.qcow2";
    let options = "preallocation=metadata";
    qemu_img.must(&["create", "-q", "-f", "qcow2", "-o", options, name, "64G"])?;
    let path = qemu_img.folder().join(name);
    let file = File::options().read(true).write(true).open(path)?;
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0)?;
    let tables = u32::from_be_bytes(
        *header
            .get(36..)
            .and_then(<[u8]>::first_chunk)
            .context("L1 size")?,
    );
    let l1 = u64::from_be_bytes(
        *header
            .get(40..)
            .and_then(<[u8]>::first_chunk)
            .context("L1 offset")?,
    );
    let mut table = vec![0; 64 << 10];
    for index in 0..u64::from(tables) {
        let mut entry = [0; 8];
        file.read_exact_at(&mut entry, l1 + index * 8)?;
        let at = u64::from_be_bytes(entry) & OFFSET;
        file.read_exact_at(&mut table, at)?;
        table.as_chunks_mut::<8>().0.reverse();
        file.write_all_at(&table, at)?;
    }
    Ok(())
}

/// 4 GiB of bytes without a pattern, raw and as qcow2.
pub fn make_twins(qemu_img: &Program) -> Result<()> {
    let file = File::create(qemu_img.folder().join("one.raw"))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..DISK_BYTES / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_ne_bytes())?;
    }
    out.flush()?;
    qemu_img.must(&[
        "convert",
        "-f",
        "raw",
        "-O",
        "qcow2",
        "one.raw",
        "two.qcow2",
    ])
}
