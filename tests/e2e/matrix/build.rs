//! Makes the images of the matrix.

use anyhow::{Context, Result, ensure};
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::twins::with_key;
use instar_tests::{hidden, image, tools};

use super::rows::{Finish, Make, NAME, No, Prepared, Row, Snapshot};

/// An image with a bitmap to merge from.
const SOURCE: &str = "source.qcow2";

/// Runs `qemu-img`, with the key where the image needs one.
pub fn qemu_img(folder: &Scratch, keyed: bool, args: &[&str]) -> Result<Ran> {
    let args = match keyed {
        true => with_key(args),
        false => args.iter().map(|arg| (*arg).to_owned()).collect(),
    };
    Run::new(&tools::qemu_img()?, folder.path()).args(args).go()
}

fn qemu_io(folder: &Scratch, keyed: bool, commands: &[&str]) -> Result<()> {
    if !keyed {
        return image::io(folder, NAME, commands);
    }
    // The same words as for qemu-img, whose first one is its command.
    let mut args = with_key(&["", NAME]).split_off(1);
    args.extend(
        commands
            .iter()
            .flat_map(|c| ["-c".to_owned(), (*c).to_owned()]),
    );
    let done = Run::new(&tools::qemu_io()?, folder.path())
        .args(args)
        .go()?;
    done.expect_code(0).map(drop)
}

impl Row {
    fn version_2(&self) -> bool {
        self.options.contains(&"compat=0.10")
    }

    /// Makes the image in a folder. Bits that keep `qemu-img` from preparing it are set last.
    pub fn build(&self, folder: &Scratch, prepared: Prepared) -> Result<()> {
        image::create(folder, "base.qcow2", &[], "8M")?;
        image::io(folder, "base.qcow2", &["write -P 0x77 1M 256k"])?;
        folder.set_len("base.raw", 8 << 20)?;
        folder.set_len("other.data", 0)?;
        self.make(folder)?;
        if prepared != No {
            self.prepare(folder, prepared)?;
        }
        self.finish(folder)
    }

    fn make(&self, folder: &Scratch) -> Result<()> {
        match self.make {
            Make::Filled if self.keyed => {
                image::create_encrypted(folder, NAME, self.options)?;
                qemu_io(folder, true, &["write -P 1 0 64k", "write -P 2 512k 20k"])
            }
            Make::Filled => {
                self.create(folder, self.options)?;
                let zero = ["write -z 256k 64k"];
                qemu_io(
                    folder,
                    false,
                    &["write -P 1 0 40k", "write -P 2 640k 4k", "write -P 3 5M 8k"],
                )?;
                qemu_io(folder, false, if self.version_2() { &[] } else { &zero })
            }
            Make::Compressed => image::create_compressed(folder, NAME, self.options),
            Make::Overlay(format) => {
                let base = format!("backing_file=base.{format}");
                let format = format!("backing_fmt={format}");
                self.create(folder, &[self.options, &[&base, &format]].concat())?;
                qemu_io(folder, false, &["write -P 1 1M 40k", "write -z 1200k 64k"])
            }
            Make::Snapshots(count) => {
                self.create(folder, self.options)?;
                for index in 0..count {
                    let at = index * 48;
                    qemu_io(
                        folder,
                        false,
                        &[&format!("write -P {} {at}k 96k", index + 1)],
                    )?;
                    image::snapshot(folder, NAME, &format!("snap{index}"))?;
                }
                qemu_io(folder, false, &["write -P 99 64k 8k"])
            }
            Make::Resized => {
                self.create(folder, self.options)?;
                for size in ["9M", "6M"] {
                    qemu_io(folder, false, &["write -P 5 0 96k", "write -P 6 5M 96k"])?;
                    image::snapshot(folder, NAME, size)?;
                    image::qemu_img(folder, &["resize", "--shrink", NAME, size])?;
                }
                qemu_io(folder, false, &["write -P 99 64k 8k"])
            }
            Make::Bitmaps => {
                self.create(folder, self.options)?;
                image::bitmap(folder, NAME, "enabled", true)?;
                qemu_io(folder, false, &["write -P 5 0 96k", "write -P 6 5M 96k"])?;
                image::bitmap(folder, NAME, "disabled", false)
            }
            Make::BitmapsAndSnapshot => {
                self.create(folder, self.options)?;
                qemu_io(folder, false, &["write -P 5 0 96k"])?;
                image::snapshot(folder, NAME, "kept")?;
                image::bitmap(folder, NAME, "enabled", true)?;
                qemu_io(folder, false, &["write -P 6 32k 64k"])
            }
            Make::ZeroPlain => {
                self.create(folder, self.options)?;
                qemu_io(
                    folder,
                    false,
                    &["write -z 0 1M", "write -P 4 2M 64k", "write -zu 2M 64k"],
                )
            }
            Make::ZeroPreallocated => {
                self.create(folder, self.options)?;
                qemu_io(folder, false, &["write -P 4 0 2M", "write -z 0 1M"])
            }
            Make::Empty | Make::Device => self.create(folder, self.options),
            Make::Raw | Make::RawDevice => {
                folder.set_len(NAME, self.size.parse().unwrap_or(8 << 20))?;
                let io = ["-f", "raw", "-c", "write -P 7 1M 40k", NAME];
                let done = Run::new(&tools::qemu_io()?, folder.path()).args(io).go()?;
                done.expect_code(0).map(drop)
            }
        }
    }

