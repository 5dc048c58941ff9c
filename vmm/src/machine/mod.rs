//! A machine that runs a full Linux guest.
//!
//! One more wiring of what operations stand on: the same guest memory, hypervisor and devices. What is new is what a
//! stock kernel expects of a computer: firmware tables, a PCI bus, interrupts, a clock, a power button.
//!
//! - [`parts`]: what the machine is made of, opened and checked by the caller.
//! - [`control`]: how it is held from outside, and how it ends.
//! - [`layout`]: who answers at which guest-physical address and port.
//! - `irq`: interrupts, from devices to local APICs.
//! - [`events`]: the threads that serve devices, and what wakes them.
//!
//! The files that are loaded here, kernel, initial RAM disk and firmware, are ones that the user names: the host reads
//! their headers (`linux-loader`). It reads nothing of a disk.

pub mod control;
pub mod events;
#[allow(dead_code)]
mod irq;
pub mod layout;
pub mod parts;
