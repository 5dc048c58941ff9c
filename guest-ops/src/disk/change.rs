//! Changing a disk: [`StorageMut`].

use super::requests::{Data, Piece};
use super::{BOUNCE_BYTES, Disk, EIO, ENOMEM, EOPNOTSUPP, EROFS, cut};
use crate::Platform;
use crate::dma::DmaBuffer;
use alloc::vec::Vec;
use instar_shared::blk::{RANGE_WRITE_ZEROS, RequestType};
use instar_shared::device::{FEATURE_BYTE_WRITE, FEATURE_ORDERED};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;
use instar_storage::{Reserve, StorageError, StorageMut, Write};

/// Most zeros that one request asks the host to write, so that limits see steps.
const WRITTEN_ZEROS_BYTES: u64 = 256 << 20;

impl<P: Platform> Disk<P> {
    /// Does a change that reaches up to byte `end`, and takes note of what it made of the disk.
    fn change(
        &self,
        offset: u64,
        end: u64,
        change: impl FnOnce() -> Result<(), StorageError>,
    ) -> Result<(), StorageError> {
        self.may_change(offset)?;
        self.forget();
        let result = change();
        match result {
            Ok(()) => self.len_bytes.set(self.len_bytes.get().max(end)),
            // A part of it may have been done.
            Err(_) => self.ask_length(),
        }
        result
    }

    /// Whether the host offers changes at all.
    pub(super) fn may_change(&self, offset: u64) -> Result<(), StorageError> {
        let errno = if self.is_read_only() {
            EROFS
        } else if self.entry.features.get() & FEATURE_BYTE_WRITE == 0 {
            EOPNOTSUPP
        } else {
            return Ok(());
        };
        Err(StorageError { errno, offset })
    }

    /// Asks the host how long the disk is; keeps what is known if it cannot say.
    pub(super) fn ask_length(&self) {
        let mut answer = U64::new(0);
        let Some(buffer) = DmaBuffer::new(&self.platform, size_of_val(&answer)) else {
            return;
        };
        let piece = Piece {
            kind: RequestType::GetLength,
            start: 0,
            data: Data::buffer(RequestType::GetLength, buffer.address(0), buffer.len()),
        };
        let asked = self.requests.borrow_mut().run(&[piece]);
        if asked.is_ok() && buffer.read(0, answer.as_mut_bytes()) {
            self.len_bytes.set(answer.get());
        }
    }

    /// A change of a range, which makes the disk as long as `end`.
    fn change_range(
        &self,
        kind: RequestType,
        (offset, len): (u64, u64),
        flags: u64,
        end: u64,
    ) -> Result<(), StorageError> {
        if len == 0 {
            return self.may_change(offset);
        }
        self.change(offset, end, || self.range(kind, offset, len, flags))
    }

    /// One request with a range, or several if the host writes it all.
    fn range(
        &self,
        kind: RequestType,
        offset: u64,
        len: u64,
        flags: u64,
    ) -> Result<(), StorageError> {
        let most = if flags & RANGE_WRITE_ZEROS == 0 {
            u64::MAX
        } else {
            WRITTEN_ZEROS_BYTES
        };
        let (mut start, mut left) = (offset, len);
        while left > 0 {
            let here = left.min(most);
            let data = Data::Range(here, flags);
            self.requests
                .borrow_mut()
                .run(&[Piece { kind, start, data }])?;
            start = start.saturating_add(here);
            left = left.saturating_sub(here);
        }
        Ok(())
    }

    /// Writes from memory that devices cannot reach, such as a constant of the image.
    fn write_bounced(&self, write: &Write<'_>) -> Result<(), StorageError> {
        let size = write.buf.len().min(BOUNCE_BYTES);
        let mut start = write.offset;
        let failed = |errno, offset| StorageError { errno, offset };
        let bounce = DmaBuffer::new(&self.platform, size);
        let mut bounce = bounce.ok_or_else(|| failed(ENOMEM, start))?;
        for chunk in write.buf.chunks(size) {
            if !bounce.write(0, chunk) {
                return Err(failed(EIO, start));
            }
            let kind = RequestType::WriteBytes;
            let data = Data::buffer(kind, bounce.address(0), chunk.len());
            self.requests
                .borrow_mut()
                .run(&[Piece { kind, start, data }])?;
            start = start.saturating_add(chunk.len() as u64);
        }
        Ok(())
    }

