//! An image that a program of QEMU's has open.

use std::io::Read;
use std::process::Child;

use anyhow::{Context, Result, bail};

use crate::run::Run;
use crate::scratch::Scratch;
use crate::tools;

/// What `qemu-io` says once it has an image open, and its locks.
const PROMPT: &[u8; 9] = b"qemu-io> ";

/// A `qemu-io` that has an image open until it is dropped.
#[derive(Debug)]
pub struct Holder(Child);

impl Holder {
    /// Starts it, and waits until it has the image.
    pub fn open(scratch: &Scratch, args: &[&str], name: &str) -> Result<Self> {
        let run = Run::new(&tools::qemu_io()?, scratch.path());
        let mut holder = Self(run.args(args).args([name]).start()?);
        let mut said = [0; PROMPT.len()];
        let output = holder.0.stdout.as_mut().context("a pipe")?;
        let read = output.read_exact(&mut said);
        if read.is_err() || &said != PROMPT {
            let mut text = String::new();
            drop(holder.0.stdin.take());
            if let Some(stderr) = holder.0.stderr.as_mut() {
                stderr.read_to_string(&mut text)?;
            }
            bail!("qemu-io did not open {name}: {text}");
        }
        Ok(holder)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
