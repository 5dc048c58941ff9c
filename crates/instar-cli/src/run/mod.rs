//! `instar run`: a Linux guest in the foreground.
//!
//! - `options`, `config`, `check`: what is typed, the whole machine, what does not go together;
//! - `ephemeral`: an image that is only read; `scan`: the search for what an image boots; `seed`: the disk for cloud-init; `output`: what is told.

mod check;
pub mod config;
mod ephemeral;
mod options;
mod output;
mod scan;
mod seed;

pub use options::RunOptions;

use crate::cli::{LimitOptions, UsageError};
use crate::failure::{JobKind, system_text};
use crate::serve::live;
use config::{Config, Disk, Format, Net, NetKind, Stream, Transport};
use instar_sandbox::LiveImage;
use instar_sandbox::machine::{
    self, Before, BootFiles, DiskFile, DiskImage, MachineJob, NetName, NetTo, PasstNet, UserNet,
    VsockName,
};
use instar_user_net::forward::Forward;
use instar_vmm::machine::parts::{self, RateLimit};
use scan::ImageScan;
use std::io::Read;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// What stands below the options.
pub const HELP: &str = "\
IMAGE is a disk whose boot loader's default entry is started, as `instar bootscan`
shows it; the search is repeated before each boot. It gets two vCPUs, 1 GiB of memory
and a source of random bytes unless something else is said, and its kernel is told of
the console that there is. What the options of cloud-init say comes on a further disk.

An IMAGE whose name ends in .qcow2 is a qcow2 image, unless --format says otherwise; its
tables are read by an operation in a microVM of its own for as long as the guest runs.
The other disks are the bytes of their FILE unless format=qcow2 is with them. SIGTERM and SIGINT press the power button; a
second one stops the machine. At a terminal, Ctrl-A x ends the machine and
Ctrl-A Ctrl-A sends Ctrl-A.

--net user gives the guest 10.0.2.15 and lets it reach what this host reaches, but
neither this host (10.0.2.2 to the guest) nor a LAN. A RULE is
[tcp:|udp:|icmp:]WHO[:PORT[-PORT]], where WHO is an address, a network such as
192.168.0.0/16, a name, *.NAME, host or lan. What is denied goes before what is
allowed; --deny all denies what no --allow names. A name stands for the addresses
that the guest gets for it from 10.0.2.3, and never for this host's or a LAN's.

--net passt runs the program passt, if it is installed, and gives the guest this host's
own address. There are no RULEs: the guest reaches what this host reaches, a LAN
and IPv6 too, but not this host by its loopback or its router's address.

Exit codes:
  0    the guest switched the machine off, or it was ended by Ctrl-A x
  1    it did not work: wrong use, the machine failed, a limit
  130  stopped by a second signal, the first being SIGINT (143: SIGTERM)

Examples:
  instar run debian.raw --ssh-key ~/.ssh/id_ed25519.pub --hostname debian
  instar run debian.qcow2 --net user --forward tcp:2222:22
  instar run debian.qcow2 --ephemeral
  instar run debian.raw --entry '1>0' --append single --dry-run
  instar run --kernel vmlinuz --initrd initrd.img --disk disk.raw
  instar run --kernel vmlinux --cmdline 'console=ttyS0 root=/dev/vda' --disk root.raw --cpus 4 --memory 2G
  instar run --kernel vmlinuz --disk disk.raw --net user --forward tcp:2222:22
  instar run --kernel vmlinuz --net user --deny all --allow '*.debian.org:80' --allow host:8080
  instar run --kernel vmlinuz --net tap:tap0 --vsock 3:/run/vm.sock --dry-run
  instar run --config vm.toml";

/// Longest description of a machine that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 1 << 20;

/// Runs the command; returns the exit code.
///
/// # Errors
/// The description is wrong.
pub fn run(options: &RunOptions, limits: &LimitOptions) -> Result<u8, UsageError> {
    if limits.max_growth.is_some() {
        return Err(UsageError::plain(
            "--max-growth is for operations on images: a machine's disks do not grow",
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
    let seed = seed::disk(&config.cloud_init).map_err(UsageError::plain)?;
    let (config, limits, overlay) =
        ephemeral::over(config, limits.clone()).map_err(UsageError::plain)?;
    let job = MachineJob {
        seed,
        before: overlay.map(|overlay| Rc::new(overlay) as Rc<dyn Before>),
        ..job(config, options, &limits)?
    };
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
///
/// # Errors
/// It cannot be said how much memory an operation may use.
fn job(
    mut config: Config,
    options: &RunOptions,
    limits: &LimitOptions,
) -> Result<MachineJob, UsageError> {
    let mut disks = Vec::new();
    if let Some(image) = &config.image {
        let file = Disk {
            file: image.clone(),
            ..Disk::default()
        };
        disks.push(disk_image(file, config.disk_format(), limits)?);
    }
    for other in std::mem::take(&mut config.disk) {
        let format = other.format.unwrap_or(Format::Raw);
        disks.push(disk_image(other, format, limits)?);
    }
    let cmdline = config.cmdline();
    let boot = match (config.firmware.clone(), config.kernel.clone()) {
        _ if config.scans() => BootFiles::Scan(Rc::new(ImageScan::new(&config, limits))),
        (Some(firmware), _) => BootFiles::Firmware(firmware),
        (None, kernel) => BootFiles::Kernel {
            kernel: kernel.unwrap_or_default(),
            initrd: config.initrd.clone(),
            cmdline,
        },
    };
    Ok(MachineJob {
        cpus: config.cpus(),
        memory_bytes: config.memory(),
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
        disks,
        seed: None,
        before: None,
        nets: config.net.into_iter().filter_map(net).collect(),
        vsock: config.vsock.map(|vsock| VsockName {
            cid: vsock.cid,
            path: vsock.socket,
        }),
    })
}

/// A disk over an image of this format.
fn disk_image(of: Disk, format: Format, limits: &LimitOptions) -> Result<DiskImage, UsageError> {
    let disk = disk(of);
    if format == Format::Raw {
        return Ok(DiskImage::Raw(disk));
    }
    // --memory is the machine's.
    let limits = LimitOptions {
        memory: None,
        ..limits.clone()
    };
    let image = live::image(disk, format.image_format(), &limits)?;
    Ok(DiskImage::Live(Box::new(LiveImage {
        output: || live::output_of(JobKind::Run),
        ..image
    })))
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

/// A network device; what is checked already is not refused here.
fn net(net: Net) -> Option<NetName> {
    let mac = net.mac().0;
    let mtu = net.mtu.unwrap_or(instar_user_net::MAX_MTU);
    let forwards = net.forward.iter().map(|text| Forward::parse(text));
    let forwards: Vec<Forward> = forwards.collect::<Result<_, _>>().ok()?;
    let to = match net.kind {
        None => NetTo::Tap(net.tap),
        Some(NetKind::None) => return None,
        Some(NetKind::User) => NetTo::User(UserNet {
            mtu,
            dns: net.servers().ok()?,
            forwards,
            allow: net.allow,
            deny: net.deny,
            log: net.log,
        }),
        Some(NetKind::Passt) => NetTo::Passt(PasstNet {
            mtu,
            dns: net.server_addresses().ok()?,
            forwards,
        }),
    };
    Some(NetName { to, mac })
}

fn stream(stream: &Stream) -> machine::Stream {
    match stream {
        Stream::None => machine::Stream::None,
        Stream::Stdio => machine::Stream::Stdio,
        Stream::Pty => machine::Stream::Pty,
        Stream::File(path) => machine::Stream::File(path.clone()),
    }
}
