//! The images, made by `qemu-img` and `qemu-io` in a temporary folder.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::measure::Program;
use crate::noise;

/// An image, or an image and what it stands on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// 1 GiB, 64 KiB clusters, a few of them written.
    Small,
    /// 1 GiB raw, sparse.
    Raw,
    /// 8 GiB over 8 GiB, 4 KiB clusters, both written at random.
    Overlay,
    /// 256 MiB, 512-byte clusters, metadata preallocated.
    Tiny,
    /// 1 TiB, 2 MiB clusters, metadata preallocated.
    Large,
    /// 256 GiB, 64 KiB clusters, metadata preallocated.
    Full,
    /// 8 GiB, 4 KiB clusters written in random order.
    Fragmented,
    /// 64 GiB, metadata preallocated, three internal snapshots.
    Snapshots,
    /// As [`Image::Full`], with a snapshot.
    FullWithSnapshot,
    /// 64 GiB, metadata preallocated, whose L1 table was lost: a million leaked clusters.
    Leaked,
    /// 64 GiB with two bitmaps, one of them with bits all over it.
    Bitmaps,
    /// 64 GiB, 64 KiB clusters, metadata preallocated, none behind its neighbour of the disk.
    Scattered,
    /// 4 GiB of bytes without a pattern, raw and as qcow2.
    Twins,
    /// Those of [`Image::Twins`], of so many GiB, as `one.raw`.
    NoiseRaw(u64),
    /// The same as `two.qcow2`.
    Noise(u64),
    /// The same, no cluster behind its neighbour of the disk.
    NoiseScattered(u64),
    /// The same, over which every other 64 KiB have been written again.
    NoiseLayers(u64),
    /// [`Image::Noise`] over `empty.qcow2`, which says nothing.
    NoiseOver(u64),
    /// [`Image::Noise`] twice, as `two.qcow2` and `same.qcow2`, `over.qcow2` over the former, and `empty.qcow2`.
    NoiseUnder(u64),
    /// [`Image::NoiseRaw`], and the same in an encrypted `luks.qcow2`.
    NoiseLuks(u64),
    /// Text, programs and free space, raw.
    Corpus,
    /// [`Image::Corpus`] in `two.qcow2`; `empty.qcow2` of that size; `over.qcow2`, empty, over the first.
    CorpusUnder,
    /// None.
    Nothing,
}

/// Makes an image in the folder of `qemu_img`.
pub fn make(image: Image, qemu_img: &Program) -> Result<()> {
    let create = |file: &str, options: &str, size: &str| {
        qemu_img.must(&["create", "-q", "-f", "qcow2", "-o", options, file, size])
    };
    match image {
        Image::Small => {
            create("small.qcow2", "cluster_size=64k", "1G")?;
            writes(qemu_img, "small.qcow2", 16)
        }
        Image::Raw => qemu_img.must(&["create", "-q", "-f", "raw", "disk.raw", "1G"]),
        Image::Overlay => {
            create("base.qcow2", "cluster_size=4k", "8G")?;
            writes(qemu_img, "base.qcow2", 5000)?;
            let options = "cluster_size=4k,backing_file=base.qcow2,backing_fmt=qcow2";
            create("overlay.qcow2", options, "8G")?;
            writes(qemu_img, "overlay.qcow2", 5000)
        }
        Image::Tiny => {
            let options = "cluster_size=512,preallocation=metadata";
            create("tiny.qcow2", options, "1G")
        }
        Image::Large => {
            let options = "cluster_size=2M,preallocation=metadata";
            create("large.qcow2", options, "1T")
        }
        Image::Full => create("full.qcow2", "preallocation=metadata", "256G"),
        Image::FullWithSnapshot => {
            create("full.qcow2", "preallocation=metadata", "256G")?;
            qemu_img.must(&["snapshot", "-c", "one", "full.qcow2"])
        }
        Image::Leaked => {
            create("leaked.qcow2", "preallocation=metadata", "64G")?;
            lose_l1_table(qemu_img, "leaked.qcow2")
        }
        Image::Bitmaps => {
            create("bitmaps.qcow2", "cluster_size=64k", "64G")?;
            let add =
                |name| qemu_img.must(&["bitmap", "--add", "-g", "64k", "bitmaps.qcow2", name]);
            add("one")?;
            writes(qemu_img, "bitmaps.qcow2", 2000)?;
            add("two")
        }
        Image::Scattered => {
            create("scattered.qcow2", "preallocation=metadata", "64G")?;
            noise::scatter(&qemu_img.folder().join("scattered.qcow2"))
        }
        Image::Twins => noise::twins(qemu_img, 4),
        Image::NoiseRaw(gib) => noise::raw(qemu_img, gib),
        Image::Noise(gib) => noise::qcow2(qemu_img, gib),
        Image::NoiseScattered(gib) => noise::scattered(qemu_img, gib),
        Image::NoiseLayers(gib) => noise::layers(qemu_img, gib),
        Image::NoiseOver(gib) => noise::over(qemu_img, gib),
        Image::NoiseUnder(gib) => noise::under(qemu_img, gib),
        Image::NoiseLuks(gib) => noise::luks(qemu_img, gib),
        Image::Corpus => noise::corpus(qemu_img),
        Image::CorpusUnder => noise::corpus_under(qemu_img),
        Image::Nothing => Ok(()),
        Image::Fragmented => {
            create("fragmented.qcow2", "cluster_size=4k", "8G")?;
            writes(qemu_img, "fragmented.qcow2", 20_000)
        }
        Image::Snapshots => {
            create("snapshots.qcow2", "preallocation=metadata", "64G")?;
            ["a", "b", "c"]
                .iter()
                .try_for_each(|name| qemu_img.must(&["snapshot", "-c", name, "snapshots.qcow2"]))
        }
    }
}

