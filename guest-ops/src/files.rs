//! Files that stand in images: asked for by name, opened by the host.

use crate::disk::DiskError;
use crate::page::{announcement, device_entry, file_request, file_response, said_below};
use crate::{Context, Disk, Platform};
use instar_shared::control::{
    FileAccess, FileRequest, FileRole, FileStatus, SizeAnnouncement, SizeStatus,
};
use instar_shared::device::{FLAG_PRESENT, MAX_DEVICES};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::zerocopy::little_endian::{U32, U64};

/// Why a file is not there. The host has the sentence for the user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The host's answer; the errno goes with [`FileStatus::Failed`] and is 0 otherwise.
    #[error("the host did not open it")]
    Host(FileStatus, u32),
    /// The name is longer than [`instar_shared::control::MAX_NAME_BYTES`]; the host was not asked.
    #[error("the file name in it is too long")]
    NameTooLong,
    /// All slots are in use; the host was not asked.
    #[error("the chain has more than {} files", MAX_DEVICES)]
    NoSlot,
    /// The host opened it, but its device table entry is no disk.
    #[error("the host gave no usable disk for it")]
    Disk(DiskError),
}

/// Why a file may not be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnounceError {
    /// What it held could not be given up; the errno, Linux numbering.
    #[error("the host could not empty it: error {0}")]
    Host(u32),
    /// There is no file in the slot that may be written, or its size was announced before.
    #[error("the host expects no such output")]
    Invalid,
}

impl<P: Platform> Context<P> {
    /// Says, once and before the first write, that the file in `slot` will hold `bytes` of content
    /// (an image: its virtual size). A file that is made anew is empty after this and takes no write before
    /// it, so open everything that is read first; one that is changed in place may grow by so much.
    ///
    /// # Errors
    /// It may not be written. A file that was there is as it was.
    pub fn announce_size(&mut self, slot: u16, bytes: u64) -> Result<(), AnnounceError> {
        let page = announcement(&self.platform);
        page.write(SizeAnnouncement {
            bytes: U64::new(bytes),
            slot: U32::new(u32::from(slot)),
            ..SizeAnnouncement::zeroed()
        });
        self.platform
            .kick(Kick::Control(Control::AnnounceSize).encode());
        let answer = page.read();
        match SizeStatus::try_from(answer.status.get()) {
            Ok(SizeStatus::Granted) => Ok(()),
            Ok(SizeStatus::Failed) => Err(AnnounceError::Host(answer.errno.get())),
            Ok(SizeStatus::Invalid) | Err(_) => Err(AnnounceError::Invalid),
        }
    }

    /// [`Self::open_file`] for reading.
    ///
    /// # Errors
    /// Why it is not there.
    pub fn open_backing(
        &mut self,
        parent_slot: u16,
        name: &[u8],
        role: FileRole,
    ) -> Result<Disk<P>, OpenError> {
        self.open_file(parent_slot, name, role, FileAccess::Read)
    }

    /// Opens the file that the image in `parent_slot` names in the next free slot.
    ///
    /// # Errors
    /// Why it is not there.
    pub fn open_file(
        &mut self,
        parent_slot: u16,
        name: &[u8],
        role: FileRole,
        access: FileAccess,
    ) -> Result<Disk<P>, OpenError> {
        let slot = self.next_slot().ok_or(OpenError::NoSlot)?;
        let mut request = FileRequest {
            slot: U32::new(u32::from(slot)),
            role: U32::new(role.raw()),
            access: U32::new(access.raw()),
            parent_slot: U32::new(u32::from(parent_slot)),
            name_len: U32::new(u32::try_from(name.len()).unwrap_or(u32::MAX)),
            ..FileRequest::zeroed()
        };
        let target = request.name.get_mut(..name.len());
        target.ok_or(OpenError::NameTooLong)?.copy_from_slice(name);
        file_request(&self.platform).write(request);
        self.platform
            .kick(Kick::Control(Control::OpenFile).encode());
        let response = file_response(&self.platform).read();
        match FileStatus::try_from(response.status.get()) {
            Ok(FileStatus::Opened) => self.disk(slot).map_err(OpenError::Disk),
            Ok(status) => Err(OpenError::Host(status, response.errno.get())),
            Err(_) => Err(OpenError::Host(FileStatus::Invalid, 0)),
        }
    }

    /// What the user says of the files below the image in `slot`: `BELOW_*` and `DATA_FILE_TOLD` of
    /// [`instar_shared::device`].
    #[must_use]
    pub fn said_below(&self, slot: u16) -> u16 {
        said_below(&self.platform, slot).map_or(0, |said| said.read().get())
    }

    /// The slot that the next file will get: the first empty one of the device table.
    #[must_use]
    pub fn next_slot(&self) -> Option<u16> {
        (1..MAX_DEVICES).find(|slot| {
            device_entry(&self.platform, *slot)
                .is_some_and(|entry| entry.flags.get() & FLAG_PRESENT == 0)
        })
    }
}
