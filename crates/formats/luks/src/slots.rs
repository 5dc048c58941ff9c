//! Adding and erasing keys of a volume.
//!
//! At every moment, power cut included, a slot is as it was or as it will be: its state is one 4-byte field, which
//! is written after everything that a slot needs when it becomes active, and before anything is destroyed when it
//! is erased. An erasure that was interrupted leaves key material behind a disabled slot; erasing the slot again
//! destroys it.

use crate::af;
use crate::error::KeyError;
use crate::header::{KEY_SLOTS, RawKeySlot, RawLuksHeader, SLOT_ACTIVE, SLOT_DISABLED, STRIPES};
use crate::volume::{LuksVolume, MasterKey};
use core::mem::{offset_of, size_of};
use instar_crypt::Random;
use instar_storage::{Storage, StorageMut};
use zerocopy::IntoBytes;

/// A password for a key slot.
#[derive(Clone, Copy)]
pub struct NewKey<'a> {
    /// 0..8.
    pub slot: usize,
    /// What opens it; any bytes.
    pub password: &'a [u8],
    /// PBKDF2 iterations, 1 at least.
    pub iterations: u32,
}

/// Makes a slot open with a password; one that holds a key must be erased first. Key material and header are written and flushed in this order.
///
/// # Errors
/// [`KeyError::SlotActive`] if it holds a key; key material outside the header's room; the store's.
pub fn add_key<S: StorageMut>(
    storage: &S,
    volume: &mut LuksVolume,
    key: &MasterKey,
    new: &NewKey<'_>,
    random: &mut Random,
) -> Result<(), KeyError> {
    let NewKey {
        slot, iterations, ..
    } = *new;
    let mut raw = volume.raw_slot(slot)?;
    if raw.state.get() == SLOT_ACTIVE {
        return Err(KeyError::SlotActive { slot });
    }
    random.fill(&mut raw.salt);
    raw.iterations = iterations.into();
    raw.stripes = STRIPES.into();
    let mut stripes = volume.material_buffer()?;
    let place = volume.material_place(slot, stripes.len() as u64)?;
    af::split(volume.info.hash, key, random, &mut stripes);
    volume
        .slot_cipher(new.password, &raw.salt, iterations)?
        .encrypt(0, &mut stripes)?;
    storage.write_at(place, &stripes)?;
    volume.put_slot(slot, raw)?;
    storage.write_at(volume.offset, volume.raw.as_bytes())?;
    storage.flush()?;
    raw.state = SLOT_ACTIVE.into();
    volume.put_slot(slot, raw)?;
    volume.write_state(storage, slot)
}

/// Makes a slot that holds a key open with another password. The new password opens a free slot meanwhile, if there
/// is one: at every moment it or the old one opens the volume.
///
/// # Errors
/// As [`add_key`] and [`erase_slot`].
pub fn replace_key<S: StorageMut>(
    storage: &S,
    volume: &mut LuksVolume,
    key: &MasterKey,
    new: &NewKey<'_>,
    random: &mut Random,
) -> Result<(), KeyError> {
    let spare = volume.free_slot().ok();
    if let Some(slot) = spare {
        add_key(storage, volume, key, &NewKey { slot, ..*new }, random)?;
    }
    erase_slot(storage, volume, new.slot, random)?;
    add_key(storage, volume, key, new, random)?;
    match spare {
        Some(spare) => erase_slot(storage, volume, spare, random),
        None => Ok(()),
    }
}

/// Makes slot `slot` hold no key: its state is written and flushed, then its key material is overwritten with random
/// bytes. Of a disabled slot the key material is overwritten all the same.
///
/// Erasing the last key loses the data for ever; whether that is wanted is the caller's question.
///
/// # Errors
/// Key material outside the header's room; the store's.
pub fn erase_slot<S: StorageMut>(
    storage: &S,
    volume: &mut LuksVolume,
    slot: usize,
    random: &mut Random,
) -> Result<(), KeyError> {
    let mut raw = volume.raw_slot(slot)?;
    let mut material = volume.material_buffer()?;
    let place = volume.material_place(slot, material.len() as u64)?;
    raw.state = SLOT_DISABLED.into();
    volume.put_slot(slot, raw)?;
    volume.write_state(storage, slot)?;
    random.fill(&mut material);
    storage.write_at(place, &material)?;
    storage.flush()?;
    raw.salt = [0; 32];
    raw.iterations = 0.into();
    volume.put_slot(slot, raw)?;
    storage.write_at(volume.offset, volume.raw.as_bytes())?;
    Ok(storage.flush()?)
}

