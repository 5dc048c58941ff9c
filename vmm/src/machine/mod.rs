//! A machine that runs a full Linux guest.
//!
//! One more wiring of what operations stand on: the same guest memory, hypervisor and devices. What is new is what a
//! stock kernel expects of a computer: firmware tables, a PCI bus, interrupts, a clock, a power button.
//!
//! - [`parts`]: what the machine is made of, opened and checked by the caller.
//! - [`control`]: how it is held from outside, and how it ends.
//! - [`layout`]: who answers at which guest-physical address and port.
//! - `build`, `run`: from parts to a machine, and from its first instruction to its end.
//! - `boot`: what is in memory before the first instruction.
//! - `acpi`, `dsdt`, `smbios`: what the guest finds the machine's parts by.
//! - `vcpu`, `life`, `signal`: the threads of vCPUs, paused and ended.
//! - `power`, `rtc`, `serial`: devices that are not virtio's.
//! - `devices`: the virtio devices of a machine, and which thread serves which.
//! - `transport`: virtio devices on PCI or virtio-mmio.
//! - `net`, [`tap`], `vsock`: what stands behind these virtio devices.
//! - [`serve`]: a disk for the guest of another program (vhost-user-blk).
//! - `irq`: interrupts, from devices to local APICs.
//! - `disk`, `console`, `rng`: devices, and what of the host stands behind them.
//! - [`events`]: the threads that serve devices, and what wakes them.
//!
//! The files that are loaded here, kernel, initial RAM disk and firmware, are ones that the user names: the host reads
//! their headers (`linux-loader`). It reads nothing of a disk.

mod acpi;
mod boot;
mod build;
mod console;
pub mod control;
mod counts;
mod devices;
pub mod disk;
mod dsdt;
mod error;
pub mod events;
mod irq;
pub mod layout;
mod life;
mod net;
/// The parts that read what another program of the host writes, without a guest: for fuzzers.
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod seam {
    pub use super::net::model::run as run_net_stream;
}
mod power;
mod rtc;
mod run;
mod serial;
pub mod serve;
mod signal;
mod smbios;
pub mod tap;
mod terminal;
#[cfg(test)]
mod tests;
mod transport;
mod vcpu;
mod vectors;
mod vsock;

mod output;
pub mod parts;
mod rng;

pub use error::MachineError;
pub use run::Machine;

/// What the user should know before a Linux guest starts on this host, if anything. To be asked before files are given up.
#[must_use]
pub fn host_remark() -> Option<&'static str> {
    crate::kvm::emulates_ring_0().then_some(
        "this host's KVM (kvm_pvm) emulates ring-0 code: a Linux kernel needs minutes to boot here, or does not; use a host \
         with hardware virtualisation",
    )
}
