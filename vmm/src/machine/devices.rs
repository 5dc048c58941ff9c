//! The virtio devices of a machine, in the order in which the guest finds them, and the threads that serve them.

use super::console;
use super::disk::Disks;
use super::disk::store::Served;
use super::error::MachineError;
use super::events::{Subscriber, Wired};
use super::life::Life;
use super::net;
use super::parts::{Line, Net, Vsock};
use super::rng;
use super::terminal::Keys;
use super::vsock;
use crate::memory::GuestSlot;
use std::sync::Arc;

/// What they are made of.
#[derive(Debug)]
pub struct Devices {
    /// Block devices.
    pub disks: Vec<Served>,
    /// Network devices.
    pub nets: Vec<Net>,
    /// The console.
    pub console: Option<Line>,
    /// Whether there is a source of random bytes.
    pub rng: bool,
    /// Sockets between guest and host.
    pub vsock: Option<Vsock>,
}

/// Makes all devices, disks first.
///
/// # Errors
/// [`MachineError`].
pub fn wire(
    devices: Devices,
    memory: &Arc<GuestSlot>,
    life: &Arc<Life>,
) -> Result<(Vec<Wired>, Disks), MachineError> {
    let mut wired = Vec::new();
    let disks = Disks::new(devices.disks.len())?;
    for (index, disk) in (0..).zip(devices.disks) {
        wired.push(disks.wire(index, disk, memory)?);
    }
    for net in devices.nets {
        wired.push(net::wire(net)?);
    }
    if let Some(line) = devices.console {
        let keys = Keys::new(line.terminal, life);
        wired.push(console::wire(line, keys)?);
    }
    if devices.rng {
        wired.push(rng::wire()?);
    }
    if let Some(vsock) = devices.vsock {
        wired.push(vsock::wire(vsock)?);
    }
    Ok((wired, disks))
}

/// By thread: each of the first `disks` has one for itself, the others and the serial line share one.
pub fn groups(
    mut subscribers: Vec<Subscriber>,
    disks: usize,
    serial: Subscriber,
) -> Vec<Vec<Subscriber>> {
    let mut others = subscribers.split_off(disks.min(subscribers.len()));
    others.push(serial);
    let disks = subscribers.into_iter().map(|disk| vec![disk]);
    disks.chain([others]).collect()
}
