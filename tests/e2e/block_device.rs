//! Block devices are images: a loop device over a qcow2 file.

use std::os::unix::fs::FileTypeExt;
use std::path::PathBuf;

use anyhow::{Result, bail};
use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// A loop device, detached when dropped.
pub struct Loop {
    losetup: PathBuf,
    device: String,
}

impl Loop {
    /// Puts a file of the folder behind a free device; `more` are options of `losetup`.
    pub fn attach(scratch: &Scratch, more: &[&str], name: &str) -> Result<Self> {
        let losetup = tools::in_path("losetup".as_ref())?;
        let done = Run::new(&losetup, scratch.path())
            .args(["--find", "--show"])
            .args(more)
            .args([name])
            .go()?;
        let device = done.out().trim().to_owned();
        let is_device = std::fs::metadata(&device).is_ok_and(|m| m.file_type().is_block_device());
        if done.code != Some(0) || !is_device {
            bail!(
                "the block device test needs root and a free loop device; losetup says: {}",
                done.err().trim()
            );
        }
        Ok(Self { losetup, device })
    }

    /// The device's path.
    pub fn path(&self) -> &str {
        &self.device
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Run::new(&self.losetup, "/".as_ref())
            .args(["--detach", &self.device])
            .go();
    }
}

/// Compares everything on a device over an image.
fn on_device(options: &[&str], more: &[&str]) -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "disk.qcow2", options)?;
    let device = Loop::attach(&scratch, more, "disk.qcow2")?;
    let mut bench = Bench::new(&scratch);
    bench.same_both("device", &device.device)?;
    for args in [
        &["info", "-f", "raw", &device.device][..],
        &["info", "-f", "qcow2", &device.device],
        &["info", "--backing-chain", &device.device],
        &["check", "-q", &device.device],
        &["check", "-f", "raw", &device.device],
        &["check", "-T", "none", &device.device],
        &["info", "-U", &device.device],
    ] {
        bench.same("device", args)?;
    }
    bench.finish()
}

#[test]
fn loop_device_over_qcow2() -> Outcome {
    on_device(&[], &[])
}

#[test]
fn read_only_loop_device_over_qcow2() -> Outcome {
    on_device(&["cluster_size=4k", "refcount_bits=8"], &["--read-only"])
}

#[test]
fn loop_device_over_raw_data() -> Outcome {
    let scratch = Scratch::new()?;
    scratch.write("disk.raw", &vec![9; 3 << 20])?;
    let device = Loop::attach(&scratch, &[], "disk.raw")?;
    let mut bench = Bench::new(&scratch);
    bench.same_both("device", &device.device)?;
    bench.finish()
}

#[test]
fn loop_device_longer_than_the_image() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "disk.qcow2", &[])?;
    scratch.set_len("disk.qcow2", 64 << 20)?;
    let device = Loop::attach(&scratch, &[], "disk.qcow2")?;
    let mut bench = Bench::new(&scratch);
    bench.same_both("device", &device.device)?;
    bench.finish()
}
