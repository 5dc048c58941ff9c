//! Random bytes for the guest, from the kernel.

use super::events::Wired;
use crate::VmError;
use instar_devices::rng::{Entropy, VirtioRng};
use rustix::rand::{GetRandomFlags, getrandom};
use std::sync::{Arc, Mutex};

/// The kernel's source.
#[derive(Debug)]
struct Kernel;

impl Entropy for Kernel {
    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        let mut rest = bytes;
        while !rest.is_empty() {
            match getrandom(&mut *rest, GetRandomFlags::empty()) {
                Ok(count) => rest = rest.get_mut(count..).unwrap_or_default(),
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

/// The source as a device.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn wire() -> Result<Wired, VmError> {
    Wired::new(Arc::new(Mutex::new(VirtioRng::new(Box::new(Kernel)))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_filled_to_the_last() {
        let mut bytes = [0; 1024];
        assert!(Kernel.fill(&mut bytes));
        assert!(bytes.chunks(64).all(|part| part.iter().any(|b| *b != 0)));
    }
}
