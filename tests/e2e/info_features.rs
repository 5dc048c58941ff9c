//! `info`: snapshots and time zones, bitmaps, flags, chains, formats, raw.

use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::places::Image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

const ZONES: &[&str] = &[
    "UTC",
    "America/New_York",
    "Asia/Kolkata",
    "EST5EDT,M3.2.0,M11.1.0",
    "<+0545>-5:45",
    "No/Such_Zone",
];

#[test]
fn snapshot_dates_follow_the_time_zone() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "rich.qcow2", &[])?;
    let rich = Image::load(&scratch, "rich.qcow2")?;
    let entry = rich.snapshots()?[0];
    // Around both switches of the New York clock, the epoch, and far dates.
    let seconds: &[u64] = &[
        0,
        1,
        1_741_503_599,
        1_741_503_600,
        1_762_063_199,
        1_762_063_200,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
    ];
    let mut bench = Bench::new(&scratch);
    for second in seconds {
        let mut changed = rich.clone();
        changed.set(entry + 16, 4, *second)?;
        changed.save(&scratch, "dated.qcow2")?;
        for zone in ZONES {
            bench.env("TZ", zone);
            bench.same_info(&format!("{second} s in {zone}"), "dated.qcow2")?;
        }
    }
    bench.finish()
}

#[test]
fn snapshot_fields() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "rich.qcow2", &[])?;
    let rich = Image::load(&scratch, "rich.qcow2")?;
    let entry = rich.snapshots()?[0];
    let mut bench = Bench::new(&scratch);
    // VM state size (32 and 64 bits), VM clock, date nanoseconds, icount.
    let fields = [(32, 4), (40, 8), (24, 8), (20, 4), (56, 8)];
    for (at, len) in fields {
        for value in [
            0,
            1,
            999,
            1000,
            1023,
            1024,
            1025,
            123_456_789,
            1_048_575,
            1_048_576,
            0xffff_ffff,
            1 << 40,
            3_600_000_000_000,
            86_399_999_999_999,
            1 << 62,
            i64::MAX as u64,
            u64::MAX,
        ] {
            let mut changed = rich.clone();
            changed.set(entry + at, len, value)?;
            changed.save(&scratch, "field.qcow2")?;
            bench.same_info(&format!("{len} bytes at {at} = {value:#x}"), "field.qcow2")?;
        }
    }
    bench.finish()
}

#[test]
fn snapshots_without_extra_data() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for count in [1, 2, 12] {
        image::create_filled(&scratch, "old.qcow2", &["compat=0.10"])?;
        for index in 0..count {
            image::snapshot(
                &scratch,
                "old.qcow2",
                &format!("a longer snapshot tag {index}"),
            )?;
        }
        bench.same_both(&format!("{count} snapshots"), "old.qcow2")?;
    }
    bench.finish()
}

#[test]
fn snapshot_names_with_any_bytes() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "rich.qcow2", &[])?;
    let rich = Image::load(&scratch, "rich.qcow2")?;
    let entry = rich.snapshots()?[0];
    let extra = usize::try_from(rich.get(entry + 36, 4)?)?;
    let id = usize::try_from(rich.get(entry + 12, 2)?)?;
    let mut bench = Bench::new(&scratch);
    for name in [
        b"fir\x1bt",
        b"f\nrst",
        b"f\"rst",
        b"f\\rst",
        b"f\trst",
        b"f\0rst",
        b"\x7first",
        b"f\xc3\xa9st",
        b"f\xff\xfest",
        b"\xed\xa0\x80st",
        b"f/<>&",
        b"f\x01\x02st",
    ] {
        let mut changed = rich.clone();
        changed.put(entry + 40 + extra + id, name)?;
        changed.save(&scratch, "name.qcow2")?;
        bench.same_info(&format!("{name:?}"), "name.qcow2")?;
    }
    bench.finish()
}

#[test]
fn bitmaps() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for granularity in ["512", "4096", "64k", "1M", "2G"] {
        image::create_filled(&scratch, "b.qcow2", &[])?;
        for (name, more) in [("one", "--enable"), ("two", "--disable")] {
            image::qemu_img(
                &scratch,
                &["bitmap", "--add", "-g", granularity, "b.qcow2", name],
            )?;
            image::qemu_img(&scratch, &["bitmap", more, "b.qcow2", name])?;
        }
        image::io(&scratch, "b.qcow2", &["write 1M 128k"])?;
        bench.same_both(granularity, "b.qcow2")?;
        // Flags: in use, auto, both, and the flag whose meaning is extra data.
        let whole = Image::load(&scratch, "b.qcow2")?;
        let entry = whole.bitmaps()?[0];
        for flags in [0, 1, 2, 3, 4, 7] {
            let mut changed = whole.clone();
            changed.set(entry + 12, 4, flags)?;
            changed.save(&scratch, "f.qcow2")?;
            bench.same_both(&format!("{granularity} flags {flags}"), "f.qcow2")?;
        }
    }
    bench.finish()
}

#[test]
fn many_bitmaps_and_long_names() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_filled(&scratch, "b.qcow2", &[])?;
    for index in 0..12 {
        let name = format!("{index}").repeat(1 + index * 30);
        image::bitmap(&scratch, "b.qcow2", &name, index % 2 == 0)?;
    }
    bench.same_both("12 bitmaps", "b.qcow2")?;
    bench.finish()
}

