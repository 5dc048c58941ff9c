//! Input made to exhaust, confuse or hang: sizes, counts, loops, names.

use instar_tests::compare::{Bench, manners, orderly};
use instar_tests::image;
use instar_tests::places::Image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

#[test]
fn l1_table_of_4_g_entries() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "whole.qcow2", &[])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let mut bench = Bench::new(&scratch);
    for entries in [
        0xffff_ffff,
        0x8000_0000,
        0x1000_0000,
        0x40_0001,
        0x40_0000,
        0x3f_ffff,
    ] {
        let mut changed = whole.clone();
        changed.set_field("l1_size", entries)?;
        changed.save(&scratch, "l1.qcow2")?;
        bench.same_both(&format!("{entries:#x} L1 entries"), "l1.qcow2")?;
        // With a file long enough to hold the table.
        scratch.set_len("l1.qcow2", 40 << 30)?;
        bench.same_both(&format!("{entries:#x} in a long file"), "l1.qcow2")?;
    }
    bench.finish()
}

#[test]
fn counts_at_their_limits() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "whole.qcow2", &[])?;
    let whole = Image::load(&scratch, "whole.qcow2")?;
    let mut bench = Bench::new(&scratch);
    for (field, values) in [
        ("nb_snapshots", vec![65_535, 65_536, 65_537, 0xffff_ffff]),
        ("refcount_table_clusters", vec![128, 129, 0xffff_ffff]),
        ("backing_file_size", vec![1023, 1024, 0xffff_ffff]),
        (
            "size",
            vec![1 << 62, (1 << 63) - 512, 1 << 63, u64::MAX, u64::MAX - 511],
        ),
    ] {
        for value in values {
            let mut changed = whole.clone();
            changed.set_field(field, value)?;
            changed.save(&scratch, "count.qcow2")?;
            scratch.set_len("count.qcow2", 1 << 33)?;
            bench.same_both(&format!("{field} = {value:#x}"), "count.qcow2")?;
        }
    }
    bench.finish()
}

/// The longest sparse file of 2^50 bytes or less that a folder takes.
fn longest_sparse(path: &std::path::Path) -> anyhow::Result<u64> {
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    for bits in (30..=50).rev() {
        if file.set_len(1 << bits).is_ok() {
            return Ok(1 << bits);
        }
    }
    anyhow::bail!(
        "no sparse file of 1 GiB can be made beside {}",
        path.display()
    )
}

#[test]
fn sparse_file_of_1_pib_with_512_byte_clusters() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "small.qcow2", &["cluster_size=512"])?;
    // tmpfs takes 1 PiB where ext4 ends at 16 TiB.
    let shm = tempfile::Builder::new()
        .prefix("instar-e2e-")
        .tempdir_in("/dev/shm")?;
    let huge = shm.path().join("huge.qcow2");
    std::fs::copy(scratch.file("small.qcow2"), &huge)?;
    let len = longest_sparse(&huge)?;
    anyhow::ensure!(
        len == 1 << 50,
        "/dev/shm takes no file of 1 PiB (only {len} bytes): mount a tmpfs there"
    );
    let name = huge.display().to_string();
    let mut bench = Bench::new(&scratch);
    bench.same_info("1 PiB", &name)?;
    bench.same("raw", &["info", "-f", "raw", &name])?;
    // qemu-img would count every cluster of the file: ours must simply end,
    // in bounded memory, with an answer.
    let got = bench.instar(&["check", &name])?;
    let mut complaints = manners(&got);
    complaints.extend(orderly(&got));
    if !complaints.is_empty() {
        bench.fail(format!(
            "check of 1 PiB: {complaints:?}\n{}",
            got.describe()
        ));
    }
    bench.finish()
}

#[test]
fn sparse_file_of_16_gib_with_512_byte_clusters() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_filled(&scratch, "long.qcow2", &["cluster_size=512"])?;
    scratch.set_len("long.qcow2", 16 << 30)?;
    bench.same_both("16 GiB", "long.qcow2")?;
    bench.finish()
}

