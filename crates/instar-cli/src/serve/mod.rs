//! `instar serve`: a disk for the guest of another program. `qemu-img` has no such command.

pub mod live;

use crate::cli::{LimitOptions, UsageError};
use crate::failure::{self, JobKind};
use crate::sink::{Out, Sink};
use clap::Args;
use instar_sandbox::machine::{DiskFile, DiskImage, MachineFailure};
use instar_sandbox::serve::{self, ServeJob, ServeOutput};
use instar_shared::op::ImageFormat;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// What stands below the options.
pub const HELP: &str = "\
A qcow2 image, the images below it and its data file are read by an operation in a
microVM of its own for as long as they are served; one that is marked dirty has to be
repaired before. Without -f the operation finds the format.

The disk has one queue. The guest's memory must be shared, as with QEMU's
memory-backend-memfd,share=on. One front end is served at a time; when it has gone,
the next may connect. SIGTERM and SIGINT end the server when what was written is
durable.

Exit codes:
  0    ended by a signal, and what was written is durable
  1    it did not work: wrong use, an unreadable image, a limit
  130  stopped by a second signal, the first being SIGINT (143: SIGTERM)

Examples:
  instar serve --socket /run/disk.sock disk.qcow2
  instar serve -f raw --socket /run/disk.sock disk.raw
  qemu-system-x86_64 -m 1G -object memory-backend-memfd,id=m,size=1G,share=on \\
    -machine q35,memory-backend=m -chardev socket,id=d,path=/run/disk.sock \\
    -device vhost-user-blk-pci,chardev=d";

/// Options of `serve`.
#[derive(Args, Clone, Debug)]
pub struct ServeOptions {
    /// Where front ends connect: a Unix socket, which is made
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// The image's format: raw or qcow2; else it is looked for
    #[arg(short = 'f', long, value_name = "FORMAT")]
    pub format: Option<OsString>,
    /// Write nothing
    #[arg(long)]
    pub read_only: bool,
    /// Pass by the host's page cache
    #[arg(long)]
    pub direct: bool,
    /// What the guest reads as the disk's identifier, at most 20 bytes
    #[arg(long, value_name = "ID", default_value = "")]
    pub serial: String,
    /// A disk image, or a block device
    #[arg(value_name = "FILE")]
    pub image: PathBuf,
}

/// Most bytes of a disk's identifier.
const MAX_SERIAL_BYTES: usize = 20;

/// Runs the command; returns the exit code.
///
/// # Errors
/// The options do not go together, or ask for what is not there.
pub fn run(options: &ServeOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    let format = match options.format.as_deref().map(|format| format.to_str()) {
        None => ImageFormat::Probe,
        Some(Some("raw")) => ImageFormat::Raw,
        Some(Some("qcow2")) => ImageFormat::Qcow2,
        Some(_) => {
            return Err(UsageError::plain(
                "only raw and qcow2 images can be served: give -f raw, -f qcow2, or no -f",
            ));
        }
    };
    let is_raw = format == ImageFormat::Raw;
    if is_raw
        && (limits.memory.is_some() || limits.max_growth.is_some() || !limits.allow_path.is_empty())
    {
        return Err(UsageError::plain(
            "--memory, --max-growth and --allow-path are for operations on images: a raw disk that is served needs none of them",
        ));
    }
    if options.serial.len() > MAX_SERIAL_BYTES {
        return Err(UsageError::plain(
            "--serial: an identifier has at most 20 bytes",
        ));
    }
    let disk = DiskFile {
        path: options.image.clone(),
        read_only: options.read_only,
        direct: options.direct,
        serial: options.serial.clone(),
        rate: None,
    };
    let image = if is_raw {
        DiskImage::Raw(disk)
    } else {
        DiskImage::Live(Box::new(live::image(disk, format, limits)?))
    };
    let job = ServeJob {
        image,
        socket: options.socket.clone(),
        timeout: limits.timeout,
    };
    let mut output = Said(Sink::stderr());
    Ok(serve::serve(&job, &mut output))
}

/// What the command says, on standard error.
struct Said(Sink);

impl ServeOutput for Said {
    fn listening(&mut self, socket: &Path) {
        let line = format!("instar: the disk is served at {}", socket.display());
        self.0.put(line.as_bytes());
        self.0.end_line();
        self.0.flush();
    }

    fn failed(&mut self, error: &MachineFailure) {
        failure::write(&mut self.0, JobKind::Check, error.to_string().as_bytes());
        self.0.flush();
    }
}
