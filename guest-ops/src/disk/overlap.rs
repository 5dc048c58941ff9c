//! Requests that overlap: [`Overlap`] over several disks.

use super::requests::{Data, Piece};
use super::{Disk, EINVAL, ENOMEM, MAX_PIECE_BYTES, cut};
use crate::dma::DmaBuffer;
use crate::{Machine, Platform, crew};
use alloc::vec::Vec;
use instar_shared::blk::RequestType;
use instar_storage::StorageError;
use instar_storage::overlap::{Done, Overlap, Transfer, Work};

impl<P: Platform> Disk<P> {
    /// Starts a request; see [`Overlap::submit`]. The file number means nothing here.
    ///
    /// # Errors
    /// The request itself, if the queue is full.
    pub fn submit(&self, transfer: Transfer) -> Result<(), Transfer> {
        let mut transfer = transfer;
        if let Some(result) = self.at_once(&transfer) {
            self.requests.borrow_mut().end(transfer, result);
            return Ok(());
        }
        let count = pieces_of(transfer.work);
        let mut requests = self.requests.borrow_mut();
        if count > requests.room() {
            if count <= requests.size() {
                return Err(transfer);
            }
            requests.end(transfer, Err(self.failed(EINVAL, 0)));
            return Ok(());
        }
        drop(requests);
        let (addr, bounce) = match self.reachable(&mut transfer) {
            Ok(reachable) => reachable,
            Err(error) => {
                self.requests.borrow_mut().end(transfer, Err(error));
                return Ok(());
            }
        };
        if is_change(transfer.work) {
            self.forget();
        }
        let work = transfer.work;
        let mut requests = self.requests.borrow_mut();
        match work {
            Work::Read { offset, len } => {
                requests.start(
                    transfer,
                    bounce,
                    cut(RequestType::ReadBytes, offset, addr, len),
                );
            }
            Work::Write { offset, len } => {
                requests.start(
                    transfer,
                    bounce,
                    cut(RequestType::WriteBytes, offset, addr, len),
                );
            }
            _ => requests.start(transfer, None, core::iter::once(piece_of(work))),
        }
        Ok(())
    }

    /// Lets the host begin with what was submitted.
    pub fn kick(&self) {
        self.requests.borrow_mut().kick();
    }

    /// A request that has ended, without blocking; see [`Overlap::poll`].
    pub fn poll(&self) -> Option<Done> {
        let (work, done) = self.requests.borrow_mut().take_ended()?;
        if let Some(work) = work.filter(|work| is_change(*work)) {
            self.forget();
            match done.result {
                Ok(()) => self.len_bytes.set(self.len_bytes.get().max(end_of(work))),
                // A part of it may have been done.
                Err(_) => self.ask_length(),
            }
        }
        Some(done)
    }

    /// Requests that were submitted and not given back.
    pub fn in_flight(&self) -> usize {
        self.requests.borrow().transfers()
    }

    /// How a request ends that the host need not be asked for.
    fn at_once(&self, transfer: &Transfer) -> Option<Result<(), StorageError>> {
        let offset = transfer.work.offset();
        if is_change(transfer.work)
            && let Err(error) = self.may_change(offset)
        {
            return Some(Err(error));
        }
        match transfer.work {
            Work::Read { len, .. } | Work::Write { len, .. } if len > transfer.buf.len() => {
                Some(Err(self.failed(EINVAL, offset)))
            }
            Work::Read { len: 0, .. } | Work::Write { len: 0, .. } => Some(Ok(())),
            Work::Zero { len: 0, .. }
            | Work::Discard { len: 0, .. }
            | Work::Allocate { len: 0, .. }
            | Work::Copy { len: 0, .. } => Some(Ok(())),
            Work::Flush if self.is_read_only() => Some(Ok(())),
            _ => None,
        }
    }

    /// Where devices reach the bytes of the transfer's buffer: there, or in a copy.
    fn reachable(
        &self,
        transfer: &mut Transfer,
    ) -> Result<(u64, Option<DmaBuffer<P>>), StorageError> {
        let (Work::Read { offset, len } | Work::Write { offset, len }) = transfer.work else {
            return Ok((0, None));
        };
        let pointer = transfer.buf.as_mut_ptr();
        if let Some(addr) = self.platform.dma_address(pointer, len) {
            return Ok((addr, None));
        }
        let bounce = DmaBuffer::new(&self.platform, len);
        let mut bounce = bounce.ok_or_else(|| self.failed(ENOMEM, offset))?;
        if let Work::Write { .. } = transfer.work {
            let bytes = transfer.buf.get(..len).unwrap_or_default();
            if !bounce.write(0, bytes) {
                return Err(self.failed(EINVAL, offset));
            }
        }
        Ok((bounce.address(0), Some(bounce)))
    }