#[test]
fn chains_that_loop() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for (name, backing) in [
        ("a.qcow2", "b.qcow2"),
        ("b.qcow2", "a.qcow2"),
        ("top.qcow2", "a.qcow2"),
    ] {
        image::create_overlay(&scratch, name, backing, "qcow2")?;
    }
    // An image that names itself, which create refuses to make.
    image::create_overlay(&scratch, "self.qcow2", "x.qcow2", "qcow2")?;
    let mut own = Image::load(&scratch, "self.qcow2")?;
    let at = usize::try_from(own.field("backing_file_offset")?)?;
    own.set_field("backing_file_size", 10)?;
    own.put(at, b"self.qcow2")?;
    own.save(&scratch, "self.qcow2")?;
    for name in ["a.qcow2", "top.qcow2", "self.qcow2"] {
        bench.same_info(name, name)?;
        bench.same(name, &["info", "--backing-chain", name])?;
        bench.same(name, &["info", "--backing-chain", "--output=json", name])?;
        // qemu-img ends by exhausting its stack or its descriptors, if at all.
        bench.refused(name, &["check", name], &[])?;
    }
    bench.finish()
}

#[test]
fn chain_loop_through_a_second_name() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_overlay(&scratch, "a.qcow2", "alias.qcow2", "qcow2")?;
    std::os::unix::fs::symlink("a.qcow2", scratch.file("alias.qcow2"))?;
    bench.refused(
        "symbolic link",
        &["info", "--backing-chain", "a.qcow2"],
        &[],
    )?;
    std::fs::remove_file(scratch.file("alias.qcow2"))?;
    std::fs::hard_link(scratch.file("a.qcow2"), scratch.file("alias.qcow2"))?;
    bench.refused("hard link", &["info", "--backing-chain", "a.qcow2"], &[])?;
    bench.refused("hard link", &["check", "a.qcow2"], &[])?;
    bench.finish()
}

/// Writes a backing file name into an image, and takes the format away.
fn with_backing_name(scratch: &Scratch, file: &str, name: &[u8]) -> anyhow::Result<()> {
    let spare = "x".repeat(name.len().max(1));
    image::create_overlay(scratch, file, &spare, "raw")?;
    let mut image = Image::load(scratch, file)?;
    let at = usize::try_from(image.field("backing_file_offset")?)?;
    image.put(at, name)?;
    image.save(scratch, file)
}

#[test]
fn backing_names_of_1023_bytes_with_control_characters() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    let long: Vec<u8> = (0..1023_u32)
        .map(|at| u8::try_from(1 + at % 255).unwrap_or(1))
        .map(|byte| if byte == b':' { b';' } else { byte })
        .collect();
    let names: &[&[u8]] = &[
        &long,
        &[b'n'; 1023],
        b"\x1b[31mred\x1b[0m",
        b"two\nlines",
        b"quote\"back\\slash",
        b"\xc3\xa9\xff\xfe",
        b"nul\0inside",
        b"tab\tbell\x07del\x7f",
    ];
    for name in names {
        with_backing_name(&scratch, "name.qcow2", name)?;
        let label = format!("{} bytes", name.len());
        bench.same_info(&label, "name.qcow2")?;
    }
    bench.finish()
}

#[test]
fn backing_names_that_cannot_be_opened() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    let names: &[&[u8]] = &[&[b'n'; 1023], b"two\nlines", b"\x1b[31mred\x1b[0m"];
    for name in names {
        with_backing_name(&scratch, "name.qcow2", name)?;
        for command in [&["check"][..], &["info", "--backing-chain"]] {
            let args: Vec<&str> = command.iter().copied().chain(["name.qcow2"]).collect();
            let got = bench.instar(&args)?;
            let mut complaints = manners(&got);
            if got.code != Some(1) || !got.stdout.is_empty() {
                complaints.push("exit 1 and no output expected".into());
            }
            if !complaints.is_empty() {
                bench.fail(format!("{args:?}: {complaints:?}\n{}", got.describe()));
            }
            bench.same("the oracle's words", &args)?;
        }
    }
    bench.finish()
}

#[test]
fn files_that_only_look_like_images() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    // Magic numbers of other formats stay data to -f raw; the unsupported ones
    // are only compared with the format named.
    for magic in [
        &b"QFI\xfb"[..],
        b"KDMV",
        b"conectix",
        b"vhdxfile",
        b"QED\0",
        b"LUKS\xba\xbe",
        b"\0\0\0\0",
    ] {
        let mut bytes = magic.to_vec();
        bytes.resize(70_000, 0);
        scratch.write("odd.img", &bytes)?;
        bench.same("raw", &["info", "-f", "raw", "odd.img"])?;
        bench.same("qcow2", &["info", "-f", "qcow2", "odd.img"])?;
        bench.same("qcow2", &["check", "-f", "qcow2", "odd.img"])?;
    }
    bench.finish()
}
