//! What does not go together in a description of a machine.

use super::config::{Config, Stream};
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
    if !(1..=MAX_CPUS).contains(&config.cpus) {
        return Err(format!("a machine has 1 to {MAX_CPUS} vCPUs"));
    }
    let memory = config.memory.0;
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
    for net in &config.net {
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

/// There is one thing to start.
fn boots(config: &Config) -> Result<(), String> {
    match (&config.kernel, &config.firmware) {
        (None, None) => Err(
            "there is nothing to start: give --kernel FILE, or --firmware FILE; starting a disk image without them is not possible yet"
                .into(),
        ),
        (Some(_), Some(_)) => Err("--kernel and --firmware exclude each other".into()),
        (None, Some(_)) if config.initrd.is_some() || config.cmdline.is_some() => {
            Err("--initrd and --cmdline belong to --kernel: a firmware finds its own".into())
        }
        _ => Ok(()),
    }
}
