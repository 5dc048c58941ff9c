//! A disk of the operation: [`Storage`] over virtio-blk's vendor requests.
//!
//! A batch is many chains and one kick; the driver waits only for what the host
//! did not finish inside the kick. Bytes past the end are zeros without asking.

use crate::dma::DmaBuffer;
use crate::extents::ExtentCache;
use crate::page::device_entry;
use crate::queue::{Queue, QueueError, Segment};
use crate::{Machine, Platform};
use alloc::vec::Vec;
use core::cell::RefCell;
use instar_shared::blk::{RequestHeader, RequestType, Status, StatusExtent, VendorFooter};
use instar_shared::device::{
    DeviceEntry, FEATURE_BLOCK_STATUS, FEATURE_BYTE_IO, FLAG_BLOCK_DEVICE, FLAG_PRESENT,
};
use instar_shared::zerocopy::little_endian::{U32, U64};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_storage::{Extent, Read, Storage, StorageError};

/// Longest data part of one request; longer reads are cut, so that progress and limits see steps.
pub const MAX_PIECE_BYTES: usize = 4 << 20;
/// Extents asked for at once.
const EXTENTS_PER_REQUEST: usize = 64;
/// Largest buffer through which reads go whose own buffer devices cannot reach.
const BOUNCE_BYTES: usize = 64 << 10;
/// Header, data and footer: descriptors of one read.
const SEGMENTS_PER_REQUEST: u16 = 3;
/// Bytes of header and footer of one request in flight.
const SLOT_BYTES: usize = 32;
/// Where the footer lies in those.
const FOOTER_OFFSET: usize = size_of::<RequestHeader>();
/// A status that no device writes: what the footer holds before the answer.
const NO_STATUS: u8 = 0xff;

const EIO: u32 = 5;
const ENOMEM: u32 = 12;
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

/// One request.
#[derive(Clone, Copy, Debug)]
struct Piece {
    kind: RequestType,
    start: u64,
    addr: u64,
    len: u32,
}

