//! Every header field out of range, and headers cut at every byte: `info` and
//! `check` end with qemu-img's exit code and message.

use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::places::{EXT_FEATURES, HEADER, Image};
use instar_tests::scratch::Scratch;

use crate::Outcome;

/// The values of one field of `len` bytes.
fn values(old: u64, len: usize, cluster: u64, file: u64) -> Vec<u64> {
    let top = u64::MAX >> (64 - 8 * len);
    let mut all = vec![
        0,
        1,
        2,
        3,
        5,
        8,
        9,
        21,
        22,
        63,
        64,
        65,
        72,
        104,
        105,
        255,
        512,
        1023,
        1024,
        65_536,
        65_537,
        old ^ 1,
        old + 1,
        old << 1,
        old + 512,
        old + cluster,
        file - 1,
        file,
        file + cluster,
        file.next_multiple_of(cluster),
        1 << 30,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        1 << 40,
        (1 << 56) - 512,
        1 << 56,
        1 << 62,
        i64::MAX as u64,
        (1 << 63) - 512,
        1 << 63,
        u64::MAX - 511,
        u64::MAX,
    ];
    all.iter_mut().for_each(|value| *value &= top);
    all.sort_unstable();
    all.dedup();
    all
}

/// Overwrites some fields of an image with every value.
fn fields(name: &str, options: &[&str], range: std::ops::Range<usize>) -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "whole.qcow2", options)?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let (cluster, file) = (whole.cluster_size()? as u64, whole.len() as u64);
    let mut bench = Bench::new(&scratch);
    for (field, at, len) in &HEADER[range] {
        for value in values(whole.get(*at, *len)?, *len, cluster, file) {
            let mut changed = whole.clone();
            changed.set(*at, *len, value)?;
            changed.save(&scratch, "damaged.qcow2")?;
            let label = format!("{name}: {field} = {value:#x}");
            bench.same(&label, &["info", "damaged.qcow2"])?;
            bench.same(&label, &["check", "damaged.qcow2"])?;
        }
    }
    bench.finish()
}

#[test]
fn magic_version_backing() -> Outcome {
    fields("v3", &["cluster_size=4k"], 0..4)
}

#[test]
fn cluster_bits_size_encryption() -> Outcome {
    fields("v3", &["cluster_size=4k"], 4..7)
}

#[test]
fn l1_size_and_offset() -> Outcome {
    fields("v3", &["cluster_size=4k"], 7..9)
}

#[test]
fn refcount_table_place_and_size() -> Outcome {
    fields("v3", &["cluster_size=4k"], 9..11)
}

#[test]
fn snapshots_count_and_offset() -> Outcome {
    fields("v3", &["cluster_size=4k"], 11..13)
}

#[test]
fn features_refcount_order_header_length() -> Outcome {
    fields("v3", &["cluster_size=4k"], 16..19)
}

#[test]
fn version_2_fields() -> Outcome {
    fields("v2", &["compat=0.10", "cluster_size=64k"], 4..5)?;
    fields("v2", &["compat=0.10", "cluster_size=4k"], 7..11)
}

#[test]
fn small_cluster_fields() -> Outcome {
    fields("512", &["cluster_size=512"], 7..11)
}

/// Cuts an image after each of its first bytes.
fn cut(options: &[&str]) -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "whole.qcow2", options)?;
    let whole = scratch.read("whole.qcow2")?;
    let mut bench = Bench::new(&scratch);
    for len in 0..=600 {
        // The extensions end near here; past them each byte is like the next.
        if len > 120 && len % 31 != 0 && len != 511 && len != 513 {
            continue;
        }
        scratch.write("cut.qcow2", &whole[..len])?;
        bench.same("cut", &["info", "cut.qcow2"])?;
        bench.same("cut", &["check", "cut.qcow2"])?;
    }
    bench.finish()
}

#[test]
fn truncated_at_every_byte_of_the_header() -> Outcome {
    cut(&[])
}

#[test]
fn truncated_at_every_byte_of_a_version_2_header() -> Outcome {
    cut(&["compat=0.10"])
}

#[test]
fn truncated_after_the_header() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "whole.qcow2", &["cluster_size=4k"])?;
    let whole = scratch.read("whole.qcow2")?;
    let mut bench = Bench::new(&scratch);
    for len in (4096..whole.len().min(100_000)).step_by(2048 + 511) {
        scratch.write("cut.qcow2", &whole[..len])?;
        bench.same_both(&format!("{len} bytes"), "cut.qcow2")?;
    }
    bench.finish()
}

#[test]
fn header_extensions() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "whole.qcow2", &[])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let (names, _) = whole.extension(EXT_FEATURES)?;
    let mut bench = Bench::new(&scratch);
    for magic in [
        0,
        1,
        0x2385_2875,
        0x0537_be77,
        0xe279_2aca,
        0x6803_f857,
        0x4441_5441,
        0xffff_ffff,
    ] {
        for len in [
            0,
            1,
            7,
            8,
            15,
            16,
            17,
            24,
            48,
            384,
            1024,
            4096,
            65_536,
            0x7fff_ffff,
            0xffff_ffff,
        ] {
            let mut changed = whole.clone();
            changed.set(names - 8, 4, magic)?;
            changed.set(names - 4, 4, len)?;
            changed.save(&scratch, "ext.qcow2")?;
            let label = format!("extension {magic:#x} of {len} bytes");
            bench.same(&label, &["info", "ext.qcow2"])?;
            bench.same(&label, &["check", "ext.qcow2"])?;
        }
    }
    bench.finish()
}
