//! Images that are full of data.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use instar_tests::corpus;

use crate::images::qemu_io;
use crate::measure::Program;

/// Bytes of the corpus that is compressed.
const CORPUS_BYTES: usize = 192 << 20;
/// Where the host offset of an L1 or L2 entry stands.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bytes of a cluster, and of an L2 table.
const CLUSTER: usize = 64 << 10;

/// The secret of encrypted images.
pub const SECRET: &str = "secret,id=key,data=for-the-benchmark";
/// Encrypted by LUKS, with a password that is tested in the shortest time that can be chosen: the rest is the data's.
pub const LUKS: &str = "encrypt.format=luks,encrypt.key-secret=key,encrypt.iter-time=10";

/// `gib` GiB of bytes without a pattern, as `one.raw`.
pub fn raw(qemu_img: &Program, gib: u64) -> Result<()> {
    let file = File::create(qemu_img.folder().join("one.raw"))?;
    let mut out = BufWriter::with_capacity(1 << 20, file);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..(gib << 30) / 8 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.write_all(&state.to_ne_bytes())?;
    }
    Ok(out.flush()?)
}

/// [`raw`], and the same as `two.qcow2`.
pub fn twins(qemu_img: &Program, gib: u64) -> Result<()> {
    raw(qemu_img, gib)?;
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    qemu_img.must(&[&convert[..], &["one.raw", "two.qcow2"]].concat())
}

/// Only `two.qcow2` of [`twins`].
pub fn qcow2(qemu_img: &Program, gib: u64) -> Result<()> {
    twins(qemu_img, gib)?;
    Ok(std::fs::remove_file(qemu_img.folder().join("one.raw"))?)
}

/// [`qcow2`] with each L2 table backwards.
pub fn scattered(qemu_img: &Program, gib: u64) -> Result<()> {
    qcow2(qemu_img, gib)?;
    scatter(&qemu_img.folder().join("two.qcow2"))
}

/// [`qcow2`], and `over.qcow2` over it with every other cluster.
pub fn layers(qemu_img: &Program, gib: u64) -> Result<()> {
    qcow2(qemu_img, gib)?;
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2"];
    qemu_img.must(&[&create[..], &["-b", "two.qcow2", "over.qcow2"]].concat())?;
    let mut commands = String::new();
    for index in 0..(gib << 30) / (2 * CLUSTER as u64) {
        let pattern = index % 255 + 1;
        writeln!(commands, "write -q -P {pattern} {}k 64k", index * 128)?;
    }
    qemu_io(qemu_img, "over.qcow2", &commands)
}

/// [`qcow2`] over an empty image, `empty.qcow2`.
pub fn over(qemu_img: &Program, gib: u64) -> Result<()> {
    qcow2(qemu_img, gib)?;
    let size = format!("{gib}G");
    qemu_img.must(&["create", "-q", "-f", "qcow2", "empty.qcow2", &size])?;
    let rebase = ["rebase", "-u", "-F", "qcow2", "-b"];
    qemu_img.must(&[&rebase[..], &["empty.qcow2", "two.qcow2"]].concat())
}

/// [`qcow2`] and a copy of it, `same.qcow2`; `empty.qcow2` of that size; `over.qcow2`, empty, over the first.
pub fn under(qemu_img: &Program, gib: u64) -> Result<()> {
    qcow2(qemu_img, gib)?;
    let file = |name: &str| qemu_img.folder().join(name);
    std::fs::copy(file("two.qcow2"), file("same.qcow2"))?;
    overlay(qemu_img, &format!("{gib}G"))
}

/// `empty.qcow2` of this size, and `over.qcow2`, empty, over `two.qcow2`.
fn overlay(qemu_img: &Program, size: &str) -> Result<()> {
    qemu_img.must(&["create", "-q", "-f", "qcow2", "empty.qcow2", size])?;
    let create = ["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"];
    qemu_img.must(&[&create[..], &["two.qcow2", "over.qcow2"]].concat())
}

/// [`corpus`] as `two.qcow2`, with `empty.qcow2` of that size, and `over.qcow2`, empty, over the first.
pub fn corpus_under(qemu_img: &Program) -> Result<()> {
    corpus(qemu_img)?;
    let convert = ["convert", "-f", "raw", "-O", "qcow2"];
    qemu_img.must(&[&convert[..], &["corpus.raw", "two.qcow2"]].concat())?;
    let length = qemu_img.folder().join("corpus.raw").metadata()?.len();
    overlay(qemu_img, &length.to_string())
}

/// [`raw`], and the same encrypted as `luks.qcow2`.
pub fn luks(qemu_img: &Program, gib: u64) -> Result<()> {
    raw(qemu_img, gib)?;
    let convert = ["convert", "--object", SECRET, "-f", "raw", "-O", "qcow2"];
    let rest = ["-o", LUKS, "one.raw", "luks.qcow2"];
    qemu_img.must(&[&convert[..], &rest].concat())
}

/// The corpus around `qemu-img`'s own program, as `corpus.raw`.
pub fn corpus(qemu_img: &Program) -> Result<()> {
    let program = in_path("qemu-img")?;
    let bytes = corpus::corpus(CORPUS_BYTES, &program)?;
    Ok(std::fs::write(qemu_img.folder().join("corpus.raw"), bytes)?)
}

fn in_path(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found = std::env::split_paths(&path).map(|folder| folder.join(name));
    let found = found.find(|path| path.is_file());
    found.with_context(|| format!("{name} is not there"))
}

/// Turns each L2 table of 64 KiB round: no cluster lies behind its neighbour of the disk any more.
pub fn scatter(image: &Path) -> Result<()> {
    let file = File::options().read(true).write(true).open(image)?;
    let mut header = [0; 48];
    file.read_exact_at(&mut header, 0)?;
    let field = |at: usize| header.get(at..);
    let tables = field(36).and_then(<[u8]>::first_chunk);
    let tables = u32::from_be_bytes(*tables.context("L1 size")?);
    let l1 = field(40).and_then(<[u8]>::first_chunk);
    let l1 = u64::from_be_bytes(*l1.context("L1 offset")?);
    let mut table = vec![0; CLUSTER];
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
