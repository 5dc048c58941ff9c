//! Who changes key slots, if anybody does.

use alloc::string::String;
use instar_guest_ops::{Context, Disk};
use instar_qcow2::Header;
use instar_shared::encrypt::{KeyChange, KeyState, NO_SECRET};
use op_chain::{Reported, fail};

/// Changes the key slots of encrypted images.
pub trait KeySlots {
    /// An image's key and where it is stored.
    type Volume;

    /// Opens an encrypted image with its password; nothing if it has no key slots.
    ///
    /// # Errors
    /// The record that says why has been sent.
    fn open(
        &self,
        ctx: &mut Context,
        disk: &Disk,
        header: &Header,
    ) -> Result<Option<Self::Volume>, Reported>;

    /// Changes key slots; they are durable then.
    ///
    /// # Errors
    /// Why they stay as they were.
    fn change(
        &self,
        ctx: &mut Context,
        disk: &Disk,
        volume: Self::Volume,
        state: KeyState,
        change: &KeyChange,
    ) -> Result<(), String>;
}

/// Changes no key slots: the host starts a program with ciphers where there are secrets.
#[derive(Clone, Copy, Debug)]
pub struct NoKeySlots;

impl KeySlots for NoKeySlots {
    type Volume = ();

    fn open(
        &self,
        ctx: &mut Context,
        disk: &Disk,
        _header: &Header,
    ) -> Result<Option<()>, Reported> {
        Err(fail(ctx, disk.slot(), format_args!("{NO_SECRET}")))
    }

    fn change(
        &self,
        _ctx: &mut Context,
        _disk: &Disk,
        (): (),
        _state: KeyState,
        _change: &KeyChange,
    ) -> Result<(), String> {
        Err("this operation changes no keys".into())
    }
}