    #[allow(clippy::unused_self)] // reads as what it is: an error of this disk
    const fn failed(&self, errno: u32, offset: u64) -> StorageError {
        StorageError { errno, offset }
    }
}

/// Requests that the work takes.
fn pieces_of(work: Work) -> usize {
    match work {
        Work::Read { len, .. } | Work::Write { len, .. } => len.div_ceil(MAX_PIECE_BYTES),
        _ => 1,
    }
}

const fn is_change(work: Work) -> bool {
    !matches!(work, Work::Read { .. } | Work::Flush)
}

/// How long the file is at least when the work is done.
const fn end_of(work: Work) -> u64 {
    match work {
        Work::Write { offset, len } => offset.saturating_add(len as u64),
        Work::Zero { offset, len }
        | Work::Allocate { offset, len }
        | Work::Copy { offset, len, .. } => offset.saturating_add(len),
        Work::Read { .. } | Work::Discard { .. } | Work::Flush => 0,
    }
}

/// The one request of work that has no buffer.
const fn piece_of(work: Work) -> Piece {
    let (kind, start, data) = match work {
        Work::Zero { offset, len } => (RequestType::ZeroBytes, offset, Data::Range(len, 0)),
        Work::Discard { offset, len } => (RequestType::DiscardBytes, offset, Data::Range(len, 0)),
        Work::Allocate { offset, len } => (RequestType::Allocate, offset, Data::Range(len, 0)),
        Work::Copy {
            from,
            from_offset,
            offset,
            len,
        } => (
            RequestType::CopyRange,
            offset,
            Data::Source(len, from_offset, from),
        ),
        Work::Flush | Work::Read { .. } | Work::Write { .. } => (RequestType::Sync, 0, Data::None),
    };
    Piece { kind, start, data }
}

/// Several disks, whose requests overlap; a file's number is its device slot.
#[derive(Debug)]
pub struct DiskSet<'a, P: Platform = Machine> {
    platform: P,
    disks: Vec<&'a Disk<P>>,
}

impl<'a, P: Platform> DiskSet<'a, P> {
    /// The set of these disks, each once; `None` if there are none.
    pub fn new(disks: impl IntoIterator<Item = &'a Disk<P>>) -> Option<Self> {
        let mut disks = disks.into_iter();
        let first = disks.next()?;
        let mut set = Self {
            platform: first.platform.clone(),
            disks: Vec::new(),
        };
        set.add(first);
        disks.for_each(|disk| set.add(disk));
        Some(set)
    }

    /// Makes a disk part of the set, if it is not already.
    pub fn add(&mut self, disk: &'a Disk<P>) {
        if self.disks.iter().all(|known| known.slot() != disk.slot()) {
            self.disks.push(disk);
        }
    }
}

impl<P: Platform> Overlap for DiskSet<'_, P> {
    fn submit(&self, transfer: Transfer) -> Result<(), Transfer> {
        let disk = self.disks.iter().find(|disk| disk.slot() == transfer.file);
        if let Some(disk) = disk {
            return disk.submit(transfer);
        }
        // Given back by the first disk, which knows that it is not its own.
        let offset = transfer.work.offset();
        let errno = EINVAL;
        if let Some(disk) = self.disks.first() {
            let mut requests = disk.requests.borrow_mut();
            requests.end(transfer, Err(StorageError { errno, offset }));
        }
        Ok(())
    }

    fn kick(&self) {
        for disk in &self.disks {
            disk.kick();
        }
    }

    fn poll(&self) -> Option<Done> {
        self.kick();
        self.disks.iter().find_map(|disk| disk.poll())
    }

    fn wait(&self) -> Option<Done> {
        loop {
            if let Some(done) = self.poll() {
                return Some(done);
            }
            if self.in_flight() == 0 {
                return None;
            }
            self.platform.wait(0);
        }
    }

    fn idle(&self) {
        self.kick();
        let ended = || {
            self.disks
                .iter()
                .any(|disk| disk.requests.borrow_mut().has_ended())
        };
        crew::wait_unless(&self.platform, ended);
    }

    fn in_flight(&self) -> usize {
        let disks = self.disks.iter();
        disks.fold(0, |sum, disk| sum.saturating_add(disk.in_flight()))
    }
}
