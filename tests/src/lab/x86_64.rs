//! A machine of this architecture with a genuine KVM, for Linux guests: scripts/lab.sh.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::run::{Outcome, Run};
use crate::scratch::Scratch;
use crate::tools;

/// How much longer the lab's own limit is than ours.
const SLACK: Duration = Duration::from_secs(20);

/// The lab that `make setup` fetches, with an image of Debian in it.
#[derive(Debug)]
pub struct X86_64 {
    sources: PathBuf,
    program: PathBuf,
    helper: PathBuf,
}

impl X86_64 {
    /// The lab, with the program under test.
    pub fn new() -> Result<Self> {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        super::built("lab/x86_64/busybox", "`make setup` fetches it")?;
        super::built("lab/x86_64/cloud/base.qcow2", "`make setup` makes it")?;
        Ok(Self {
            sources: sources.context("where the sources are")?.to_owned(),
            program: tools::instar()?,
            helper: super::built(
                "x86_64-unknown-linux-musl/release/vsock-tool",
                "`make linux` builds it",
            )?,
        })
    }

    /// Runs a script of the sources in the lab, for at most `limit`; what it leaves in /results is in `results` then.
    pub fn run(&self, results: &Scratch, script: &[&str], limit: Duration) -> Result<Outcome> {
        Run::new(&self.sources.join("scripts/lab.sh"), &self.sources)
            .args(["sh"])
            .args(script)
            .env("CARGO_TARGET_DIR", super::target_folder()?)
            .env("LAB_RESULTS", results.path())
            .env("LAB_SECONDS", limit.as_secs().to_string())
            .env("INSTAR_BIN", &self.program)
            .env("INSTAR_VSOCK_TOOL", &self.helper)
            .limit(limit + SLACK)
            .go()
    }
}
