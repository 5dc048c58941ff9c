//! Builds images with `qemu-img` and `qemu-io`.

use std::ffi::OsStr;

use anyhow::{Context, Result};

use crate::rng::Rng;
use crate::run::{Outcome, Run};
use crate::scratch::Scratch;
use crate::tools;

/// Runs `qemu-img` in the folder; any exit code but 0 is an error.
pub fn qemu_img<S: AsRef<OsStr>>(scratch: &Scratch, args: &[S]) -> Result<Outcome> {
    let done = Run::new(&tools::qemu_img()?, scratch.path())
        .args(args)
        .go()?;
    done.expect_code(0)
        .with_context(|| format!("building an image: qemu-img {:?}", list(args)))?;
    Ok(done)
}

fn list<S: AsRef<OsStr>>(args: &[S]) -> Vec<&OsStr> {
    args.iter().map(AsRef::as_ref).collect()
}

/// Makes a qcow2 image; `options` are those of `-o`, `size` is in qemu's form.
pub fn create(scratch: &Scratch, name: &str, options: &[&str], size: &str) -> Result<()> {
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    for option in options {
        args.extend(["-o", option]);
    }
    args.extend([name, size]);
    qemu_img(scratch, &args).map(drop)
}

/// Makes an encrypted image. LUKS key derivation is cut to its minimum, which
/// still costs about two seconds.
pub fn create_encrypted(scratch: &Scratch, name: &str, options: &[&str]) -> Result<()> {
    let mut args = vec!["create", "-q", "-f", "qcow2"];
    args.extend(["--object", "secret,id=key,data=password"]);
    args.extend(["-o", "encrypt.key-secret=key"]);
    if options.contains(&"encrypt.format=luks") {
        args.extend(["-o", "encrypt.iter-time=10"]);
    }
    for option in options {
        args.extend(["-o", option]);
    }
    args.extend([name, "1M"]);
    qemu_img(scratch, &args).map(drop)
}

/// Random options of an image with clusters of 2 to the power of one of `bits`.
pub fn random_options(rng: &mut Rng, bits: &[u32]) -> String {
    let bits = *rng.pick(bits);
    let mut options = vec![format!("cluster_size={}", 1_u64 << bits)];
    if rng.below(4) == 0 {
        options.push(format!("compat={}", rng.pick(&["0.10", "v2"])));
    } else {
        options.push(format!("refcount_bits={}", 1 << rng.below(7)));
        if bits >= 14 && rng.below(3) == 0 {
            options.push("extended_l2=on".into());
        }
        if rng.below(3) == 0 {
            options.push("compression_type=zstd".into());
        }
        if rng.below(4) == 0 {
            options.push("lazy_refcounts=on".into());
        }
    }
    options.join(",")
}

/// Makes an overlay with a backing file that need not exist.
pub fn create_overlay(scratch: &Scratch, name: &str, backing: &str, format: &str) -> Result<()> {
    let args = [
        "create", "-q", "-f", "qcow2", "-u", "-b", backing, "-F", format, name, "1M",
    ];
    qemu_img(scratch, &args).map(drop)
}

/// Runs `qemu-io` commands on an image.
pub fn io(scratch: &Scratch, name: &str, commands: &[&str]) -> Result<()> {
    let mut args = vec!["-f", "qcow2"];
    for command in commands {
        args.extend(["-c", command]);
    }
    args.push(name);
    let done = Run::new(&tools::qemu_io()?, scratch.path())
        .args(&args)
        .go()?;
    done.expect_code(0)
        .with_context(|| format!("qemu-io {args:?}"))?;
    anyhow::ensure!(
        !done.out().contains("failed") && done.stderr.is_empty(),
        "qemu-io {args:?}: {}",
        done.describe()
    );
    Ok(())
}

/// Makes an image with data, zero clusters and holes in its first MiB, for any
/// cluster size: 40 KiB written, one zeroed stretch, one lone sector range.
pub fn create_filled(scratch: &Scratch, name: &str, options: &[&str]) -> Result<()> {
    create(scratch, name, options, "8M")?;
    io(
        scratch,
        name,
        &[
            "write -P 0x11 0 40k",
            "write -P 0x22 128k 64k",
            "write -P 0x33 640k 4k",
            "write -P 0x44 5M 8k",
        ],
    )?;
    if !options.contains(&"compat=0.10") {
        io(scratch, name, &["write -z 256k 64k"])?;
    }
    Ok(())
}

/// Makes an image with compressed clusters of compressible data, each of whole
/// clusters, as qemu-io demands, and ordinary data beside them.
pub fn create_compressed(scratch: &Scratch, name: &str, options: &[&str]) -> Result<()> {
    create(scratch, name, options, "8M")?;
    let unit = match options.contains(&"cluster_size=2M") {
        true => 2048,
        false => 64,
    };
    let last = 3 * unit;
    io(
        scratch,
        name,
        &[
            &format!("write -c -P 0x55 0 {unit}k"),
            &format!("write -c -P 0x66 {unit}k {unit}k"),
            "write -P 0x67 5M 64k",
            &format!("write -c -P 0x77 {last}k {unit}k"),
        ],
    )
}

/// Takes an internal snapshot.
pub fn snapshot(scratch: &Scratch, name: &str, tag: &str) -> Result<()> {
    qemu_img(scratch, &["snapshot", "-c", tag, name]).map(drop)
}

/// Adds a persistent dirty bitmap.
pub fn bitmap(scratch: &Scratch, name: &str, bitmap: &str, enabled: bool) -> Result<()> {
    let mut args = vec!["bitmap", "--add"];
    if !enabled {
        args.push("--disable");
    }
    args.extend([name, bitmap]);
    qemu_img(scratch, &args).map(drop)
}

/// An image with snapshots, overwritten data between them and bitmaps.
pub fn create_rich(scratch: &Scratch, name: &str, options: &[&str]) -> Result<()> {
    create_filled(scratch, name, options)?;
    snapshot(scratch, name, "first")?;
    io(scratch, name, &["write -P 0x88 0 16k"])?;
    snapshot(scratch, name, "second")?;
    io(scratch, name, &["write -P 0x99 4M 64k"])?;
    if !options.contains(&"compat=0.10") {
        bitmap(scratch, name, "nightly", true)?;
        bitmap(scratch, name, "weekly", false)?;
        io(scratch, name, &["write -P 0x9a 2M 64k"])?;
    }
    Ok(())
}
