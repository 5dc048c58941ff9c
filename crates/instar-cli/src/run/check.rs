//! What does not go together in a description of a machine.

use super::config::{Config, Net, NetKind, Stream};
use instar_user_net::forward::{Forward, MAX_FORWARDS};
use instar_user_net::policy::Policy;
use instar_user_net::servers::MAX_SERVERS;
use instar_user_net::{MAX_MTU, MIN_MTU};
use instar_vmm::machine::layout::MAX_CPUS;

/// Memory comes in pieces of so many bytes.
const MEMORY_STEP: u64 = 2 << 20;
/// Less does not start a kernel.
const LEAST_MEMORY: u64 = 32 << 20;
/// Most memory: what a guest-physical address of 46 bits reaches.
const MOST_MEMORY: u64 = 1 << 45;
/// Longest identifier of a disk. VirtIO 1.3 §5.2.6 `VIRTIO_BLK_T_GET_ID`.
const MAX_SERIAL: usize = 20;
/// First address of a guest. VirtIO 1.3 §5.10.4.
const FIRST_CID: u32 = 3;
/// Most disks, and most network devices.
const MAX_DEVICES: usize = 16;

/// Checks a whole description.
///
/// # Errors
/// The first thing that is wrong, in a sentence.
pub fn check(config: &Config) -> Result<(), String> {
    boots(config)?;
    if !(1..=MAX_CPUS).contains(&config.cpus()) {
        return Err(format!("a machine has 1 to {MAX_CPUS} vCPUs"));
    }
    let memory = config.memory();
    if !(LEAST_MEMORY..=MOST_MEMORY).contains(&memory) || !memory.is_multiple_of(MEMORY_STEP) {
        return Err("a machine's memory is a multiple of 2M, at least 32M and at most 32T".into());
    }
    if config.serial() == Stream::Stdio && config.console == Stream::Stdio {
        return Err("only one of --serial and --console can be stdio".into());
    }
    if config.disk.len() > MAX_DEVICES || config.net.len() > MAX_DEVICES {
        return Err(format!(
            "a machine has at most {MAX_DEVICES} disks and {MAX_DEVICES} network devices"
        ));
    }
    for disk in &config.disk {
        if disk.file.as_os_str().is_empty() {
            return Err("a disk has no file name".into());
        }
        let serial = disk.serial.as_bytes();
        if serial.len() > MAX_SERIAL || !serial.iter().all(u8::is_ascii_graphic) {
            return Err(format!(
                "a disk's serial is at most {MAX_SERIAL} visible ASCII characters"
            ));
        }
    }
    nets(&config.net)?;
    for net in config.net.iter().filter(|net| net.kind.is_none()) {
        // `ifr_name` has 16 bytes with the zero.
        if net.tap.is_empty() || net.tap.len() > 15 || net.tap.contains(['/', '\0', ' ']) {
            return Err(format!("'{}' is not the name of a tap device", net.tap));
        }
    }
    match &config.vsock {
        Some(vsock) if vsock.cid < FIRST_CID || vsock.cid == u32::MAX => Err(format!(
            "a guest's vsock address (CID) is {FIRST_CID} or more"
        )),
        Some(vsock) if vsock.socket.as_os_str().is_empty() => {
            Err("--vsock needs the path of a socket".into())
        }
        _ => Ok(()),
    }
}

/// User networks, and no network.
fn nets(nets: &[Net]) -> Result<(), String> {
    let of = |kind| {
        nets.iter()
            .filter(move |net| net.kind == Some(kind))
            .count()
    };
    if of(NetKind::User).saturating_add(of(NetKind::Passt)) > 1 {
        return Err("a machine has at most one network of --net user and --net passt".into());
    }
    if of(NetKind::None) > 0 && nets.len() > 1 {
        return Err("--net none stands alone".into());
    }
    for net in nets {
        let lists = [&net.dns, &net.forward, &net.allow, &net.deny];
        let users = net.mtu.is_some() || net.log.is_some() || lists.iter().any(|it| !it.is_empty());
        match net.kind {
            Some(NetKind::User) => user_net(net)?,
            Some(NetKind::Passt) => passt_net(net)?,
            _ if users => {
                return Err(
                    "mtu, dns and --forward belong to --net user and --net passt, --allow, --deny and --net-log to --net user"
                        .into(),
                );
            }
            _ => {}
        }
        if net.kind.is_some() && !net.tap.is_empty() {
            return Err(
                "a network device is connected to a tap device or to something else".into(),
            );
        }
    }
    Ok(())
}

/// A user network's rules and ports are checked before anything is opened.
fn user_net(net: &Net) -> Result<(), String> {
    ports(net)?;
    net.servers()?;
    Policy::new(&net.allow, &net.deny).map_err(|error| error.to_string())?;
    Ok(())
}

/// What passt is not told is refused: it has no such rules.
fn passt_net(net: &Net) -> Result<(), String> {
    if !net.allow.is_empty() || !net.deny.is_empty() || net.log.is_some() {
        return Err(
            "--allow, --deny and --net-log belong to --net user: what a guest reaches through passt is passt's to decide"
                .into(),
        );
    }
    ports(net)?;
    net.server_addresses().map(|_| ())
}

/// What both kinds have.
fn ports(net: &Net) -> Result<(), String> {
    if net
        .mtu
        .is_some_and(|mtu| !(MIN_MTU..=MAX_MTU).contains(&mtu))
    {
        return Err(format!("a network's mtu is {MIN_MTU} to {MAX_MTU}"));
    }
    if net.dns.len() > MAX_SERVERS {
        return Err(format!("at most {MAX_SERVERS} DNS servers are asked"));
    }
    if net.forward.len() > MAX_FORWARDS {
        return Err(format!("at most {MAX_FORWARDS} ports are forwarded"));
    }
    for text in &net.forward {
        Forward::parse(text).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// There is one thing to start.
fn boots(config: &Config) -> Result<(), String> {
    if !config.scans() && (config.entry.is_some() || config.append.is_some()) {
        return Err("--entry and --append belong to what a disk image boots".into());
    }
    if config.image.is_none() && config.format.is_some() {
        return Err("--format belongs to a disk image that is booted".into());
    }
    if config.image.is_none() && config.ephemeral {
        return Err("--ephemeral belongs to a disk image that is booted".into());
    }
    match (&config.kernel, &config.firmware) {
        (None, None) if config.scans() && config.initrd.is_some() => {
            Err("--initrd belongs to --kernel".into())
        }
        (None, None) if config.scans() => Ok(()),
        (None, None) => Err(
            "there is nothing to start: give a disk image, --kernel FILE or --firmware FILE".into(),
        ),
        (Some(_), Some(_)) => Err("--kernel and --firmware exclude each other".into()),
        (None, Some(_)) if config.initrd.is_some() || config.cmdline.is_some() => {
            Err("--initrd and --cmdline belong to --kernel: a firmware finds its own".into())
        }
        _ => Ok(()),
    }
}
