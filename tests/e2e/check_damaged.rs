//! `check` (and `info`) on images whose tables were overwritten at the places
//! that the specification names.

use anyhow::Result;
use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::places::{EXT_BITMAPS, EXT_CRYPTO, Image};
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;

use crate::Outcome;

/// One overwritten number: where, its length in bytes, and what is written.
type Patch = (usize, usize, u64);

/// Writes each patch into a fresh copy and compares `check`, every third time
/// as JSON too.
fn patched(bench: &mut Bench, scratch: &Scratch, whole: &Image, patches: &[Patch]) -> Outcome {
    for (index, (at, len, value)) in patches.iter().enumerate() {
        let mut changed = whole.clone();
        changed.set(*at, *len, *value)?;
        changed.save(scratch, "damaged.qcow2")?;
        let label = format!("{len} bytes at {at:#x} = {value:#x}");
        bench.same(&label, &["check", "damaged.qcow2"])?;
        if index % 3 == 0 && patches.len() > 1 {
            bench.same(&label, &["check", "--output=json", "damaged.qcow2"])?;
        }
    }
    Ok(())
}

/// Values for a table entry of 8 bytes that is `old` now: other clusters, other
/// flags, past the end, reserved bits.
fn entry_values(whole: &Image, old: u64, rng: &mut Rng) -> Result<Vec<u64>> {
    let cluster = whole.cluster_size()? as u64;
    let clusters = whole.clusters()? as u64;
    Ok(vec![
        0,
        old ^ (1 << 63),
        old ^ (1 << 62),
        old ^ 1,
        old | 2,
        old | 0x100,
        old | (1 << 56),
        old | (1 << 61),
        old + 512,
        old + cluster,
        (1 << 63) | cluster,
        (1 << 63) | (clusters * cluster),
        (1 << 63) | ((clusters + 1) * cluster),
        (1 << 63) | (rng.below(clusters) * cluster),
        0x00ff_ffff_ffff_fe00,
        0x8000_0000_0000_0000,
        u64::MAX,
        rng.next_u64(),
    ])
}

/// Damages some of the places, each with some of the values.
fn damage_entries(name: &str, options: &[&str], places: Places, cases: usize) -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test(name);
    image::create_rich(&scratch, "whole.qcow2", options)?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let found = places(&whole)?;
    let mut patches = Vec::new();
    for _ in 0..cases {
        let at = *rng.pick(&found);
        let values = entry_values(&whole, whole.get(at, 8)?, &mut rng)?;
        patches.push((at, 8, *rng.pick(&values)));
    }
    let mut bench = Bench::new(&scratch);
    patched(&mut bench, &scratch, &whole, &patches)?;
    bench.finish()
}

/// Finds the places of one kind in an image.
type Places = fn(&Image) -> Result<Vec<usize>>;

fn l1_used(whole: &Image) -> Result<Vec<usize>> {
    whole.l1_entries()
}

fn refcount_table_start(whole: &Image) -> Result<Vec<usize>> {
    let mut entries = whole.refcount_table()?;
    entries.truncate(6);
    Ok(entries)
}

#[test]
fn l1_entries() -> Outcome {
    damage_entries("l1", &[], l1_used, 20)?;
    damage_entries("l1 512", &["cluster_size=512"], l1_used, 20)
}

#[test]
fn l1_entries_version_2() -> Outcome {
    damage_entries("l1 v2", &["compat=0.10"], l1_used, 20)
}

#[test]
fn l2_entries_standard() -> Outcome {
    damage_entries("l2", &[], Image::used_l2_entries, 30)?;
    damage_entries("l2 4k", &["cluster_size=4k"], Image::used_l2_entries, 20)
}

#[test]
fn l2_entries_version_2() -> Outcome {
    damage_entries("l2 v2", &["compat=0.10"], Image::used_l2_entries, 20)
}

#[test]
fn l2_entries_unused() -> Outcome {
    damage_entries("l2 unused", &["cluster_size=4k"], Image::l2_entries, 20)
}

#[test]
fn l2_entries_extended() -> Outcome {
    damage_entries("l2 ext", &["extended_l2=on"], Image::used_l2_entries, 30)
}

