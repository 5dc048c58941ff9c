//! Why a virtual machine could not be set up or run.

use std::io;

/// A failure of the host side. Each text says what, why, and what to do.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The hypervisor's device is not there.
    #[error(
        "no hypervisor: {device} does not exist; enable virtualisation in the firmware (or nested \
         virtualisation for this VM) and load the kvm module (modprobe kvm_intel or kvm_amd)"
    )]
    NoHypervisor {
        /// The device node.
        device: &'static str,
    },
    /// The user may not use the hypervisor.
    #[error(
        "no permission to use {device}; add your user to its group (usermod -aG kvm $USER, then log in \
         again) or run as a user who may"
    )]
    NoPermission {
        /// The device node.
        device: &'static str,
    },
    /// The hypervisor's device cannot be opened for another reason.
    #[error(
        "cannot open {device}: {source}; check that no other hypervisor holds the CPU's virtualisation"
    )]
    OpenHypervisor {
        /// The device node.
        device: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not the hypervisor's device.
    #[error(
        "{device} is not the KVM device: it does not answer; remove it and load the kvm module again \
         (modprobe -r kvm_intel kvm_amd; modprobe kvm_intel or kvm_amd)"
    )]
    NotHypervisor {
        /// The device node.
        device: &'static str,
    },
    /// The hypervisor speaks another interface version.
    #[error("KVM API version {found} is not 12; update the kernel")]
    ApiVersion {
        /// The version found.
        found: i32,
    },
    /// The passwords do not fit their region.
    #[error(
        "the passwords are too many or too long; at most 4096 bytes each, and about 16,000 in all"
    )]
    Secrets,
    /// No random bytes for keys.
    #[error("the kernel gives no random bytes: {0}; keys cannot be made without")]
    Random(#[source] io::Error),
    /// A hypervisor call was refused.
    #[error("the hypervisor refused {call}: {source}; {hint}")]
    Call {
        /// The call, e.g. `KVM_CREATE_VM`.
        call: &'static str,
        /// What the system said.
        source: io::Error,
        /// What the user can do.
        hint: &'static str,
    },
    /// The CPU could not be brought to run the guest.
    #[error(
        "KVM could not run the guest ({reason}){emulation}; see the kernel log (dmesg), and try another \
         host or kernel"
    )]
    Run {
        /// What the exit said.
        reason: String,
        /// A remark where ring 0 is emulated, else empty.
        emulation: &'static str,
    },
    /// The host has not enough memory for the guest.
    #[error(
        "cannot reserve {bytes} bytes of guest memory: {source}; lower --memory or raise the limit (ulimit -v)"
    )]
    Memory {
        /// Size of the slot.
        bytes: u64,
        /// What the system said.
        source: io::Error,
    },
    /// A guest address outside the slot.
    #[error(
        "internal error: guest address {gpa:#x} (+{len}) is outside the guest's memory; please report this"
    )]
    OutsideMemory {
        /// The address.
        gpa: u64,
        /// Length of the access.
        len: usize,
    },
    /// The operation binary is not one of ours.
    #[error("internal error: the operation binary is unusable ({0}); rebuild instar")]
    Image(String),
    /// A timer could not be made.
    #[error("cannot start {what}: {source}; raise the limit of pending signals (ulimit -i)")]
    Start {
        /// What should start.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// A disk's image cannot be used, as who reads it says.
    #[cfg(all(target_os = "linux", target_arch = "x86_64"))]
    #[error(transparent)]
    Source(#[from] crate::live::source::SourceGone),
}
