//! Where it goes.

use crate::CommitError;
use alloc::boxed::Box;
use alloc::vec::Vec;
use instar_plan_write::{Placed, WriteImage};
use instar_storage::overlap::{Transfer, Work};
use instar_storage::{Cipher, StorageMut};

/// Longest request to make zeros, in bytes.
const ZERO_BYTES: u64 = 1 << 30;

/// The numbers of an image's files in requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// The image file.
    pub image: u16,
    /// Its external data file, if it has one.
    pub data: u16,
}

/// A base that is open for writing.
#[derive(Debug)]
pub enum Base<'a, S> {
    /// A raw image, long enough.
    Raw(&'a S),
    /// A qcow2 image, long enough.
    Qcow2(Box<WriteImage<'a, S>>),
}

impl<S: StorageMut> Base<'_, S> {
    /// A place for the first of the bytes at `guest`, which the caller writes there before the next commit.
    pub(crate) fn place(&mut self, guest: u64, len: u64) -> Result<Placed, CommitError> {
        match self {
            Self::Raw(_) => Ok(Placed {
                in_data_file: false,
                offset: guest,
                len,
            }),
            Self::Qcow2(image) => Ok(image.place(guest, len)?),
        }
    }

    /// Makes the first of the bytes at `guest` zeros: how many, and the request that does it, if one is needed.
    pub(crate) fn zeros(
        &mut self,
        guest: u64,
        len: u64,
    ) -> Result<(u64, Option<Work>), CommitError> {
        match self {
            Self::Raw(_) => {
                let len = len.min(ZERO_BYTES);
                let work = Work::Zero { offset: guest, len };
                Ok((len, Some(work)))
            }
            Self::Qcow2(image) => {
                // At most what one table says, so that memory is asked about in between.
                let cluster = image.cluster_bytes();
                let span = cluster.saturating_mul(cluster / 8).max(cluster);
                let len = len.min(span);
                image.zeros(guest, len)?;
                Ok((len, None))
            }
        }
    }

    /// The cipher of its data, if that is encrypted.
    pub(crate) fn cipher(&self) -> Option<&'static dyn Cipher> {
        match self {
            Self::Raw(_) => None,
            Self::Qcow2(image) => image.cipher(),
        }
    }

    /// What the tables have to say takes much memory.
    pub(crate) fn is_full(&self) -> bool {
        match self {
            Self::Raw(_) => false,
            Self::Qcow2(image) => image.is_full(),
        }
    }

    /// Has the tables say what was written; nothing is on its way.
    pub(crate) fn commit(&mut self) -> Result<(), CommitError> {
        match self {
            Self::Raw(_) => Ok(()),
            Self::Qcow2(image) => Ok(image.commit()?),
        }
    }

    /// Makes everything durable.
    pub(crate) fn finish(&mut self) -> Result<(), CommitError> {
        match self {
            Self::Raw(disk) => Ok(disk.flush()?),
            Self::Qcow2(image) => Ok(image.finish()?),
        }
    }
}

impl Numbers {
    /// The request that does `work` at a place.
    pub(crate) const fn request(
        self,
        in_data_file: bool,
        token: u64,
        work: Work,
        buf: Vec<u8>,
    ) -> Transfer {
        Transfer {
            file: if in_data_file { self.data } else { self.image },
            token,
            work,
            buf,
        }
    }
}
