//! The requests of a disk that are in flight.
//!
//! Some belong to a batch, whose caller waits for it; others to a [`Transfer`], which owns its buffer and
//! is given back when all its requests have ended. Both use the same queue.

use super::{DiskError, EIO, EOPNOTSUPP};
use crate::Platform;
use crate::dma::DmaBuffer;
use crate::queue::{Queue, QueueError, Segment};
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::mem::ManuallyDrop;
use instar_shared::blk::{CopyArg, RangeArg, RequestHeader, RequestType, Status, VendorFooter};
use instar_shared::device::DeviceEntry;
use instar_shared::zerocopy::little_endian::{U32, U64};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_storage::StorageError;
use instar_storage::overlap::{Done, Transfer, Work};

/// Header, data and footer: most descriptors of one request.
const SEGMENTS_PER_REQUEST: u16 = 3;
/// Bytes of header, footer and argument of one request in flight.
const SLOT_BYTES: usize = 48;
/// Where the footer lies in those.
const FOOTER_OFFSET: usize = size_of::<RequestHeader>();
/// Where the argument lies in those.
const ARG_OFFSET: usize = FOOTER_OFFSET + size_of::<VendorFooter>();
/// A status that no device writes: what the footer holds before the answer.
const NO_STATUS: u8 = 0xff;

const _: () = assert!(ARG_OFFSET + size_of::<RangeArg>() <= SLOT_BYTES);
const _: () = assert!(ARG_OFFSET + size_of::<CopyArg>() <= SLOT_BYTES);

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
    /// Where a copy comes from: length, first byte, slot.
    Source(u64, u64, u16),
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

/// Whose request a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// The batch that [`Requests::run`] waits for.
    Batch,
    /// The transfer of this index.
    Transfer(usize),
}

/// A transfer, and how much of it has not ended.
#[derive(Debug)]
struct Started<P: Platform> {
    transfer: Transfer,
    /// Where the bytes go if devices cannot reach the transfer's own buffer.
    bounce: Option<DmaBuffer<P>>,
    left: usize,
    result: Result<(), StorageError>,
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct InFlight {
    /// Where it starts, for errors.
    start: u64,
    owner: Owner,
}

/// The requests in flight.
#[derive(Debug)]
pub(super) struct Requests<P: Platform> {
    queue: Queue<P>,
    /// Header and footer of each slot.
    memory: ManuallyDrop<DmaBuffer<P>>,
    free: Vec<u16>,
    by_slot: Vec<InFlight>,
    /// By head descriptor: the slot.
    slots: Vec<u16>,
    /// Requests of the batch that are in flight, and its first error.
    batch: (usize, Result<(), StorageError>),
    /// Never dropped: devices may write to what is in flight.
    transfers: ManuallyDrop<Vec<Option<Started<P>>>>,
    /// Transfers that have ended, and what each did; `None` if the host was not asked.
    ended: ManuallyDrop<VecDeque<(Option<Work>, Done)>>,
    /// What books a request of a transfer: there once one was started, so that programs without
    /// transfers do not carry it.
    book: Option<Book<P>>,
}

/// Books the end of a request of the transfer of this index.
type Book<P> = fn(&mut Requests<P>, usize, Result<(), StorageError>);

impl<P: Platform> Requests<P> {
    pub(super) fn new(platform: &P, slot: u16, entry: &DeviceEntry) -> Result<Self, DiskError> {
        let queue = Queue::new(platform.clone(), slot, entry).map_err(DiskError::Queue)?;
        let size = entry.queue_size.get();
        let count = size.checked_div(SEGMENTS_PER_REQUEST).unwrap_or(0);
        let bytes = usize::from(count).saturating_mul(SLOT_BYTES);
        let none = InFlight {
            start: 0,
            owner: Owner::Batch,
        };
        let memory = DmaBuffer::new(platform, bytes).ok_or(DiskError::Memory)?;
        Ok(Self {
            queue,
            memory: ManuallyDrop::new(memory),
            free: (0..count).rev().collect(),
            by_slot: alloc::vec![none; usize::from(count)],
            slots: alloc::vec![0; usize::from(size)],
            batch: (0, Ok(())),
            transfers: ManuallyDrop::default(),
            ended: ManuallyDrop::default(),
            book: None,
        })
    }