/// Which keys are to be erased.
#[derive(Clone, Copy)]
pub enum Erase<'a> {
    /// The one in a slot, if it opens with the password, where one is given.
    Slot(usize, Option<&'a [u8]>),
    /// Those that open with a password.
    Password(&'a [u8]),
}

/// The slots that an erasure concerns, by the rules of `qemu-img amend`: the last key goes only by force.
///
/// # Errors
/// What `qemu-img` refuses, in its words; those of [`LuksVolume::open_slot`].
pub fn slots_to_erase<S: Storage>(
    storage: &S,
    volume: &LuksVolume,
    erase: Erase<'_>,
    force: bool,
) -> Result<[bool; KEY_SLOTS], KeyError> {
    let mut chosen = [false; KEY_SLOTS];
    let active = volume.info.slots.map(|slot| slot.active);
    match erase {
        Erase::Slot(slot, password) => {
            let (Some(is_active), Some(chosen)) = (active.get(slot), chosen.get_mut(slot)) else {
                return Err(KeyError::SlotNumber { slot });
            };
            if let Some(password) = password
                && volume.open_slot(storage, slot, password)?.is_none()
            {
                return Err(KeyError::OtherPassword { slot });
            }
            if !is_active && !force {
                return Err(KeyError::SlotErased { slot });
            }
            *chosen = true;
        }
        Erase::Password(password) => {
            for (slot, chosen) in chosen.iter_mut().enumerate() {
                *chosen = volume.open_slot(storage, slot, password)?.is_some();
            }
            if chosen == [false; KEY_SLOTS] {
                return Err(KeyError::NoSlotMatches);
            }
        }
    }
    let left = active
        .iter()
        .zip(chosen)
        .any(|(active, gone)| *active && !gone);
    match erase {
        _ if left || force => Ok(chosen),
        Erase::Slot(slot, _) => Err(KeyError::LastSlot { slot }),
        Erase::Password(_) => Err(KeyError::LastPassword),
    }
}

impl LuksVolume {
    /// The first slot without a key.
    ///
    /// # Errors
    /// [`KeyError::SlotsInUse`].
    pub fn free_slot(&self) -> Result<usize, KeyError> {
        let free = self.info.slots.iter().position(|slot| !slot.active);
        free.ok_or(KeyError::SlotsInUse)
    }

    /// Refuses a slot that a key cannot be put into: there is none, or it holds a key and is not to be overwritten.
    ///
    /// # Errors
    /// [`KeyError::SlotNumber`], [`KeyError::SlotActive`].
    pub fn check_slot(&self, slot: usize, force: bool) -> Result<(), KeyError> {
        let shown = self.info.slots.get(slot);
        match shown.ok_or(KeyError::SlotNumber { slot })?.active && !force {
            true => Err(KeyError::SlotActive { slot }),
            false => Ok(()),
        }
    }

    fn raw_slot(&self, slot: usize) -> Result<RawKeySlot, KeyError> {
        let raw = self.raw.key_slots.get(slot).copied();
        raw.ok_or(KeyError::SlotNumber { slot })
    }

    fn put_slot(&mut self, slot: usize, raw: RawKeySlot) -> Result<(), KeyError> {
        let place = self.raw.key_slots.get_mut(slot);
        *place.ok_or(KeyError::SlotNumber { slot })? = raw;
        self.info = crate::LuksInfo::parse(&self.raw)?;
        Ok(())
    }

    /// Writes the state of a slot, which lies within one sector of the header, and flushes.
    fn write_state<S: StorageMut>(&self, storage: &S, slot: usize) -> Result<(), KeyError> {
        let raw = self.raw_slot(slot)?;
        let within = (slot.saturating_mul(size_of::<RawKeySlot>()))
            .saturating_add(offset_of!(RawLuksHeader, key_slots))
            .saturating_add(offset_of!(RawKeySlot, state));
        let place = self.offset.saturating_add(within as u64);
        storage.write_at(place, raw.state.as_bytes())?;
        Ok(storage.flush()?)
    }
}

#[cfg(test)]
mod tests;
