//! `instar run`: a Linux guest in the foreground.

mod check;
pub mod config;
mod options;
mod output;

pub use options::RunOptions;

use crate::cli::{LimitOptions, UsageError};
use crate::failure::system_text;
use config::{Config, Disk, Mac, Stream, Transport};
use instar_sandbox::machine::{self, BootFiles, DiskFile, MachineJob, TapName, VsockName};
use instar_vmm::machine::parts::{self, RateLimit};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// What stands below the options.
pub const HELP: &str = "\
A disk is the bytes of FILE, whatever is in them: a qcow2 image is not looked into,
and is an odd raw disk to the guest. SIGTERM and SIGINT press the power button; a
second one stops the machine. At a terminal, Ctrl-A x ends the machine and
Ctrl-A Ctrl-A sends Ctrl-A.

Exit codes:
  0    the guest switched the machine off, or it was ended by Ctrl-A x
  1    it did not work: wrong use, the machine failed, a limit
  130  stopped by a second signal, the first being SIGINT (143: SIGTERM)

Examples:
  instar run --kernel vmlinuz --initrd initrd.img --disk disk.raw
  instar run --kernel vmlinux --cmdline 'console=ttyS0 root=/dev/vda' --disk root.raw --cpus 4 --memory 2G
  instar run --kernel vmlinuz --net tap:tap0 --vsock 3:/run/vm.sock --dry-run
  instar run --config vm.toml";

/// Longest description of a machine that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Runs the command; returns the exit code.
///
/// # Errors
/// The description is wrong.
pub fn run(options: &RunOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    if limits.max_growth.is_some() || !limits.allow_path.is_empty() {
        return Err(UsageError::plain(
            "--max-growth and --allow-path are for operations on images: a machine's disks do not grow, and name no files",
        ));
    }
    let config = match &options.config {
        Some(path) => read(path).map_err(UsageError::plain)?,
        None => Config::default(),
    };
    let config = options.over(config, limits).map_err(UsageError::plain)?;
    check::check(&config).map_err(UsageError::plain)?;
    let config = config.complete();
    if options.dry_run {
        return Ok(crate::print(&config.text().map_err(UsageError::plain)?));
    }
    let mut output = output::RunOutput::new(options.json, config.serial() == Stream::Stdio);
    if let Some(remark) = instar_vmm::machine::host_remark() {
        output.say(&format!("warning: {remark}"));
    }
    let job = job(config, options, limits);
    Ok(machine::run_machine(&job, &mut output))
}

/// Reads a description.
fn read(path: &Path) -> Result<Config, String> {
    let failed = |error| format!("cannot read '{}': {}", path.display(), system_text(&error));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    let read = file.take(MAX_CONFIG_BYTES).read_to_string(&mut text);
    match read {
        Ok(bytes) if bytes as u64 == MAX_CONFIG_BYTES => Err(format!(
            "'{}' is too long for a description of a machine",
            path.display()
        )),
        Ok(_) => Config::parse(&text, path),
        Err(error) => Err(failed(error)),
    }
}

/// What the description asks of the sandbox.
fn job(config: Config, options: &RunOptions, limits: &LimitOptions) -> MachineJob {
    let cmdline = config.cmdline();
    let boot = match (config.firmware.clone(), config.kernel.clone()) {
        (Some(firmware), _) => BootFiles::Firmware(firmware),
        (None, kernel) => BootFiles::Kernel {
            kernel: kernel.unwrap_or_default(),
            initrd: config.initrd.clone(),
            cmdline,
        },
    };
    MachineJob {
        cpus: config.cpus,
        memory_bytes: config.memory.0,
        transport: match config.transport {
            Transport::Pci => parts::Transport::Pci,
            Transport::Mmio => parts::Transport::Mmio,
        },
        boot,
        serial: stream(&config.serial()),
        console: stream(&config.console),
        rng: config.rng,
        reboot: config.reboot,
        shutdown: Duration::from_secs(config.shutdown_timeout),
        timeout: limits.timeout,
        recycle: options.recycle(),
        disks: config.disk.into_iter().map(disk).collect(),
        nets: config
            .net
            .into_iter()
            .map(|net| TapName {
                mac: net.mac.unwrap_or_else(|| Mac::of_name(&net.tap)).0,
                name: net.tap,
            })
            .collect(),
        vsock: config.vsock.map(|vsock| VsockName {
            cid: vsock.cid,
            path: vsock.socket,
        }),
    }
}

fn disk(disk: Disk) -> DiskFile {
    let rate = RateLimit {
        bytes_per_second: disk.bytes_per_second.0,
        requests_per_second: disk.requests_per_second,
    };
    DiskFile {
        path: disk.file,
        read_only: disk.readonly,
        direct: disk.direct,
        serial: disk.serial,
        rate: (rate != RateLimit::default()).then_some(rate),
    }
}

fn stream(stream: &Stream) -> machine::Stream {
    match stream {
        Stream::None => machine::Stream::None,
        Stream::Stdio => machine::Stream::Stdio,
        Stream::Pty => machine::Stream::Pty,
        Stream::File(path) => machine::Stream::File(path.clone()),
    }
}