#[test]
fn l2_subcluster_bitmaps() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("subclusters");
    image::create_rich(&scratch, "whole.qcow2", &["extended_l2=on"])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let used = whole.used_l2_entries()?;
    let all = whole.l2_entries()?;
    let mut patches = Vec::new();
    for value in [
        0,
        1,
        1 << 32,
        0x1_0000_0001,
        u64::MAX,
        0xffff_ffff,
        0xffff_ffff << 32,
    ] {
        patches.push((rng.pick(&used) + 8, 8, value));
        patches.push((rng.pick(&all) + 8, 8, value));
        patches.push((rng.pick(&used) + 8, 8, rng.next_u64()));
    }
    let mut bench = Bench::new(&scratch);
    patched(&mut bench, &scratch, &whole, &patches)?;
    bench.finish()
}

#[test]
fn l2_entries_with_a_data_file() -> Outcome {
    for raw in ["data_file_raw=off", "data_file_raw=on"] {
        let scratch = Scratch::new()?;
        let mut rng = Rng::for_test(raw);
        image::create_filled(&scratch, "whole.qcow2", &["data_file=whole.data", raw])?;
        let whole = Image::load(&scratch, "whole.qcow2")?;
        let used = whole.used_l2_entries()?;
        let mut patches = Vec::new();
        for _ in 0..20 {
            let at = *rng.pick(&used);
            let values = entry_values(&whole, whole.get(at, 8)?, &mut rng)?;
            patches.push((at, 8, *rng.pick(&values)));
        }
        let mut bench = Bench::new(&scratch);
        patched(&mut bench, &scratch, &whole, &patches)?;
        bench.finish()?;
    }
    Ok(())
}

#[test]
fn compressed_cluster_descriptors() -> Outcome {
    for list in [
        vec![],
        vec!["cluster_size=4k"],
        vec!["cluster_size=512"],
        vec!["cluster_size=2M"],
        vec!["compression_type=zstd"],
        vec!["extended_l2=on"],
    ] {
        let scratch = Scratch::new()?;
        let mut rng = Rng::for_test(&format!("compressed {list:?}"));
        image::create_compressed(&scratch, "whole.qcow2", &list)?;
        let whole = Image::load(&scratch, "whole.qcow2")?;
        let used = whole.used_l2_entries()?;
        // Where the offset ends and the count of sectors begins.
        let split = 62 - (whole.field("cluster_bits")? - 8);
        let mut patches = Vec::new();
        for _ in 0..14 {
            let at = *rng.pick(&used);
            let (old, random) = (whole.get(at, 8)?, rng.next_u64());
            let value = *rng.pick(&[
                old ^ (1 << 63),
                old ^ (1 << 62),
                old | (1 << split),
                old | (0x3fff_ffff_ffff_ffff >> split << split),
                old | ((1 << split) - 1),
                old + 1,
                old + 511,
                (1 << 62) | (whole.len() as u64 - 1),
                (1 << 62) | whole.len() as u64,
                (1 << 62) | (1 << split) | (whole.len() as u64 - 512),
                random | (1 << 62),
            ]);
            patches.push((at, 8, value));
        }
        let mut bench = Bench::new(&scratch);
        patched(&mut bench, &scratch, &whole, &patches)?;
        bench.finish()?;
    }
    Ok(())
}

#[test]
fn refcount_table_entries() -> Outcome {
    damage_entries("rt", &[], refcount_table_start, 20)?;
    damage_entries("rt 512", &["cluster_size=512"], refcount_table_start, 25)
}

/// Overwrites refcounts of one width.
fn refcounts_of_width(bits: u32) -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test(&format!("refcounts {bits}"));
    let width = format!("refcount_bits={bits}");
    let options = [width.as_str(), "cluster_size=4k"];
    if bits == 1 {
        // Snapshots share clusters, which one bit cannot count.
        image::create_filled(&scratch, "whole.qcow2", &options)?;
    } else {
        image::create_rich(&scratch, "whole.qcow2", &options)?;
    }
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let mut bench = Bench::new(&scratch);
    let most = u64::MAX >> (64 - bits);
    for _ in 0..20 {
        let mut changed = whole.clone();
        let mut label = width.clone();
        for _ in 0..=rng.below(3) {
            let cluster = rng.below(whole.clusters()? as u64);
            let value = *rng.pick(&[0, 1, 2 & most, 3 & most, most, most >> 1]);
            changed.set_refcount(usize::try_from(cluster)?, value)?;
            label.push_str(&format!(", cluster {cluster} = {value}"));
        }
        changed.save(&scratch, "damaged.qcow2")?;
        bench.same_check(&label, "damaged.qcow2")?;
    }
    bench.finish()
}

