//! Key slots of LUKS in qcow2.

use alloc::string::{String, ToString};
use instar_guest_ops::{Context, Disk};
use instar_luks::{
    Erase, KeyError, LuksVolume, MasterKey, NewKey, add_key, erase_slot, iterations, replace_key,
    slots_to_erase,
};
use instar_qcow2::Header;
use instar_shared::encrypt::{
    KEY_FORCE, KEY_OLD_SECRET, KEY_SLOT_GIVEN, KeyChange, KeyState, NO_SECRET,
};
use instar_shared::secret::SecretRole;
use op_chain::{Reported, fail};
use op_change::KeySlots;
use op_encrypt::{Ticks, random};

/// Microseconds in a millisecond.
const US_PER_MS: u64 = 1000;

/// Changes key slots with the secrets that the host gives.
#[derive(Clone, Copy, Debug)]
pub struct Slots;

impl KeySlots for Slots {
    type Volume = (LuksVolume, MasterKey);

    fn open(
        &self,
        ctx: &mut Context,
        disk: &Disk,
        header: &Header,
    ) -> Result<Option<Self::Volume>, Reported> {
        let Some(secret) = ctx.secret(0, 0, SecretRole::Open) else {
            return Err(fail(ctx, disk.slot(), format_args!("{NO_SECRET}")));
        };
        let Some(area) = header.extensions.crypto_header else {
            return Ok(None);
        };
        let opened = LuksVolume::read(disk, area.offset.get(), area.length)
            .map_err(KeyError::from)
            .and_then(|volume| Ok((volume.unlock(disk, &secret)?, volume)));
        match opened {
            Ok((key, volume)) => Ok(Some((volume, key))),
            Err(e) => Err(fail(ctx, disk.slot(), format_args!("{e}"))),
        }
    }

    fn change(
        &self,
        ctx: &mut Context,
        disk: &Disk,
        (volume, key): Self::Volume,
        state: KeyState,
        change: &KeyChange,
    ) -> Result<(), String> {
        match state {
            KeyState::Look => Ok(()),
            KeyState::Active => add(ctx, disk, volume, &key, change),
            KeyState::Inactive => erase(ctx, disk, volume, change).map_err(|e| e.to_string()),
        }
    }
}

/// The slot that the change names.
fn slot(change: &KeyChange) -> Option<usize> {
    let given = change.flags.get() & KEY_SLOT_GIVEN != 0;
    given.then(|| usize::try_from(change.slot.get()).unwrap_or(usize::MAX))
}

/// Gives a key slot the new password.
fn add(
    ctx: &mut Context,
    disk: &Disk,
    mut volume: LuksVolume,
    key: &MasterKey,
    change: &KeyChange,
) -> Result<(), String> {
    let force = change.flags.get() & KEY_FORCE != 0;
    let chosen = match slot(change) {
        Some(slot) => volume.check_slot(slot, force).map(|()| slot),
        None => volume.free_slot(),
    };
    let slot = chosen.map_err(|e| e.to_string())?;
    let secret = ctx.secret(0, 0, SecretRole::New).ok_or(NO_SECRET)?;
    let time_us = change.iter_time_ms.get().saturating_mul(US_PER_MS);
    let (hash, key_bytes) = (volume.info().hash, key.as_bytes().len());
    let added = iterations(hash, key_bytes, time_us, &Ticks(ctx)).and_then(|iterations| {
        let new = NewKey {
            slot,
            password: &secret,
            iterations,
        };
        let mut random = random(ctx);
        if volume
            .info()
            .slots
            .get(slot)
            .is_some_and(|slot| slot.active)
        {
            replace_key(disk, &mut volume, key, &new, &mut random)
        } else {
            add_key(disk, &mut volume, key, &new, &mut random)
        }
    });
    added.map_err(|e| alloc::format!("{e}\nFailed to write to keyslot {slot}"))
}

/// Erases key slots.
fn erase(
    ctx: &mut Context,
    disk: &Disk,
    mut volume: LuksVolume,
    change: &KeyChange,
) -> Result<(), KeyError> {
    let force = change.flags.get() & KEY_FORCE != 0;
    let old = ctx.secret(0, 0, SecretRole::Old);
    let old = old
        .as_deref()
        .filter(|_| change.flags.get() & KEY_OLD_SECRET != 0);
    let erase = match (slot(change), old) {
        (Some(slot), old) => Erase::Slot(slot, old),
        (None, Some(old)) => Erase::Password(old),
        (None, None) => return Ok(()),
    };
    let chosen = slots_to_erase(disk, &volume, erase, force)?;
    let mut random = random(ctx);
    for (slot, chosen) in chosen.iter().enumerate() {
        if *chosen {
            erase_slot(disk, &mut volume, slot, &mut random)?;
        }
    }
    Ok(())
}
