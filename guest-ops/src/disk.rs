//! A disk of the operation: [`Storage`] and [`StorageMut`] over virtio-blk's vendor requests.
//!
//! A batch is many chains and one kick; the driver waits only for what the host
//! did not finish inside the kick. Bytes past the end are zeros without asking.
//!
//! [`StorageMut`]: instar_storage::StorageMut

use crate::dma::DmaBuffer;
use crate::extents::ExtentCache;
use crate::page::device_entry;
use crate::queue::QueueError;
use crate::{Machine, Platform};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use instar_shared::blk::{RequestType, StatusExtent};
use instar_shared::device::{
    BELOW_NONE, BELOW_TYPED, DeviceEntry, FEATURE_BLOCK_STATUS, FEATURE_BYTE_IO, FLAG_BLOCK_DEVICE,
    FLAG_PRESENT, FLAG_READ_ONLY,
};
use instar_shared::zerocopy::IntoBytes;
use instar_storage::{Extent, Read, Storage, StorageError};
use requests::{Data, Piece, Requests};

mod change;
mod overlap;
mod requests;

pub use overlap::DiskSet;

/// Longest data part of one request; longer ones are cut, so that progress and limits see steps.
pub const MAX_PIECE_BYTES: usize = 4 << 20;
/// Extents asked for at once.
const EXTENTS_PER_REQUEST: usize = 64;
/// How many of a disk's first bytes are kept.
const HEAD_BYTES: usize = 4 << 10;
/// Largest buffer through which bytes go that devices cannot reach where they are.
const BOUNCE_BYTES: usize = 64 << 10;

const EIO: u32 = 5;
const ENOMEM: u32 = 12;
const EINVAL: u32 = 22;
const EROFS: u32 = 30;
const EOPNOTSUPP: u32 = 95;

/// Why a slot is no disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskError {
    /// The device table has no such slot, or nothing is in it.
    Absent,
    /// The slot is in use already: its queue can have one driver.
    Taken,
    /// The device does not offer byte-granular reads.
    Features,
    /// Its entry describes no queue.
    Queue(QueueError),
    /// No memory for the request headers.
    Memory,
}

/// A block device in a slot of the device table.
#[derive(Debug)]
pub struct Disk<P: Platform = Machine> {
    platform: P,
    slot: u16,
    entry: DeviceEntry,
    /// The length now: at first the entry's, then what this driver has made of it.
    len_bytes: Cell<u64>,
    requests: RefCell<Requests<P>>,
    extents: RefCell<ExtentCache>,
    /// The first bytes, once they were read: programs look at them again and again.
    head: RefCell<Vec<u8>>,
}

impl<P: Platform> Disk<P> {
    /// Drives the device in `slot`. The caller sees to it that nobody else does.
    pub(crate) fn new(platform: P, slot: u16) -> Result<Self, DiskError> {
        let entry = device_entry(&platform, slot).ok_or(DiskError::Absent)?;
        if entry.flags.get() & FLAG_PRESENT == 0 {
            return Err(DiskError::Absent);
        }
        if entry.features.get() & FEATURE_BYTE_IO == 0 {
            return Err(DiskError::Features);
        }
        let requests = RefCell::new(Requests::new(&platform, slot, &entry)?);
        Ok(Self {
            platform,
            slot,
            len_bytes: Cell::new(entry.len_bytes.get()),
            entry,
            requests,
            extents: RefCell::default(),
            head: RefCell::default(),
        })
    }

    /// The slot in the device table.
    #[must_use]
    pub const fn slot(&self) -> u16 {
        self.slot
    }

    /// Bytes that the host's file system had allocated for it when it was opened; 0 of a block device.
    #[must_use]
    pub const fn allocated_bytes(&self) -> u64 {
        self.entry.allocated_bytes.get()
    }

    /// Whether it is a block device of the host rather than a regular file.
    #[must_use]
    pub const fn is_block_device(&self) -> bool {
        self.entry.flags.get() & FLAG_BLOCK_DEVICE != 0
    }

    /// How the user says that the image is encrypted, as qcow2 numbers it; 0 if nothing is said.
    #[must_use]
    pub const fn said_encryption(&self) -> u16 {
        self.entry.encryption.get()
    }

    /// What the user says of the files below the image, as [`crate::Context::said_below`] has it.
    #[must_use]
    pub const fn said_below(&self) -> u16 {
        self.entry.below.get()
    }

    /// Whether the user says what lies below the image.
    #[must_use]
    pub const fn is_below_said(&self) -> bool {
        self.said_below() & (BELOW_NONE | BELOW_TYPED) != 0
    }

