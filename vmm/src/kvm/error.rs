//! KVM's errors as sentences that a person can act on.

use crate::VmError;
use std::io;

const DEVICE: &str = "/dev/kvm";

/// Why `/dev/kvm` could not be opened.
pub fn open(error: kvm_ioctls::Error) -> VmError {
    match error.errno() {
        libc::ENOENT | libc::ENXIO | libc::ENODEV => VmError::NoHypervisor { device: DEVICE },
        libc::EACCES | libc::EPERM => VmError::NoPermission { device: DEVICE },
        errno => VmError::OpenHypervisor {
            device: DEVICE,
            source: io::Error::from_raw_os_error(errno),
        },
    }
}

/// `/dev/kvm` opened, but it does not know KVM's calls.
pub const fn not_kvm() -> VmError {
    VmError::NotHypervisor { device: DEVICE }
}

/// Why the ioctl `name` failed.
pub fn call(name: &'static str) -> impl Fn(kvm_ioctls::Error) -> VmError {
    move |error| {
        let hint = match error.errno() {
            libc::EBUSY => {
                "another hypervisor (VirtualBox, VMware) may hold the CPU's virtualisation: stop it"
            }
            libc::ENOMEM => "the host is out of memory: free some, or lower --memory",
            libc::EPERM | libc::EACCES => {
                "a security policy (seccomp, SELinux, AppArmor) forbids it: allow KVM ioctls"
            }
            libc::EMFILE | libc::ENFILE => "too many files are open: raise the limit (ulimit -n)",
            libc::EINVAL | libc::ENOSYS | libc::EOPNOTSUPP | libc::ENOTTY => {
                "this kernel's KVM lacks a feature that instar needs: use Linux 5.10 or newer"
            }
            _ => "see the kernel log (dmesg)",
        };
        VmError::Call {
            call: name,
            source: io::Error::from_raw_os_error(error.errno()),
            hint,
        }
    }
}

/// Whether this host's KVM interprets ring-0 code: `kvm_pvm` runs without hardware virtualisation, ring 3 natively.
pub fn emulates_ring_0() -> bool {
    std::path::Path::new("/sys/module/kvm_pvm").exists()
}

/// A remark for failed runs on hosts whose KVM emulates ring 0.
pub fn emulation_remark() -> &'static str {
    if emulates_ring_0() {
        "; this host's KVM (kvm_pvm) emulates ring-0 code and may not know this instruction"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_says_what_to_do() {
        let text = open(kvm_ioctls::Error::new(libc::ENOENT)).to_string();
        assert!(
            text.contains("/dev/kvm does not exist") && text.contains("modprobe"),
            "{text}"
        );
        let text = open(kvm_ioctls::Error::new(libc::EACCES)).to_string();
        assert!(
            text.contains("no permission") && text.contains("usermod -aG kvm"),
            "{text}"
        );
        let text = open(kvm_ioctls::Error::new(libc::EBUSY)).to_string();
        assert!(text.contains("cannot open /dev/kvm"), "{text}");
        let text = call("KVM_CREATE_VM")(kvm_ioctls::Error::new(libc::EBUSY)).to_string();
        assert!(
            text.contains("KVM_CREATE_VM") && text.contains("another hypervisor"),
            "{text}"
        );
    }
}
