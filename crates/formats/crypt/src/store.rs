//! The plain view of a store whose sectors are encrypted.

use crate::sector::{SECTOR_BYTES, SectorCipher};
use instar_storage::{Extent, Read, Reserve, Storage, StorageError, StorageMut, Write};
use zeroize::Zeroizing;

/// Bytes that a write enciphers at a time.
const BOUNCE_BYTES: usize = 64 << 10;
/// EIO: sectors that are not where they can be.
const EIO: u32 = 5;

/// A store seen through a cipher: reads give plain bytes, writes store encrypted ones.
///
/// The number of a sector is its place in the store, or, where an image counts sectors as its guest does, its
/// place in the guest's disk: then the view is made for one run of data, whose sectors all lie equally far from
/// their places in the disk. Everything that the cipher does not concern goes to the store as it is: holes and
/// the bytes past the end, which read as zeros in the store, are *not* zeros in this view.
#[derive(Debug)]
pub struct Deciphered<'c, S> {
    store: S,
    cipher: &'c SectorCipher,
    /// Added to a byte offset of the store, it gives the offset that the cipher counts; whole sectors.
    shift: u64,
}

impl<'c, S> Deciphered<'c, S> {
    /// Sectors are numbered as they lie in the store, from its beginning: LUKS in qcow2.
    pub const fn by_place(store: S, cipher: &'c SectorCipher) -> Self {
        Self {
            store,
            cipher,
            shift: 0,
        }
    }

    /// The sector at byte `at` of the store has the number of byte `counted`, both multiples of 512; the others
    /// follow: a run of the older AES method, or the payload of a LUKS volume, which is counted from 0.
    pub const fn counted(store: S, cipher: &'c SectorCipher, at: u64, counted: u64) -> Self {
        Self {
            store,
            cipher,
            shift: counted.wrapping_sub(at),
        }
    }

    /// Number of the sector that holds byte `offset` of the store.
    const fn sector(&self, offset: u64) -> u64 {
        offset.wrapping_add(self.shift) / SECTOR_BYTES
    }
}

/// Where a request of any alignment has its whole sectors: `(head, body)` lengths; the rest is its tail.
fn split(offset: u64, len: usize) -> (usize, usize) {
    let short = |n: u64| usize::try_from(n).unwrap_or(len);
    let sector = short(SECTOR_BYTES);
    let into = short(offset % SECTOR_BYTES);
    let head = match into {
        0 => 0,
        _ => sector.saturating_sub(into).min(len),
    };
    let rest = len.saturating_sub(head);
    (head, rest & !sector.wrapping_sub(1))
}

impl<S: Storage> Deciphered<'_, S> {
    fn decipher(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.cipher
            .decrypt(self.sector(offset), buf)
            .map_err(|_| StorageError { errno: EIO, offset })
    }

    /// Reads and deciphers the sector that holds `offset`.
    fn sector_of(&self, offset: u64) -> Result<(Zeroizing<[u8; 512]>, u64, usize), StorageError> {
        let into = offset % SECTOR_BYTES;
        let start = offset.saturating_sub(into);
        let mut sector = Zeroizing::new([0; 512]);
        self.store.read_at(start, &mut *sector)?;
        self.decipher(start, &mut *sector)?;
        Ok((sector, start, usize::try_from(into).unwrap_or(0)))
    }

    /// Reads a piece of one sector.
    fn read_piece(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let (sector, _, into) = self.sector_of(offset)?;
        for (to, from) in buf.iter_mut().zip(sector.iter().skip(into)) {
            *to = *from;
        }
        Ok(())
    }

    /// Reads what does not begin or end with a sector, and deciphers the rest, which is read already.
    fn finish(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let (head, body) = split(offset, buf.len());
        let (first, rest) = buf.split_at_mut(head);
        let (whole, last) = rest.split_at_mut(body);
        let at = offset.saturating_add(head as u64);
        self.decipher(at, whole)?;
        if !first.is_empty() {
            self.read_piece(offset, first)?;
        }
        if !last.is_empty() {
            self.read_piece(at.saturating_add(body as u64), last)?;
        }
        Ok(())
    }
}

impl<S: Storage> Storage for Deciphered<'_, S> {
    fn len_bytes(&self) -> u64 {
        self.store.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.store.read_at(offset, buf)?;
        self.finish(offset, buf)
    }

    fn read_batch(&self, reads: &mut [Read<'_>]) -> Result<(), StorageError> {
        self.store.read_batch(reads)?;
        for read in reads {
            self.finish(read.offset, read.buf)?;
        }
        Ok(())
    }

    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        let extent = self.store.extent_at(offset)?;
        Ok(extent.map(|extent| Extent {
            data: true,
            ..extent
        }))
    }
}

impl<S: StorageMut> Deciphered<'_, S> {
    fn encipher(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.cipher
            .encrypt(self.sector(offset), buf)
            .map_err(|_| StorageError { errno: EIO, offset })
    }

    /// Writes a piece of one sector, whose other bytes stay.
    fn write_piece(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        let (mut sector, start, into) = self.sector_of(offset)?;
        for (to, from) in sector.iter_mut().skip(into).zip(buf) {
            *to = *from;
        }
        self.encipher(start, &mut *sector)?;
        self.store.write_at(start, &*sector)
    }

    fn write_whole(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        let mut at = offset;
        let mut bounce = alloc::vec::Vec::new();
        bounce
            .try_reserve_exact(buf.len().min(BOUNCE_BYTES))
            .map_err(|_| StorageError { errno: 12, offset })?;
        for part in buf.chunks(BOUNCE_BYTES) {
            bounce.clear();
            bounce.extend_from_slice(part);
            self.encipher(at, &mut bounce)?;
            self.store.write_at(at, &bounce)?;
            at = at.saturating_add(part.len() as u64);
        }
        Ok(())
    }
}

impl<S: StorageMut> StorageMut for Deciphered<'_, S> {
    fn can_grow(&self) -> bool {
        self.store.can_grow()
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        let (head, body) = split(offset, buf.len());
        let (first, rest) = buf.split_at(head);
        let (whole, last) = rest.split_at(body);
        let at = offset.saturating_add(head as u64);
        if !first.is_empty() {
            self.write_piece(offset, first)?;
        }
        if !whole.is_empty() {
            self.write_whole(at, whole)?;
        }
        if !last.is_empty() {
            self.write_piece(at.saturating_add(body as u64), last)?;
        }
        Ok(())
    }

    fn write_batch(&self, writes: &[Write<'_>]) -> Result<(), StorageError> {
        for write in writes {
            self.write_at(write.offset, write.buf)?;
        }
        Ok(())
    }

    /// Writes encrypted zeros.
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let zeros = [0; 4096];
        let (mut at, mut left) = (offset, len);
        while left > 0 {
            let some = usize::try_from(left).map_or(zeros.len(), |left| left.min(zeros.len()));
            self.write_at(at, zeros.get(..some).unwrap_or_default())?;
            at = at.saturating_add(some as u64);
            left = left.saturating_sub(some as u64);
        }
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.store.discard(offset, len)
    }

    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        match how {
            Reserve::Blocks => self.store.allocate(offset, len, how),
            Reserve::WrittenZeros => self.write_zeroes(offset, len),
        }
    }

    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.store.set_len(len)
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.store.flush()
    }
}

#[cfg(test)]
mod tests;