    /// Does all `pieces`; several are in flight at once, and each round is one kick. Transfers that end
    /// meanwhile are kept for [`Self::take_ended`].
    ///
    /// After an error nothing new is submitted, but what is in flight is waited for: its buffers
    /// belong to the device until then.
    pub(super) fn run(&mut self, pieces: &[Piece]) -> Result<(), StorageError> {
        let mut todo = pieces.iter();
        self.batch = (0, Ok(()));
        loop {
            while self.batch.1.is_ok() && !self.free.is_empty() {
                let Some(piece) = todo.next() else { break };
                match self.submit(piece, Owner::Batch) {
                    Ok(()) => self.batch.0 = self.batch.0.saturating_add(1),
                    Err(error) => self.batch.1 = Err(error),
                }
            }
            self.queue.kick();
            let done = self.drain();
            let (in_flight, outcome) = self.batch;
            if in_flight == 0 && (outcome.is_err() || todo.len() == 0) {
                return outcome;
            }
            if done == 0 && self.queue.in_flight() > 0 {
                self.queue.wait();
            }
        }
    }

    /// Requests that can be started now.
    pub(super) fn room(&self) -> usize {
        self.free.len().min(
            self.queue
                .free()
                .div_euclid(usize::from(SEGMENTS_PER_REQUEST)),
        )
    }

    /// Requests that can be in flight at once.
    pub(super) fn size(&self) -> usize {
        self.by_slot.len()
    }

    /// Starts the `pieces` of a transfer, for which there is room; [`Self::kick`] shows them to the host.
    pub(super) fn start(
        &mut self,
        transfer: Transfer,
        bounce: Option<DmaBuffer<P>>,
        pieces: impl Iterator<Item = Piece>,
    ) {
        self.book = Some(Self::book_transfer);
        let index = self.transfers.iter().position(Option::is_none);
        let index = index.unwrap_or_else(|| {
            self.transfers.push(None);
            self.transfers.len().saturating_sub(1)
        });
        let (mut left, mut result) = (0_usize, Ok(()));
        for piece in pieces {
            match self.submit(&piece, Owner::Transfer(index)) {
                Ok(()) => left = left.saturating_add(1),
                Err(error) => result = Err(error),
            }
        }
        if let Some(place) = self.transfers.get_mut(index) {
            *place = Some(Started {
                transfer,
                bounce,
                left,
                result,
            });
        }
        self.end_if_done(index);
    }

    /// Takes a transfer that needs no request.
    pub(super) fn end(&mut self, transfer: Transfer, result: Result<(), StorageError>) {
        self.ended.push_back((None, done(transfer, result)));
    }

    /// Shows the host what was started.
    pub(super) fn kick(&mut self) {
        self.queue.kick();
    }

    /// A transfer that has ended, and what it did; `None` if the host was not asked.
    pub(super) fn take_ended(&mut self) -> Option<(Option<Work>, Done)> {
        if self.queue.in_flight() > 0 {
            self.drain();
        }
        self.ended.pop_front()
    }

    /// Whether a transfer has ended and was not taken.
    pub(super) fn has_ended(&mut self) -> bool {
        self.drain();
        !self.ended.is_empty()
    }

    /// Transfers that were not given back.
    pub(super) fn transfers(&self) -> usize {
        let started = self.transfers.iter().flatten().count();
        started.saturating_add(self.ended.len())
    }

    fn submit(&mut self, piece: &Piece, owner: Owner) -> Result<(), StorageError> {
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
        let data = self.data(at, piece.data).ok_or(failed)?;
        let (with, without) = (data.map(|data| [head, data, end]), [head, end]);
        let chain = with
            .as_ref()
            .map_or(without.as_slice(), |chain| chain.as_slice());
        // SAFETY: header, footer and argument belong to this slot until its chain is popped. The data
        // buffer is borrowed by the caller of `run`, which returns with none of its batch in flight, or
        // belongs to a transfer, which is given back after its last chain was popped and not freed
        // before: for writing if the device writes it.
        let head = unsafe { self.queue.add(chain) }.ok_or(failed)?;
        if let (Some(in_flight), Some(by_head)) = (
            self.by_slot.get_mut(usize::from(slot)),
            self.slots.get_mut(usize::from(head)),
        ) {
            let start = piece.start;
            *in_flight = InFlight { start, owner };
            *by_head = slot;
        }
        Ok(())
    }