    /// Whether it cannot be changed.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.entry.flags.get() & FLAG_READ_ONLY != 0
    }

    /// Forgets what was read before: the disk changes.
    fn forget(&self) {
        self.extents.borrow_mut().clear();
        self.head.borrow_mut().clear();
    }

    /// Fills `buf` from the first bytes of the disk, if it lies in them; false if it does not, or they cannot
    /// be read as a whole.
    fn read_head(&self, offset: u64, buf: &mut [u8]) -> bool {
        let Some(start) = usize::try_from(offset).ok().filter(|at| *at < HEAD_BYTES) else {
            return false;
        };
        let Some(end) = start
            .checked_add(buf.len())
            .filter(|end| *end <= HEAD_BYTES)
        else {
            return false;
        };
        if buf.is_empty() || offset >= self.len_bytes() {
            return false;
        }
        let mut head = self.head.borrow_mut();
        if head.is_empty() {
            head.resize(HEAD_BYTES, 0);
            let buf = head.as_mut_slice();
            if self.read_batch(&mut [Read { offset: 0, buf }]).is_err() {
                head.clear();
            }
        }
        let found = head.get(start..end);
        found.map(|found| buf.copy_from_slice(found)).is_some()
    }

    /// Cuts one read into requests; what lies past the end becomes zeros here.
    fn cut(&self, read: &mut Read<'_>, pieces: &mut Vec<Piece>) -> Result<(), StorageError> {
        let offset = read.offset;
        let data = clip(self.len_bytes(), read);
        if data.is_empty() {
            return Ok(());
        }
        let Some(addr) = self.platform.dma_address(data.as_mut_ptr(), data.len()) else {
            return self.read_bounced(offset, data);
        };
        pieces.extend(cut(RequestType::ReadBytes, offset, addr, data.len()));
        Ok(())
    }

    /// Reads into memory that devices cannot reach, such as a static of the image.
    fn read_bounced(&self, offset: u64, data: &mut [u8]) -> Result<(), StorageError> {
        let size = data.len().min(BOUNCE_BYTES);
        let Some(bounce) = DmaBuffer::new(&self.platform, size) else {
            return Err(StorageError {
                errno: ENOMEM,
                offset,
            });
        };
        let mut at = offset;
        for chunk in data.chunks_mut(size) {
            let piece = Piece {
                kind: RequestType::ReadBytes,
                start: at,
                data: Data::buffer(RequestType::ReadBytes, bounce.address(0), chunk.len()),
            };
            self.requests.borrow_mut().run(&[piece])?;
            if !bounce.read(0, chunk) {
                return Err(StorageError {
                    errno: EIO,
                    offset: at,
                });
            }
            at = at.saturating_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Asks the host for the runs from `offset` on.
    fn ask_extents(&self, offset: u64) -> Result<(), StorageError> {
        let mut answer = [StatusExtent::zeroed(); EXTENTS_PER_REQUEST];
        let Some(buffer) = DmaBuffer::new(&self.platform, size_of_val(&answer)) else {
            return Err(StorageError {
                errno: ENOMEM,
                offset,
            });
        };
        let piece = Piece {
            kind: RequestType::BlockStatus,
            start: offset,
            data: Data::buffer(RequestType::BlockStatus, buffer.address(0), buffer.len()),
        };
        self.requests.borrow_mut().run(&[piece])?;
        if !buffer.read(0, answer.as_mut_bytes()) {
            return Err(StorageError { errno: EIO, offset });
        }
        let mut cache = self.extents.borrow_mut();
        cache.replace(offset, self.len_bytes(), &answer);
        Ok(())
    }
}

/// The requests that move `len` bytes between the disk's `offset` and guest address `addr`.
fn cut(kind: RequestType, offset: u64, addr: u64, len: usize) -> impl Iterator<Item = Piece> {
    (0..len).step_by(MAX_PIECE_BYTES).map(move |done| {
        let here = len.saturating_sub(done).min(MAX_PIECE_BYTES);
        let done = done as u64;
        Piece {
            kind,
            start: offset.saturating_add(done),
            data: Data::buffer(kind, addr.saturating_add(done), here),
        }
    })
}

/// The part of the read that the store has; the rest is filled with zeros.
fn clip<'a>(len_bytes: u64, read: &'a mut Read<'_>) -> &'a mut [u8] {
    let have = len_bytes.saturating_sub(read.offset);
    let have = usize::try_from(have)
        .unwrap_or(usize::MAX)
        .min(read.buf.len());
    let (data, past_end) = read.buf.split_at_mut(have);
    past_end.fill(0);
    data
}

impl<P: Platform> Storage for Disk<P> {
    fn len_bytes(&self) -> u64 {
        self.len_bytes.get()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        if self.read_head(offset, buf) {
            return Ok(());
        }
        self.read_batch(&mut [Read { offset, buf }])
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) -> Result<(), StorageError> {
        let mut pieces = Vec::with_capacity(reads.len());
        for read in reads {
            self.cut(read, &mut pieces)?;
        }
        self.requests.borrow_mut().run(&pieces)
    }

    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        let left = self.len_bytes().saturating_sub(offset);
        if left == 0 {
            return Ok(None);
        }
        if self.entry.features.get() & FEATURE_BLOCK_STATUS == 0 {
            return Ok(Some(Extent {
                offset,
                len: left,
                data: true,
            }));
        }
        let known = self.extents.borrow().find(offset);
        if known.is_none() {
            self.ask_extents(offset)?;
        }
        Ok(known.or_else(|| self.extents.borrow().find(offset)))
    }
}