/// Removes all images.
pub fn remove(qemu_img: &Program) -> Result<()> {
    for entry in std::fs::read_dir(qemu_img.folder())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Has what was made written to the disk, so that no run meets the writing.
pub fn settle(qemu_img: &Program) -> Result<()> {
    for entry in std::fs::read_dir(qemu_img.folder())? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            std::fs::File::open(entry.path())?.sync_all()?;
        }
    }
    Ok(())
}

/// Writes 4 KiB at `count` places of the first GiB, in an order that a
/// generator with a fixed seed gives.
fn writes(qemu_img: &Program, file: &str, count: usize) -> Result<()> {
    const PLACES: u64 = (1 << 30) / 4096;
    let mut commands = String::new();
    let mut state = 0x9e37_79b9_u64;
    for _ in 0..count {
        // A full-period linear congruential generator; its high bits are used.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let place = (state >> 33) % PLACES;
        writeln!(commands, "write -q -P 1 {} 4k", place * 4096)?;
    }
    qemu_io(qemu_img, file, &commands)
}

/// Has `qemu-io` do what `commands` says, line by line, with a qcow2 image.
pub fn qemu_io(qemu_img: &Program, file: &str, commands: &str) -> Result<()> {
    let mut child = Command::new("qemu-io")
        .args(["-f", "qcow2", "-t", "unsafe", file])
        .current_dir(qemu_img.folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context("starting qemu-io")?;
    child
        .stdin
        .take()
        .context("qemu-io's input")?
        .write_all(commands.as_bytes())?;
    ensure!(child.wait()?.success(), "qemu-io failed on {file}");
    Ok(())
}

/// Fills the active L1 table with zeros.
fn lose_l1_table(qemu_img: &Program, file: &str) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let path = qemu_img.folder().join(file);
    let file = std::fs::File::options().read(true).write(true).open(path)?;
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0)?;
    let field = |at: usize| header.get(at..).and_then(|rest| rest.first_chunk::<4>());
    let entries = u32::from_be_bytes(*field(36).context("no L1 size")?);
    let high = u32::from_be_bytes(*field(40).context("no L1 offset")?);
    let low = u32::from_be_bytes(*field(44).context("no L1 offset")?);
    let zeros = vec![0; usize::try_from(entries)? * 8];
    file.write_all_at(&zeros, u64::from(high) << 32 | u64::from(low))?;
    Ok(())
}
