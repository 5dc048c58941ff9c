//! Passwords: taken out of their region when the first is asked for; the region is then overwritten.

use crate::Platform;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Deref;
use core::sync::atomic::{Ordering, compiler_fence};
use instar_shared::layout::SECRETS;
use instar_shared::secret::{SecretEntry, SecretHeader, SecretRole, SecretUse, decode};
use instar_shared::zerocopy::FromBytes;
use zeroize::{Zeroize, Zeroizing};

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

    /// The secret of this use, which is no longer here then.
    pub(crate) fn take_one(&mut self, slot: u32, depth: u32, role: SecretRole) -> Option<Secret> {
        let (index, secret) = self.find(slot, depth, role)?;
        let (header, entry) = (size_of::<SecretHeader>(), size_of::<SecretEntry>());
        let at = index.checked_mul(entry)?.checked_add(header)?;
        let entry = self.0.get_mut(at..)?;
        let (entry, _) = SecretEntry::mut_from_prefix(entry).ok()?;
        let start = usize::try_from(entry.offset.get()).ok()?;
        // No image has this slot.
        entry.slot.set(u32::MAX);
        let bytes = self.0.get_mut(start..)?.get_mut(..secret.len())?;
        bytes.zeroize();
        Some(secret)
    }

    /// Whether the secret of this use is here.
    pub(crate) fn has(&self, slot: u32, depth: u32, role: SecretRole) -> bool {
        self.find(slot, depth, role).is_some()
    }

    /// The number and the secret of this use.
    fn find(&self, slot: u32, depth: u32, role: SecretRole) -> Option<(usize, Secret)> {
        let mut uses = decode(&self.0)?.enumerate();
        let wanted = (slot, depth, role);
        let is_wanted = |used: &SecretUse<'_>| (used.slot, used.depth, used.role) == wanted;
        let (index, found) = uses.find(|(_, used)| is_wanted(used))?;
        Some((index, Secret(Zeroizing::new(found.bytes.to_vec()))))
    }
}