    fn create(&self, folder: &Scratch, options: &[&str]) -> Result<()> {
        image::create(folder, NAME, options, self.size)
    }

    /// A snapshot, two bitmaps and something to merge, as far as the format has them.
    fn prepare(&self, folder: &Scratch, prepared: Prepared) -> Result<()> {
        let run = |args: &[&str]| qemu_img(folder, self.keyed, args);
        let info = qemu_img(folder, false, &["info", "--output=json", NAME])?;
        let info: serde_json::Value = serde_json::from_slice(&info.stdout)?;
        let size = info["virtual-size"].as_u64().context("no size")?;
        // QEMU cannot store a bitmap of no bits.
        let source = if size == 0 { 1 << 20 } else { size };
        image::create(folder, SOURCE, &[], &source.to_string())?;
        image::bitmap(folder, SOURCE, "src", true)?;
        let large = size >= 1 << 20;
        if large {
            image::io(folder, SOURCE, &["write 700k 64k"])?;
        }
        if info["format"] == "raw" {
            return Ok(());
        }
        let write = |command: &str| match large {
            true => qemu_io(folder, self.keyed, &[command]),
            false => Ok(()),
        };
        let failed = run(&["snapshot", "-c", "prepared", NAME])?.code != Some(0);
        let may_fail = self
            .options
            .iter()
            .any(|o| o.starts_with("data_file=") || *o == "refcount_bits=1");
        ensure!(!failed || may_fail, "no snapshot can be made");
        write("write -P 0x21 16k 32k")?;
        if self.version_2() || prepared == Snapshot || size == 0 {
            return Ok(());
        }
        run(&["bitmap", "--add", NAME, "b2"])?.expect_code(0)?;
        write("write -P 0x22 128k 4k")?;
        run(&["bitmap", "--disable", NAME, "b2"])?.expect_code(0)?;
        run(&["bitmap", "--add", "-g", "4k", NAME, "b1"])?.expect_code(0)?;
        write("write -P 0x23 516k 4k")
    }

    fn finish(&self, folder: &Scratch) -> Result<()> {
        let path = folder.file(NAME);
        match self.finish {
            Finish::Nothing => Ok(()),
            Finish::Dirty => dirty(folder),
            Finish::Feature(offset, bit, on) => hidden::set_feature(&path, offset, bit, on),
            Finish::Extension => hidden::add_extension(&path, 0x5445_5354, b"keep me, please"),
            Finish::BitmapInUse => hidden::mark_bitmap_in_use(&path),
            Finish::StripSnapshots => hidden::strip_snapshots(&path),
            Finish::Leak => {
                let len = std::fs::metadata(&path)?.len();
                folder.set_len(NAME, len.next_multiple_of(1 << 16) + (1 << 16))?;
                hidden::set_last_refcount(&path, 1)
            }
        }
    }
}

/// A program that is killed while the image is dirty.
fn dirty(folder: &Scratch) -> Result<()> {
    let args = [
        "-f",
        "qcow2",
        "-c",
        "write -P 7 1M 200k",
        "-c",
        "abort",
        NAME,
    ];
    let done = Run::new(&tools::qemu_io()?, folder.path())
        .args(args)
        .go()?;
    ensure!(done.signal.is_some(), "{}", done.describe());
    let bits = &folder.read(NAME)?[72..80];
    ensure!(bits[7] == 1, "the image is not dirty: {bits:?}");
    Ok(())
}
