//! Random backing chains, for the commands that read what a guest would.

use anyhow::{Context, Result};
use instar_tests::image::qemu_img;
use instar_tests::rng::{Rng, count};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

/// Bytes of most disks.
const DISK_BYTES: u64 = 4 << 20;
const CLUSTERS: [&str; 6] = ["512", "4k", "64k", "64k", "64k", "2M"];

/// An image of a chain.
#[derive(Clone, Debug)]
pub struct Image {
    /// File name.
    pub name: String,
    /// `raw` or `qcow2`.
    pub format: &'static str,
    /// Virtual size in bytes.
    pub size: u64,
}

/// Makes a chain of 1 to `most` images, named by `prefix` and a number; the top one comes back.
pub fn chain(scratch: &Scratch, rng: &mut Rng, prefix: &str, most: u64) -> Result<Image> {
    let mut top: Option<Image> = None;
    for index in 0..=rng.below(most) {
        let name = format!("{prefix}{index}");
        for old in [name.clone(), format!("{name}.dat")] {
            if scratch.file(&old).exists() {
                std::fs::remove_file(scratch.file(&old)).context("removing an old image")?;
            }
        }
        let size = match rng.below(5) {
            0 => DISK_BYTES - 512 * (1 + rng.below(3000)),
            1 => DISK_BYTES + (2 << 20),
            2 => DISK_BYTES / 4,
            _ => DISK_BYTES,
        };
        top = Some(if top.is_none() && rng.below(3) == 0 {
            raw(scratch, rng, name, size)?
        } else {
            qcow2(scratch, rng, (name, size), top.as_ref())?
        });
    }
    let top = top.context("no image was made")?;
    if rng.below(7) == 0 {
        // Fewer blocks than clusters: the holes under its data count.
        let copy = format!("{}.copy", top.name);
        run(scratch, "cp", &["--sparse=always", &top.name, &copy])?;
        std::fs::rename(scratch.file(&copy), scratch.file(&top.name))?;
    }
    Ok(top)
}

fn raw(scratch: &Scratch, rng: &mut Rng, name: String, size: u64) -> Result<Image> {
    scratch.set_len(&name, size - [0, 0, 100][usize::try_from(rng.below(3))?])?;
    let image = Image {
        name,
        format: "raw",
        size,
    };
    fill(scratch, rng, &image, false)?;
    if rng.below(3) == 0 {
        let at = (rng.below(100) * 4096).to_string();
        run(
            scratch,
            "fallocate",
            &["-p", "-o", &at, "-l", "65536", &image.name],
        )?;
    }
    Ok(image)
}

fn qcow2(
    scratch: &Scratch,
    rng: &mut Rng,
    (name, size): (String, u64),
    below: Option<&Image>,
) -> Result<Image> {
    let cluster = *rng.pick(&CLUSTERS);
    let mut options = vec![format!("cluster_size={cluster}")];
    let mut compresses = true;
    if rng.below(5) == 0 {
        options.push("compat=0.10".into());
    } else {
        if matches!(cluster, "64k" | "2M") && rng.below(3) == 0 {
            options.push("extended_l2=on".into());
        }
        if rng.below(3) == 0 {
            options.push("compression_type=zstd".into());
        }
        if rng.below(5) == 0 {
            options.push(format!("data_file={name}.dat"));
            compresses = false;
        }
    }
    if below.is_none() && rng.below(4) == 0 {
        options.push("preallocation=metadata".into());
    }
    let (options, bytes) = (options.join(","), size.to_string());
    let mut args = vec!["create", "-q", "-f", "qcow2", "-o", &options];
    if let Some(below) = below {
        args.extend(["-b", &below.name, "-F", below.format]);
    }
    args.extend([name.as_str(), &bytes]);
    qemu_img(scratch, &args)?;
    let image = Image {
        name,
        format: "qcow2",
        size,
    };
    fill(scratch, rng, &image, compresses)?;
    Ok(image)
}