#[test]
fn refcounts_of_1_bit() -> Outcome {
    refcounts_of_width(1)
}

#[test]
fn refcounts_of_2_bits() -> Outcome {
    refcounts_of_width(2)
}

#[test]
fn refcounts_of_4_bits() -> Outcome {
    refcounts_of_width(4)
}

#[test]
fn refcounts_of_8_bits() -> Outcome {
    refcounts_of_width(8)
}

#[test]
fn refcounts_of_16_bits() -> Outcome {
    refcounts_of_width(16)
}

#[test]
fn refcounts_of_32_bits() -> Outcome {
    refcounts_of_width(32)
}

#[test]
fn refcounts_of_64_bits() -> Outcome {
    refcounts_of_width(64)
}

#[test]
fn snapshot_table() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "whole.qcow2", &[])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    // L1 offset, L1 size, id and name lengths, extra size, disk size.
    let fields = [(0, 8), (8, 4), (12, 2), (14, 2), (36, 4), (48, 8)];
    let mut bench = Bench::new(&scratch);
    for entry in whole.snapshots()? {
        for (at, len) in fields {
            let old = whole.get(entry + at, len)?;
            let top = u64::MAX >> (64 - 8 * len);
            for value in [
                0,
                1,
                old + 1,
                old + 512,
                old << 1,
                top,
                top >> 1,
                0x1_0000 & top,
                1025,
            ] {
                patched(
                    &mut bench,
                    &scratch,
                    &whole,
                    &[(entry + at, len, value & top)],
                )?;
                bench.same("info of the same", &["info", "damaged.qcow2"])?;
            }
        }
    }
    bench.finish()
}

#[test]
fn snapshot_l1_tables() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("snapshot l1");
    image::create_rich(&scratch, "whole.qcow2", &["cluster_size=4k"])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let mut patches = Vec::new();
    for entry in whole.snapshots()? {
        let table = usize::try_from(whole.get(entry, 8)?)?;
        for _ in 0..8 {
            let at = table + 8 * usize::try_from(rng.below(2))?;
            let values = entry_values(&whole, whole.get(at, 8)?, &mut rng)?;
            patches.push((at, 8, *rng.pick(&values)));
        }
    }
    let mut bench = Bench::new(&scratch);
    patched(&mut bench, &scratch, &whole, &patches)?;
    bench.finish()
}

#[test]
fn bitmap_extension_and_directory() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "whole.qcow2", &[])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let (extension, _) = whole.extension(EXT_BITMAPS)?;
    let entry = whole.bitmaps()?[0];
    // Extension: length, count, reserved, directory size and offset.
    // Entry: table offset and size, flags, type, granularity, name and extra.
    let places = [
        (extension - 4, 4),
        (extension, 4),
        (extension + 4, 4),
        (extension + 8, 8),
        (extension + 16, 8),
        (entry, 8),
        (entry + 8, 4),
        (entry + 12, 4),
        (entry + 16, 1),
        (entry + 17, 1),
        (entry + 18, 2),
        (entry + 20, 4),
        (entry + 24, 1),
    ];
    let mut bench = Bench::new(&scratch);
    for (at, len) in places {
        let old = whole.get(at, len)?;
        let top = u64::MAX >> (64 - 8 * len);
        for value in [0, 1, old + 1, old << 1, old + 512, top, top >> 1] {
            let mut changed = whole.clone();
            changed.set(at, len, value & top)?;
            changed.save(&scratch, "damaged.qcow2")?;
            let label = format!("{len} bytes at {at:#x} = {:#x}", value & top);
            bench.same(&label, &["info", "damaged.qcow2"])?;
            // The oracle derives the key for each check, with as many iterations as the header says:
            // only where the LUKS header lies is in question.
            if at <= extension + 8 {
                bench.same(&label, &["check", "damaged.qcow2"])?;
            }
        }
    }
    bench.finish()
}

#[test]
fn bitmap_tables() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("bitmap tables");
    image::create_rich(&scratch, "whole.qcow2", &["cluster_size=4k"])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let mut patches = Vec::new();
    for entry in whole.bitmaps()? {
        let table = usize::try_from(whole.get(entry, 8)?)?;
        for value in entry_values(&whole, whole.get(table, 8)?, &mut rng)? {
            patches.push((table, 8, value));
        }
    }
    let mut bench = Bench::new(&scratch);
    patched(&mut bench, &scratch, &whole, &patches)?;
    bench.finish()
}