#[test]
fn dirty_and_corrupt_flags() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for list in [vec![], vec!["lazy_refcounts=on"]] {
        image::create_filled(&scratch, "disk.qcow2", &list)?;
        let clean = Image::load(&scratch, "disk.qcow2")?;
        for bits in [1, 2, 3] {
            let mut changed = clean.clone();
            changed.set_field("incompatible_features", bits)?;
            changed.save(&scratch, "flag.qcow2")?;
            bench.same_both(&format!("{list:?} incompatible {bits}"), "flag.qcow2")?;
        }
    }
    bench.finish()
}

#[test]
fn unknown_feature_bits_and_their_names() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "disk.qcow2", &[])?;
    let clean = Image::load(&scratch, "disk.qcow2")?;
    let mut bench = Bench::new(&scratch);
    for field in [
        "incompatible_features",
        "compatible_features",
        "autoclear_features",
    ] {
        let step = if field.starts_with("inc") { 1 } else { 9 };
        for bit in (0..64).step_by(step) {
            let mut changed = clean.clone();
            changed.set_field(field, 1 << bit)?;
            changed.save(&scratch, "bit.qcow2")?;
            bench.same("bit", &["info", "bit.qcow2"])?;
            bench.same("bit", &["check", "bit.qcow2"])?;
        }
    }
    let mut several = clean;
    several.set_field("incompatible_features", 0xff00_0000_0000_00e0)?;
    several.save(&scratch, "bits.qcow2")?;
    bench.same_both("many unknown bits", "bits.qcow2")?;
    bench.finish()
}

#[test]
fn backing_chains_of_1_to_8_layers() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_filled(&scratch, "layer1.qcow2", &[])?;
    for depth in 1..=8 {
        let top = format!("layer{depth}.qcow2");
        if depth > 1 {
            let below = format!("layer{}.qcow2", depth - 1);
            image::create_overlay(&scratch, &top, &below, "qcow2")?;
        }
        bench.same("chain", &["info", "--backing-chain", &top])?;
        bench.same("chain", &["info", "-b", "--output=json", &top])?;
        bench.same_both(&format!("{depth} layers"), &top)?;
    }
    bench.finish()
}

#[test]
fn chains_that_end_in_raw_or_in_another_folder() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    scratch.write("base.raw", &[7; 70_001])?;
    std::fs::create_dir(scratch.file("sub"))?;
    scratch.write("sub/base.raw", &[7; 5000])?;
    let here = scratch.file("base.raw").display().to_string();
    for (name, backing) in [
        ("plain.qcow2", "base.raw"),
        ("dotted.qcow2", "./base.raw"),
        ("sub.qcow2", "sub/base.raw"),
        ("absolute.qcow2", here.as_str()),
        ("sub/inner.qcow2", "base.raw"),
        ("file.qcow2", "file:base.raw"),
    ] {
        image::create_overlay(&scratch, name, backing, "raw")?;
        let dotted = format!("./{name}");
        let absolute = scratch.file(name).display().to_string();
        for path in [name, dotted.as_str(), absolute.as_str()] {
            bench.same(backing, &["info", path])?;
            bench.same(backing, &["info", "--backing-chain", path])?;
            bench.same(backing, &["info", "--backing-chain", "--output=json", path])?;
            bench.same(backing, &["check", path])?;
        }
    }
    bench.finish()
}

#[test]
fn missing_backing_and_data_files() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_overlay(&scratch, "top.qcow2", "gone.raw", "raw")?;
    image::create(&scratch, "data.qcow2", &["data_file=gone.data"], "1M")?;
    std::fs::remove_file(scratch.file("gone.data"))?;
    for name in ["top.qcow2", "data.qcow2"] {
        bench.same_both("the other file is gone", name)?;
        bench.same("chain", &["info", "--backing-chain", name])?;
    }
    bench.finish()
}

#[test]
fn explicit_formats() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_filled(&scratch, "disk.qcow2", &[])?;
    scratch.write("disk.raw", &[3; 10_000])?;
    for name in ["disk.qcow2", "disk.raw"] {
        for format in ["raw", "qcow2", "nonsense", ""] {
            for command in ["info", "check"] {
                bench.same("format", &[command, "-f", format, name])?;
                bench.same("format", &[command, "-f", format, "--output=json", name])?;
            }
        }
    }
    bench.finish()
}

#[test]
fn raw_files_of_odd_lengths() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for len in [
        0, 1, 511, 512, 513, 1000, 1023, 1024, 1025, 4095, 4097, 10_239, 10_240, 65_535, 1_048_575,
        1_048_577, 10_000_000,
    ] {
        scratch.write("disk.raw", &vec![1; len])?;
        bench.same_both(&format!("{len} bytes"), "disk.raw")?;
        bench.same("explicit", &["info", "-f", "raw", "disk.raw"])?;
    }
    bench.finish()
}

#[test]
fn raw_files_with_holes() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for len in [1, 512, 1_000_001, 1 << 30, (1 << 40) + 1, 15 << 40] {
        scratch.set_len("hole.raw", len)?;
        bench.same_both(&format!("a hole of {len} bytes"), "hole.raw")?;
    }
    bench.finish()
}