/// A block device in a slot of the device table.
#[derive(Debug)]
pub struct Disk<P: Platform = Machine> {
    platform: P,
    slot: u16,
    entry: DeviceEntry,
    requests: RefCell<Requests<P>>,
    extents: RefCell<ExtentCache>,
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
            entry,
            requests,
            extents: RefCell::default(),
        })
    }

    /// The slot in the device table.
    #[must_use]
    pub const fn slot(&self) -> u16 {
        self.slot
    }

    /// Whether it is a block device of the host rather than a regular file.
    #[must_use]
    pub const fn is_block_device(&self) -> bool {
        self.entry.flags.get() & FLAG_BLOCK_DEVICE != 0
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
        let mut done = 0_u64;
        for chunk in data.chunks(MAX_PIECE_BYTES) {
            pieces.push(Piece {
                kind: RequestType::ReadBytes,
                start: offset.saturating_add(done),
                addr: addr.saturating_add(done),
                len: u32::try_from(chunk.len()).unwrap_or(0),
            });
            done = done.saturating_add(chunk.len() as u64);
        }
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
                addr: bounce.address(0),
                len: u32::try_from(chunk.len()).unwrap_or(0),
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
            addr: buffer.address(0),
            len: u32::try_from(buffer.len()).unwrap_or(0),
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
        self.entry.len_bytes.get()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
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

/// The requests in flight. All methods return with none in flight.
#[derive(Debug)]
struct Requests<P: Platform> {
    queue: Queue<P>,
    /// Header and footer of each slot.
    memory: DmaBuffer<P>,
    free: Vec<u16>,
    /// By slot: where the request starts, for errors.
    starts: Vec<u64>,
    /// By head descriptor: the slot.
    slots: Vec<u16>,
}

impl<P: Platform> Requests<P> {
    fn new(platform: &P, slot: u16, entry: &DeviceEntry) -> Result<Self, DiskError> {
        let queue = Queue::new(platform.clone(), slot, entry).map_err(DiskError::Queue)?;
        let size = entry.queue_size.get();
        let count = size.checked_div(SEGMENTS_PER_REQUEST).unwrap_or(0);
        let bytes = usize::from(count).saturating_mul(SLOT_BYTES);
        Ok(Self {
            queue,
            memory: DmaBuffer::new(platform, bytes).ok_or(DiskError::Memory)?,
            free: (0..count).rev().collect(),
            starts: alloc::vec![0; usize::from(count)],
            slots: alloc::vec![0; usize::from(size)],
        })
    }

    /// Does all `pieces`; several are in flight at once, and each round is one kick.
    ///
    /// After an error nothing new is submitted, but what is in flight is waited for: its buffers
    /// belong to the device until then.
    fn run(&mut self, pieces: &[Piece]) -> Result<(), StorageError> {
        let mut todo = pieces.iter();
        let mut outcome = Ok(());
        loop {
            while outcome.is_ok() && !self.free.is_empty() {
                let Some(piece) = todo.next() else { break };
                outcome = self.submit(piece);
            }
            self.queue.kick();
            let done = self.drain(&mut outcome);
            if self.queue.in_flight() == 0 {
                if outcome.is_err() || todo.len() == 0 {
                    return outcome;
                }
            } else if done == 0 {
                self.queue.wait();
            }
        }
    }

    fn submit(&mut self, piece: &Piece) -> Result<(), StorageError> {
        let failed = StorageError {
            errno: EIO,
            offset: piece.start,
        };
        let slot = self.free.pop().ok_or(failed)?;
        let at = usize::from(slot).saturating_mul(SLOT_BYTES);
        let header = RequestHeader {
            request_type: U32::new(piece.kind.raw()),
            reserved: U32::new(0),
            sector: U64::new(piece.start),
        };
        let footer = VendorFooter {
            status: NO_STATUS,
            ..VendorFooter::zeroed()
        };
        let footer_at = at.saturating_add(FOOTER_OFFSET);
        if !self.memory.write(at, header.as_bytes())
            || !self.memory.write(footer_at, footer.as_bytes())
        {
            return Err(failed);
        }
        let segment = |addr, len, writable| Segment {
            addr,
            len,
            writable,
        };
        let chain = [
            segment(self.memory.address(at), len_u32::<RequestHeader>(), false),
            segment(piece.addr, piece.len, true),
            segment(
                self.memory.address(footer_at),
                len_u32::<VendorFooter>(),
                true,
            ),
        ];
        // SAFETY: header and footer belong to this slot until its chain is popped; the data buffer is
        // borrowed by the caller of `run`, which returns with nothing in flight.
        let head = unsafe { self.queue.add(&chain) }.ok_or(failed)?;
        if let (Some(start), Some(by_head)) = (
            self.starts.get_mut(usize::from(slot)),
            self.slots.get_mut(usize::from(head)),
        ) {
            *start = piece.start;
            *by_head = slot;
        }
        Ok(())
    }

    /// Takes what completed; the first error goes to `outcome`. Returns how many there were.
    fn drain(&mut self, outcome: &mut Result<(), StorageError>) -> usize {
        let mut done = 0_usize;
        loop {
            match self.queue.pop_used() {
                Ok(None) => return done,
                Ok(Some((head, _))) => {
                    done = done.saturating_add(1);
                    let result = self.settle(head);
                    if outcome.is_ok() {
                        *outcome = result;
                    }
                }
                Err(error) => broken(error),
            }
        }
    }

    /// Reads the footer of a chain that came back.
    fn settle(&mut self, head: u16) -> Result<(), StorageError> {
        let slot = self.slots.get(usize::from(head)).copied().unwrap_or(0);
        let offset = self.starts.get(usize::from(slot)).copied().unwrap_or(0);
        self.free.push(slot);
        let at = usize::from(slot)
            .saturating_mul(SLOT_BYTES)
            .saturating_add(FOOTER_OFFSET);
        let mut raw = [0; size_of::<VendorFooter>()];
        let footer = match (
            self.memory.read(at, &mut raw),
            VendorFooter::read_from_bytes(&raw),
        ) {
            (true, Ok(footer)) => footer,
            _ => return Err(StorageError { errno: EIO, offset }),
        };
        match Status::try_from(footer.status) {
            Ok(Status::Ok) => Ok(()),
            Ok(Status::IoErr) if footer.errno.get() != 0 => Err(StorageError {
                errno: footer.errno.get(),
                offset,
            }),
            Ok(Status::Unsupported) => Err(StorageError {
                errno: EOPNOTSUPP,
                offset,
            }),
            _ => Err(StorageError { errno: EIO, offset }),
        }
    }
}

/// Length of a wire struct, which is a few bytes.
#[allow(clippy::cast_possible_truncation)]
const fn len_u32<T>() -> u32 {
    size_of::<T>() as u32
}

/// The host broke the queue. Buffers may still be written to, so nothing can go on.
#[allow(clippy::panic)]
fn broken(error: QueueError) -> ! {
    panic!("the host broke a virtqueue: {error:?}")
}