    /// Does all `writes` after the request `first` and before the request `last`: in one kick if the host keeps
    /// their order.
    fn write_all(
        &self,
        first: Option<Piece>,
        writes: &[Write<'_>],
        last: Option<Piece>,
    ) -> Result<(), StorageError> {
        let ordered = self.entry.features.get() & FEATURE_ORDERED != 0;
        let mut pieces = Vec::with_capacity(writes.len().saturating_add(2));
        pieces.extend(first);
        if !ordered {
            self.run_all(&mut pieces)?;
        }
        for write in writes.iter().filter(|write| !write.buf.is_empty()) {
            match self
                .platform
                .dma_address(write.buf.as_ptr(), write.buf.len())
            {
                Some(addr) => {
                    let kind = RequestType::WriteBytes;
                    pieces.extend(cut(kind, write.offset, addr, write.buf.len()));
                }
                None => {
                    // Not before the length is what it is to be.
                    self.run_all(&mut pieces)?;
                    self.write_bounced(write)?;
                }
            }
        }
        if !ordered {
            self.run_all(&mut pieces)?;
        }
        pieces.extend(last);
        self.run_all(&mut pieces)
    }

    /// Does the requests and forgets them.
    fn run_all(&self, pieces: &mut Vec<Piece>) -> Result<(), StorageError> {
        let result = self.requests.borrow_mut().run(pieces);
        pieces.clear();
        result
    }
}

/// The request that makes everything durable.
const SYNC: Piece = bare(RequestType::Sync, 0);

/// A request without data.
const fn bare(kind: RequestType, start: u64) -> Piece {
    let data = Data::None;
    Piece { kind, start, data }
}

/// The first byte after all that is written.
fn end_of(writes: &[Write<'_>]) -> u64 {
    let filled = writes.iter().filter(|write| !write.buf.is_empty());
    let ends = filled.map(|write| write.offset.saturating_add(write.buf.len() as u64));
    ends.max().unwrap_or(0)
}

impl<P: Platform> StorageMut for Disk<P> {
    fn can_grow(&self) -> bool {
        !self.is_block_device()
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        self.write_batch(&[Write { offset, buf }])
    }

    fn write_batch(&self, writes: &[Write<'_>]) -> Result<(), StorageError> {
        let Some(first) = writes.iter().find(|write| !write.buf.is_empty()) else {
            return Ok(());
        };
        self.change(first.offset, end_of(writes), || {
            self.write_all(None, writes, None)
        })
    }

    fn write_through(&self, writes: &[Write<'_>], min_len: u64) -> Result<(), StorageError> {
        let longer = bare(RequestType::SetLength, min_len);
        let longer = Some(longer).filter(|_| self.len_bytes.get() < min_len);
        let first = writes.first().map_or(min_len, |write| write.offset);
        self.change(first, end_of(writes).max(min_len), || {
            self.write_all(longer, writes, Some(SYNC))
        })
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let end = offset.saturating_add(len);
        self.change_range(RequestType::ZeroBytes, (offset, len), 0, end)
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.change_range(RequestType::DiscardBytes, (offset, len), 0, 0)
    }

    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        let flags = match how {
            Reserve::Blocks => 0,
            Reserve::WrittenZeros => RANGE_WRITE_ZEROS,
        };
        let end = offset.saturating_add(len);
        self.change_range(RequestType::Allocate, (offset, len), flags, end)
    }

    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.change(len, 0, || {
            let piece = bare(RequestType::SetLength, len);
            self.requests.borrow_mut().run(&[piece])?;
            self.len_bytes.set(len);
            Ok(())
        })
    }

    fn flush(&self) -> Result<(), StorageError> {
        if self.is_read_only() {
            return Ok(());
        }
        self.may_change(0)?;
        self.requests.borrow_mut().run(&[SYNC])
    }
}
