//! Virtual machines: hypervisors, guest memory and the operation microVM.
//!
//! - [`hypervisor`]: the traits; one module per hypervisor implements them
//!   (`kvm` on Linux, `hvf` on Apple silicon).
//! - [`arch`]: what ring 3 (EL0) stands on: page tables, descriptor tables, traps.
//! - [`memory`]: the guest's one memory slot and the part that devices may reach.
//! - `bell`, `threads`: what runs beside the first vCPU, and how it is told.
//! - [`operation`]: a microVM that runs one operation binary to its end.
//! - [`boot_plan`]: how the kernel of a disk is loaded, as an operation says.
//! - `live`: disks of a machine whose format a microVM knows.
//! - `machine`: a machine that runs a full Linux guest.
//!
//! Nothing here reads a byte of an image for its meaning: files are moved, not
//! parsed. The only file format known here is ELF, of the binaries that this
//! project builds itself.

pub mod arch;
mod bell;
mod block;
pub mod boot_plan;
mod error;
#[cfg(all(target_os = "macos", target_arch = "aarch64"))]
mod hvf;
pub mod hypervisor;
#[cfg(target_os = "linux")]
mod kvm;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod live;
mod loader;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
pub mod machine;
pub mod memory;
pub mod operation;
mod threads;

pub use block::HostFile;
pub use error::VmError;
