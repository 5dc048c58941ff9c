//! Virtio devices that know no hypervisor.
//!
//! Nothing here opens a file, starts a thread or names KVM: guest memory comes
//! as [`vm_memory::GuestMemory`], the store behind a block device as
//! [`blk::BlockBackend`], and who rings the doorbell is the caller's business.
//! The same device serves operations (queues announced in the device table) and
//! Linux guests (virtio-pci, virtio-mmio).
//!
//! Whatever the driver in the guest writes is hostile until proved otherwise: it
//! is read once into a copy, every length has a named cap, and a driver that
//! breaks the rules gets a status or a [`blk::DeviceFault`], never a panic.
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

pub mod blk;
pub mod bus;
pub mod console;
pub mod msi;
pub mod net;
pub mod pci;
pub mod rate;
mod registers;
pub mod rng;
pub mod virtio;
pub mod vsock;
