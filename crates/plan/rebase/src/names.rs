//! The backing file in the header.

use crate::error::{RebaseError, Refusal};
use instar_plan_txn::{TxnError, write_header};
use instar_qcow2::Header;
use instar_qcow2::header::MAX_BACKING_NAME_BYTES;
use instar_storage::StorageMut;

/// QEMU: longest name of a backing format that it stores, in bytes; the rest is cut off.
const MAX_FORMAT_BYTES: usize = 15;
/// Incompatible feature bit 1.
const CORRUPT: u64 = 1 << 1;

/// A backing file as it is to stand in the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backing<'a> {
    /// Its name; empty: none.
    pub name: &'a [u8],
    /// The name of its format.
    pub format: Option<&'a [u8]>,
}

impl Backing<'_> {
    /// That the header was not changed, for this reason.
    #[must_use]
    pub fn refused(&self, reason: Refusal) -> RebaseError {
        RebaseError::Name {
            name: self.name.to_vec(),
            reason,
        }
    }

    /// Why no qcow2 image takes it, or not one with this header; `None` for an image that is not qcow2.
    ///
    /// # Errors
    /// The reason.
    pub fn judge(&self, header: Option<&Header>) -> Result<(), RebaseError> {
        let named = !self.name.is_empty();
        if named && self.format.is_none() {
            return Err(self.refused(Refusal::NoFormat));
        }
        let Some(header) = header else {
            return Err(self.refused(Refusal::NotSupported));
        };
        let too_long = self.name.len() as u64 > u64::from(MAX_BACKING_NAME_BYTES);
        if too_long || (named && header.autoclear.data_file_raw()) {
            return Err(self.refused(Refusal::Invalid));
        }
        Ok(())
    }
}

/// Names the new backing file in the header, durably; what was written before is on the disk. Gives the header as it
/// is then.
///
/// # Errors
/// [`RebaseError::Name`]; the image has the old or the new header.
pub fn set_backing<S: StorageMut>(
    storage: &S,
    header: &Header,
    backing: &Backing<'_>,
) -> Result<Header, RebaseError> {
    backing.judge(Some(header))?;
    let mut new = header.clone();
    new.backing_file = None;
    new.extensions.backing_format = None;
    if !backing.name.is_empty() {
        new.backing_file = Some(backing.name.to_vec());
        let format = backing.format.unwrap_or_default();
        let format = format.get(..MAX_FORMAT_BYTES).unwrap_or(format);
        new.extensions.backing_format = Some(format.to_vec());
    }
    write_header(storage, header, &new).map_err(|error| {
        backing.refused(match error {
            TxnError::HeaderFull => Refusal::HeaderFull,
            other => Refusal::Failed(other.errno()),
        })
    })
}

/// Marks an image whose tables say what cannot be, so that nobody writes to it. Version 2 has no such mark.
///
/// # Errors
/// The store's.
pub fn mark_corrupt<S: StorageMut>(storage: &S, header: &Header) -> Result<(), TxnError> {
    if header.version < 3 {
        return Ok(());
    }
    let mut new = header.clone();
    new.incompatible.0 |= CORRUPT;
    write_header(storage, header, &new).map(drop)
}