    /// The data segment, if there is one; an argument goes to the memory of the slot at `at`.
    fn data(&mut self, at: usize, data: Data) -> Option<Option<Segment>> {
        match data {
            Data::None => Some(None),
            Data::Buffer(buffer) => Some(Some(buffer)),
            Data::Range(len, flags) => {
                let arg = RangeArg {
                    len: U64::new(len),
                    flags: U64::new(flags),
                };
                self.put(at, &arg).map(Some)
            }
            Data::Source(len, from_offset, from_slot) => {
                let arg = CopyArg {
                    len: U64::new(len),
                    from_offset: U64::new(from_offset),
                    from_slot: U32::new(from_slot.into()),
                    reserved: U32::new(0),
                };
                self.put(at, &arg).map(Some)
            }
        }
    }

    /// Puts an argument into the memory of the slot at `at`.
    fn put<T: IntoBytes + instar_shared::zerocopy::Immutable>(
        &mut self,
        at: usize,
        arg: &T,
    ) -> Option<Segment> {
        let at = at.saturating_add(ARG_OFFSET);
        self.memory.write(at, arg.as_bytes()).then(|| Segment {
            addr: self.memory.address(at),
            len: len_u32::<T>(),
            writable: false,
        })
    }

    /// Takes what completed. Returns how many requests that were.
    fn drain(&mut self) -> usize {
        let mut done = 0_usize;
        loop {
            match self.queue.pop_used() {
                Ok(None) => return done,
                Ok(Some((head, _))) => {
                    done = done.saturating_add(1);
                    self.settle(head);
                }
                Err(error) => broken(error),
            }
        }
    }

    /// Books a chain that came back.
    fn settle(&mut self, head: u16) {
        let slot = self.slots.get(usize::from(head)).copied().unwrap_or(0);
        let Some(in_flight) = self.by_slot.get(usize::from(slot)).copied() else {
            return;
        };
        self.free.push(slot);
        let result = self.outcome(slot, in_flight.start);
        match in_flight.owner {
            Owner::Batch => {
                self.batch.0 = self.batch.0.saturating_sub(1);
                self.batch.1 = self.batch.1.and(result);
            }
            Owner::Transfer(index) => {
                if let Some(book) = self.book {
                    book(self, index, result);
                }
            }
        }
    }

    /// Books a request of transfer `index` that has ended.
    fn book_transfer(&mut self, index: usize, result: Result<(), StorageError>) {
        if let Some(Some(started)) = self.transfers.get_mut(index) {
            started.left = started.left.saturating_sub(1);
            started.result = started.result.and(result);
        }
        self.end_if_done(index);
    }

    /// Moves a transfer of which nothing is left to those that have ended.
    fn end_if_done(&mut self, index: usize) {
        let place = self.transfers.get_mut(index);
        let Some(mut started) = place.and_then(|place| place.take_if(|started| started.left == 0))
        else {
            return;
        };
        if let (Some(bounce), Work::Read { len, offset }) = (&started.bounce, started.transfer.work)
        {
            let buf = started.transfer.buf.get_mut(..len);
            if !buf.is_some_and(|buf| bounce.read(0, buf)) {
                started.result = Err(StorageError { errno: EIO, offset });
            }
        }
        let work = Some(started.transfer.work);
        let done = done(started.transfer, started.result);
        self.ended.push_back((work, done));
    }

    /// Reads the footer of a chain that came back.
    fn outcome(&self, slot: u16, offset: u64) -> Result<(), StorageError> {
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
        let errno = match Status::try_from(footer.status) {
            Ok(Status::Ok) => return Ok(()),
            Ok(Status::IoErr) if footer.errno.get() != 0 => footer.errno.get(),
            Ok(Status::Unsupported) => EOPNOTSUPP,
            _ => EIO,
        };
        Err(StorageError { errno, offset })
    }
}

impl<P: Platform> Drop for Requests<P> {
    /// What is in flight still belongs to the device: that memory is never used again.
    fn drop(&mut self) {
        if self.queue.in_flight() == 0 {
            // SAFETY: dropped once, here, and not used after.
            unsafe { ManuallyDrop::drop(&mut self.memory) };
        }
    }
}

fn done(transfer: Transfer, result: Result<(), StorageError>) -> Done {
    Done {
        file: transfer.file,
        token: transfer.token,
        buf: transfer.buf,
        result,
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