/// Writes data and zeros at random places.
pub fn fill(scratch: &Scratch, rng: &mut Rng, image: &Image, compresses: bool) -> Result<()> {
    let mut args = vec!["-f".to_owned(), image.format.to_owned()];
    for _ in 0..rng.below(7) {
        let whole = |rng: &mut Rng, n: u64| if rng.below(2) == 0 { n } else { n >> 16 << 16 };
        let at = rng.below(image.size / 512) * 512;
        let at = whole(rng, at);
        let len = (1 + rng.below(1000)) * 512;
        let len = whole(rng, len + 65535).min(image.size - at);
        let pattern = rng.below(3);
        let command = match rng.below(8) {
            0 | 1 => format!("write -z {at} {len}"),
            2 => format!("discard {at} {len}"),
            3 if compresses => {
                let at = at >> 16 << 16;
                format!(
                    "write -c -P {pattern} {at} {}",
                    (64 << 10).min(image.size - at)
                )
            }
            _ => format!("write -P {pattern} {at} {len}"),
        };
        args.extend(["-c".to_owned(), command]);
    }
    args.push(image.name.clone());
    // A compressed write over a cluster that is there fails, and the others are done.
    Run::new(&tools::qemu_io()?, scratch.path())
        .args(&args)
        .go()?;
    Ok(())
}

fn run(scratch: &Scratch, program: &str, args: &[&str]) -> Result<()> {
    let program = tools::in_path(program.as_ref())?;
    let done = Run::new(&program, scratch.path()).args(args).go()?;
    done.expect_code(0).map(drop)
}

/// How many random cases a test does: `INSTAR_CASES`, or this many.
pub fn cases(default: u64) -> u64 {
    count("INSTAR_CASES", default)
}

/// A change of one table of an image of 4 MiB with 300 KiB of data at its start, as `image` makes it.
pub struct Damage {
    /// Options of the image.
    pub options: &'static str,
    /// The entry: `None` the first L1 entry, else the word of the L2 table.
    pub word: Option<u64>,
    /// Bits that are set in it.
    pub bits: u64,
    /// Bits that are cleared before that.
    pub cleared: u64,
}

/// Damages of every kind that reading an image meets.
pub const DAMAGES: [Damage; 10] = {
    const fn damage(options: &'static str, word: Option<u64>, bits: u64, cleared: u64) -> Damage {
        Damage {
            options,
            word,
            bits,
            cleared,
        }
    }
    [
        damage("", None, 0x200, 0),
        damage("", None, 0x10, 0),
        damage("", Some(2), 0x200, 0),
        damage("", Some(0), 1 << 40, 0x00ff_ffff_ffff_fe00),
        damage("compat=0.10,", Some(1), 1, 0),
        damage("extended_l2=on,", Some(5), u64::MAX, 0),
        damage("extended_l2=on,", Some(4), 0, u64::MAX),
        damage("data_file=d.dat,", Some(1), 0x30_0000, 0),
        damage("data_file=d.dat,", Some(2), 1 << 62, 1 << 63),
        damage("", Some(0), 1 << 62 | 0x51_0000, u64::MAX),
    ]
};

impl Damage {
    /// Makes the damaged image.
    pub fn image(&self, scratch: &Scratch, name: &str) -> Result<()> {
        use std::os::unix::fs::FileExt;
        let options = format!("{}cluster_size=64k", self.options);
        instar_tests::image::create(scratch, name, &[&options], "4M")?;
        instar_tests::image::io(scratch, name, &["write -P 7 0 300k"])?;
        let path = scratch.file(name);
        let file = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(path)?;
        let word = |at: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_be_bytes(bytes))
        };
        let l1 = word(40)?;
        let l2 = word(l1)? & 0x00ff_ffff_ffff_fe00;
        let at = self.word.map_or(l1, |index| l2 + index * 8);
        let changed = word(at)? & !self.cleared | self.bits;
        file.write_all_at(&changed.to_be_bytes(), at)?;
        Ok(())
    }
}
