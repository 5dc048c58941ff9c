//! What an operation can do.

use crate::disk::DiskError;
use crate::page::{Boot, Shared, cancel_word};
use crate::secrets::Secrets;
use crate::{Disk, Machine, Platform, Records, Secret};
use alloc::vec::Vec;
use instar_shared::abi::ABI_VERSION;
use instar_shared::boot::{BOOT_MAGIC, BootPage, CANCEL_REQUESTED};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::{CONFIG, RESULT};
use instar_shared::secret::SecretRole;
use instar_shared::zerocopy::little_endian::U32;
use instar_shared::zerocopy::{FromBytes, IntoBytes};

/// Bytes at the front of the result region that the host takes.
pub const MAX_RESULT_BYTES: usize = 256;

/// Everything an operation can do, over a [`Platform`].
#[derive(Debug)]
pub struct Context<P: Platform = Machine> {
    pub(crate) platform: P,
    boot: BootPage,
    cancel: Shared<U32>,
    records: Records<P>,
    /// Slots that have a driver.
    taken: Vec<u16>,
    /// Taken when the first one is asked for, so that programs that ask for none carry nothing of it.
    secrets: Option<Secrets>,
}

impl<P: Platform> Context<P> {
    /// Looks at the boot page of `platform`.
    ///
    /// # Panics
    /// If it is not one of this contract's version.
    #[must_use]
    pub fn new(platform: P) -> Self {
        let boot = Boot::new(&platform).read();
        let known = boot.magic.get() == BOOT_MAGIC && boot.abi_version.get() == ABI_VERSION;
        assert!(known, "the host speaks another ABI");
        Self {
            records: Records::new(platform.clone(), boot.tsc_hz.get()),
            cancel: cancel_word(&platform),
            boot,
            platform,
            taken: Vec::new(),
            secrets: None,
        }
    }

    /// The boot page as it was at entry.
    #[must_use]
    pub const fn boot(&self) -> &BootPage {
        &self.boot
    }

    /// The record stream.
    pub const fn records(&mut self) -> &mut Records<P> {
        &mut self.records
    }

    /// The operation's config.
    #[must_use]
    #[allow(clippy::cast_possible_truncation)] // 16 KiB
    pub fn config<T: FromBytes + IntoBytes + Copy>(&self) -> T {
        const { assert!(size_of::<T>() <= CONFIG.size as usize) };
        Shared::at(&self.platform, CONFIG.start).read_constant()
    }

    /// Sets the operation's result; the last one counts.
    pub fn set_result<T: FromBytes + IntoBytes + Copy>(&mut self, result: &T) {
        const { assert!(size_of::<T>() <= MAX_RESULT_BYTES) };
        Shared::at(&self.platform, RESULT.start).write(*result);
    }

    /// The secret that the user gives for an image: the one named for `slot`, or the one that is `depth` steps
    /// down its backing chain. `None` if there is none, and from the second call on: nothing keeps it. The first call
    /// takes all secrets out of their region.
    ///
    /// # Panics
    /// If the secrets are damaged.
    #[must_use]
    pub fn secret(&mut self, slot: u16, depth: u32, role: SecretRole) -> Option<Secret> {
        self.secrets()?.take_one(slot.into(), depth, role)
    }

    /// Whether [`Self::secret`] has one.
    ///
    /// # Panics
    /// As there.
    #[must_use]
    pub fn has_secret(&mut self, slot: u16, depth: u32, role: SecretRole) -> bool {
        let secrets = self.secrets();
        secrets.is_some_and(|secrets| secrets.has(slot.into(), depth, role))
    }

    fn secrets(&mut self) -> Option<&mut Secrets> {
        if self.boot.secrets.get() == 0 {
            return None;
        }
        let platform = &self.platform;
        Some(self.secrets.get_or_insert_with(|| Secrets::take(platform)))
    }

    /// The disk in `slot`; slot 0 is the image that the user named. Costs no exit.
    ///
    /// # Errors
    /// Says why there is none. A slot can be had once.
    pub fn disk(&mut self, slot: u16) -> Result<Disk<P>, DiskError> {
        if self.taken.contains(&slot) {
            return Err(DiskError::Taken);
        }
        let disk = Disk::new(self.platform.clone(), slot)?;
        self.taken.push(slot);
        Ok(disk)
    }

    /// Whether the operation should end at its next boundary. Cheap: one load.
    #[must_use]
    pub fn cancelled(&self) -> bool {
        self.cancel.read().get() == CANCEL_REQUESTED
    }

    /// A counter that runs at the boot page's `tsc_hz`.
    #[must_use]
    pub fn ticks(&self) -> u64 {
        self.platform.ticks()
    }

    /// Ends the operation; the host takes the result and the records that are left.
    pub fn exit(&mut self) -> ! {
        self.platform.kick(Kick::Control(Control::Exit).encode());
        loop {
            self.platform.wait(0);
        }
    }
}