#[test]
fn luks_header() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_encrypted(&scratch, "whole.qcow2", &["encrypt.format=luks"])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let (extension, _) = whole.extension(EXT_CRYPTO)?;
    let header = usize::try_from(whole.get(extension, 8)?)?;
    // LUKS 1 "PHDR layout": magic, version, names, offsets, and key slot 0.
    let places = [
        (extension - 4, 4),
        (extension, 8),
        (extension + 8, 8),
        (header, 4),
        (header + 6, 2),
        (header + 8, 1),
        (header + 40, 1),
        (header + 72, 1),
        (header + 104, 4),
        (header + 108, 4),
        (header + 164, 4),
        (header + 168, 1),
        (header + 208, 4),
        (header + 212, 4),
        (header + 248, 4),
        (header + 252, 4),
        (header + 256, 4),
        (header + 260, 4),
    ];
    let mut bench = Bench::new(&scratch);
    for (at, len) in places {
        let old = whole.get(at, len)?;
        let top = u64::MAX >> (64 - 8 * len);
        for value in [0, 1, old + 1, top] {
            let mut changed = whole.clone();
            changed.set(at, len, value & top)?;
            changed.save(&scratch, "damaged.qcow2")?;
            let label = format!("{len} bytes at {at:#x} = {:#x}", value & top);
            bench.same(&label, &["info", "damaged.qcow2"])?;
            // The oracle derives the key for each check, with as many iterations as the header says:
            // only where the LUKS header lies is in question.
            if at <= extension + 8 {
                bench.same(&label, &["check", "damaged.qcow2"])?;
            }
        }
    }
    for name in [
        &b"aes\0"[..],
        b"cast5\0",
        b"twofish\0",
        b"nonsense\0",
        &[b'x'; 32],
    ] {
        for at in [8, 40, 72, 168] {
            let mut changed = whole.clone();
            changed.put(header + at, name)?;
            changed.save(&scratch, "damaged.qcow2")?;
            bench.same_info(&format!("{name:?} at {at}"), "damaged.qcow2")?;
        }
    }
    for mode in [
        &b"ecb\0"[..],
        b"cbc-plain64\0",
        b"cbc-essiv:sha256\0",
        b"xts-essiv:nope\0",
        b"xts\0",
        b"cbc-benbi\0",
        b"lrw-plain64\0",
        b"ctr-plain\0",
        b"-\0",
        b"xts-\0",
    ] {
        let mut changed = whole.clone();
        changed.put(header + 40, mode)?;
        changed.save(&scratch, "damaged.qcow2")?;
        bench.same_info(&format!("{mode:?}"), "damaged.qcow2")?;
    }
    bench.finish()
}

/// Overwrites several random bytes of the metadata clusters.
fn random_bytes(name: &str, options: &[&str]) -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test(name);
    image::create_rich(&scratch, "whole.qcow2", options)?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let mut tables = whole.used_l2_entries()?;
    tables.extend(whole.l1_entries()?);
    tables.extend(refcount_table_start(&whole)?);
    tables.extend(whole.refcount_blocks()?);
    tables.extend(whole.snapshots()?);
    if !options.contains(&"compat=0.10") {
        tables.extend(whole.bitmaps()?);
    }
    let mut bench = Bench::new(&scratch);
    for round in 0..15 {
        let mut changed = whole.clone();
        for _ in 0..=rng.below(4) {
            let at = *rng.pick(&tables) + usize::try_from(rng.below(8))?;
            changed.set(at, 1, rng.below(256))?;
        }
        changed.save(&scratch, "damaged.qcow2")?;
        bench.same_both(
            &format!("round {round} of seed {}", rng.seed()),
            "damaged.qcow2",
        )?;
    }
    bench.finish()
}

#[test]
fn random_bytes_version_3() -> Outcome {
    random_bytes("random v3", &["cluster_size=4k"])
}

#[test]
fn random_bytes_version_2() -> Outcome {
    random_bytes("random v2", &["compat=0.10", "cluster_size=4k"])
}

#[test]
fn random_bytes_extended_l2() -> Outcome {
    random_bytes("random ext", &["extended_l2=on", "cluster_size=16k"])
}

#[test]
fn random_bytes_small_clusters() -> Outcome {
    random_bytes("random 512", &["cluster_size=512", "refcount_bits=8"])
}
