//! The requests of a disk that are in flight.

use super::{DiskError, EIO, EOPNOTSUPP};
use crate::Platform;
use crate::dma::DmaBuffer;
use crate::queue::{Queue, QueueError, Segment};
use alloc::vec::Vec;
use instar_shared::blk::{RangeArg, RequestHeader, RequestType, Status, VendorFooter};
use instar_shared::device::DeviceEntry;
use instar_shared::zerocopy::little_endian::{U32, U64};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_storage::StorageError;

/// Header, data and footer: most descriptors of one request.
const SEGMENTS_PER_REQUEST: u16 = 3;
/// Bytes of header, footer and range of one request in flight.
const SLOT_BYTES: usize = 48;
/// Where the footer lies in those.
const FOOTER_OFFSET: usize = size_of::<RequestHeader>();
/// Where the range lies in those.
const RANGE_OFFSET: usize = FOOTER_OFFSET + size_of::<VendorFooter>();
/// A status that no device writes: what the footer holds before the answer.
const NO_STATUS: u8 = 0xff;

const _: () = assert!(RANGE_OFFSET + size_of::<RangeArg>() <= SLOT_BYTES);

/// One request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece {
    pub kind: RequestType,
    /// The header's `sector`: a byte offset, or a length.
    pub start: u64,
    pub data: Data,
}

/// What goes between header and footer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Data {
    /// Nothing.
    None,
    /// Memory that the device reads or writes.
    Buffer(Segment),
    /// A range that the device reads: length and flags.
    Range(u64, u64),
}

impl Data {
    /// `len` bytes at `addr`, at most [`super::MAX_PIECE_BYTES`]; the device writes them but for a
    /// write.
    pub(super) fn buffer(kind: RequestType, addr: u64, len: usize) -> Self {
        Self::Buffer(Segment {
            addr,
            len: u32::try_from(len).unwrap_or(0),
            writable: kind != RequestType::WriteBytes,
        })
    }
}

/// The requests in flight. All methods return with none in flight.
#[derive(Debug)]
pub(super) struct Requests<P: Platform> {
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
    pub(super) fn new(platform: &P, slot: u16, entry: &DeviceEntry) -> Result<Self, DiskError> {
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
    pub(super) fn run(&mut self, pieces: &[Piece]) -> Result<(), StorageError> {
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
        let head = segment(self.memory.address(at), len_u32::<RequestHeader>(), false);
        let end = segment(
            self.memory.address(footer_at),
            len_u32::<VendorFooter>(),
            true,
        );
        let data = match piece.data {
            Data::None => None,
            Data::Buffer(buffer) => Some(buffer),
            Data::Range(len, flags) => Some(self.put_range(at, len, flags).ok_or(failed)?),
        };
        let (with, without) = (data.map(|data| [head, data, end]), [head, end]);
        let chain = with
            .as_ref()
            .map_or(without.as_slice(), |chain| chain.as_slice());
        // SAFETY: header, range and footer belong to this slot until its chain is popped; the data
        // buffer is borrowed by the caller of `run`, which returns with nothing in flight: for writing
        // if the device writes it.
        let head = unsafe { self.queue.add(chain) }.ok_or(failed)?;
        if let (Some(start), Some(by_head)) = (
            self.starts.get_mut(usize::from(slot)),
            self.slots.get_mut(usize::from(head)),
        ) {
            *start = piece.start;
            *by_head = slot;
        }
        Ok(())
    }

    /// Puts a range into the memory of the slot at `at`.
    fn put_range(&mut self, at: usize, len: u64, flags: u64) -> Option<Segment> {
        let arg = RangeArg {
            len: U64::new(len),
            flags: U64::new(flags),
        };
        let at = at.saturating_add(RANGE_OFFSET);
        self.memory.write(at, arg.as_bytes()).then(|| Segment {
            addr: self.memory.address(at),
            len: len_u32::<RangeArg>(),
            writable: false,
        })
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
