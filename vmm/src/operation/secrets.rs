//! Passwords for the guest: their region is written last and overwritten when the machine ends.

use crate::VmError;
use crate::memory::GuestSlot;
use instar_shared::layout::SECRETS;
use instar_shared::secret::{self, SecretRole, SecretUse};
use std::fmt;
use std::sync::Arc;
use zeroize::Zeroizing;

/// One use of a password. Its bytes are overwritten when it is dropped, and never printed.
#[derive(Clone)]
pub struct Secret {
    /// Slot of the image that the user names.
    pub slot: u16,
    /// Which image of its chain: 0 is the image itself, 1 its backing file, and so on.
    pub depth: u32,
    /// What it is for.
    pub role: SecretRole,
    /// The password: at most [`secret::MAX_SECRET_BYTES`].
    pub bytes: Zeroizing<Vec<u8>>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_use().fmt(f)
    }
}

impl Secret {
    fn as_use(&self) -> SecretUse<'_> {
        SecretUse {
            slot: self.slot.into(),
            depth: self.depth,
            role: self.role,
            bytes: &self.bytes,
        }
    }
}

/// The secret region of a machine, overwritten when this is dropped.
#[derive(Debug)]
pub struct Region(Arc<GuestSlot>);

impl Region {
    /// Writes `secrets` to their region, and keeps all of the guest's memory out of core dumps.
    ///
    /// # Errors
    /// [`VmError::Secrets`] if they do not fit; [`VmError::Memory`] if the memory cannot be kept out.
    pub fn write(memory: &Arc<GuestSlot>, secrets: &[Secret]) -> Result<Self, VmError> {
        memory.keep_out_of_dumps()?;
        let mut bytes = blank();
        let uses = secrets.iter().map(Secret::as_use);
        secret::encode(uses, &mut bytes).ok_or(VmError::Secrets)?;
        // From here on it is overwritten, whatever comes.
        let region = Self(Arc::clone(memory));
        memory.write(SECRETS.start, &bytes)?;
        Ok(region)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // The region is part of every slot.
        let _ = self.0.write(SECRETS.start, &blank());
    }
}

fn blank() -> Zeroizing<Vec<u8>> {
    Zeroizing::new(vec![0; usize::try_from(SECRETS.size).unwrap_or_default()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(bytes: &[u8]) -> Secret {
        Secret {
            slot: 1,
            depth: 2,
            role: SecretRole::Open,
            bytes: Zeroizing::new(bytes.to_vec()),
        }
    }

    fn region_of(memory: &GuestSlot) -> Vec<u8> {
        let mut seen = blank().to_vec();
        memory.read(SECRETS.start, &mut seen).unwrap();
        seen
    }

    #[test]
    fn the_region_holds_the_secrets_until_it_is_dropped() {
        let memory = GuestSlot::new(64 << 20).unwrap();
        let region = Region::write(&memory, &[password(b"word")]).unwrap();
        let seen = region_of(&memory);
        let uses: Vec<_> = secret::decode(&seen).unwrap().collect();
        assert!(
            matches!(uses[..], [used] if (used.slot, used.depth, used.bytes) == (1, 2, b"word"))
        );
        drop(region);
        assert!(region_of(&memory).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn too_much_is_refused() {
        let memory = GuestSlot::new(64 << 20).unwrap();
        let long = password(&[0; secret::MAX_SECRET_BYTES + 1]);
        let error = Region::write(&memory, &[long]).unwrap_err();
        assert!(matches!(error, VmError::Secrets));
    }

    #[test]
    fn a_password_is_not_in_its_debug_text() {
        let text = format!("{:?}", password(b"hidden"));
        assert!(text.contains("depth: 2"), "{text}");
        assert!(!text.contains("hidden") && !text.contains("104"), "{text}");
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn guest_memory_with_secrets_is_not_dumped() {
        let memory = GuestSlot::new(64 << 20).unwrap();
        let _region = Region::write(&memory, &[password(b"word")]).unwrap();
        for at in [SECRETS.start, instar_shared::layout::HEAP_START] {
            let address = memory.host_address() as u64 + at;
            assert!(flags_at(address).contains(&"dd".to_owned()), "{at:#x}");
        }
    }

    /// `VmFlags` of the mapping at `address`.
    #[cfg(target_os = "linux")]
    fn flags_at(address: u64) -> Vec<String> {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut here = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            let number = |word| u64::from_str_radix(word, 16).ok();
            if let Some((Some(from), Some(to))) = range.map(|(from, to)| (number(from), number(to)))
            {
                here = (from..to).contains(&address);
            }
            if let (true, Some(flags)) = (here, line.strip_prefix("VmFlags:")) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        Vec::new()
    }
}
