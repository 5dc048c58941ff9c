//! Hypervisor.framework's errors as sentences that a person can act on.

use crate::VmError;
use applevisor::error::HypervisorError;
use std::io;

/// Why the framework refused `name`.
pub fn call(name: &'static str) -> impl Fn(HypervisorError) -> VmError {
    move |error| VmError::Call {
        call: name,
        source: io::Error::other(error.to_string()),
        hint: hint(error),
    }
}

const fn hint(error: HypervisorError) -> &'static str {
    match error {
        HypervisorError::Denied => {
            "sign the program with the entitlement com.apple.security.hypervisor (codesign --force --sign - \
             --entitlements FILE PROGRAM, where FILE is a property list that sets it to true)"
        }
        HypervisorError::Unsupported => {
            "instar needs a Mac with Apple silicon and macOS 15 or newer; inside a virtual machine, nested \
             virtualisation"
        }
        HypervisorError::Busy | HypervisorError::NoResources | HypervisorError::NoDevice => {
            "too many virtual machines may be running: stop one, or lower --memory"
        }
        _ => "update macOS, or see the system log (log show --last 5m)",
    }
}
