//! A machine that runs a full Linux guest.
//!
//! One more wiring of what operations stand on: the same guest memory, hypervisor and devices. What is new is what a
//! stock kernel expects of a computer: firmware tables, a PCI bus, interrupts, a clock, a power button.
//!
//! - [`parts`]: what the machine is made of, opened and checked by the caller.
//! - [`layout`]: who answers at which guest-physical address and port.
//!
//! The files that are loaded here, kernel, initial RAM disk and firmware, are ones that the user names: the host reads
//! their headers (`linux-loader`). It reads nothing of a disk.

pub mod layout;
pub mod parts;
