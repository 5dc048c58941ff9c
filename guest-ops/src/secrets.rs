//! Passwords: taken out of their region when the first is asked for; the region is then overwritten.

use crate::Platform;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{Ordering, compiler_fence};
use instar_shared::layout::SECRETS;
use instar_shared::secret::{SecretRole, decode};
use zeroize::Zeroizing;

/// A password; overwritten when it is dropped, and never printed.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

impl Deref for Secret {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// The copy of the secret region.
pub(crate) struct Secrets(Zeroizing<Vec<u8>>);

impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secrets")
    }
}

impl Secrets {
    /// Takes the region's content; zeroes stay there.
    ///
    /// # Panics
    /// If the host wrote something else than secrets.
    #[allow(clippy::cast_possible_truncation)] // 16 KiB
    pub(crate) fn take<P: Platform>(platform: &P) -> Self {
        const LEN: usize = SECRETS.size as usize;
        let mut copy = Zeroizing::new(vec![0_u8; LEN]);
        let region = platform.pointer(SECRETS.start, LEN);
        // SAFETY: the platform gave a pointer that is valid for the region's length, of which nobody else
        // has a reference; the copy is as long.
        unsafe {
            region
                .as_ptr()
                .copy_to_nonoverlapping(copy.as_mut_ptr(), LEN)
        };
        for at in 0..LEN {
            // SAFETY: as above; `at` is below the region's length.
            unsafe { region.add(at).write_volatile(0) };
        }
        compiler_fence(Ordering::SeqCst);
        assert!(decode(&copy).is_some(), "the secret region is damaged");
        Self(copy)
    }

    /// The secret of this use.
    pub(crate) fn find(&self, slot: u32, depth: u32, role: SecretRole) -> Option<Secret> {
        let mut uses = decode(&self.0)?;
        let wanted = (slot, depth, role);
        let found = uses.find(|used| (used.slot, used.depth, used.role) == wanted)?;
        Some(Secret(Zeroizing::new(found.bytes.to_vec())))
    }
}
