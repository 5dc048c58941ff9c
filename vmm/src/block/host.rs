//! A host file, and how its bytes are reached: through the page cache, or past it (`O_DIRECT`).
//!
//! Past the page cache the kernel takes whole blocks only, from and to aligned memory. What a guest asks for is any
//! bytes, so the ragged ends of a request go through a buffer here: for a write, the blocks at its ends are read
//! first, and a file that would end in the middle of a block gets its length back. Meanwhile no other change of the
//! file is made, or the bytes beside it would be lost.

use super::calls::{self, Raw};
use std::fs::File;
use std::ops::Deref;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

/// Longest piece that goes through the buffer at once, in bytes.
const BUFFER_BYTES: u64 = 1 << 20;

/// A file or block device of the host.
#[derive(Debug)]
pub struct HostFile {
    file: File,
    direct: Option<Direct>,
    /// Where the image starts and ends in the file: all offsets and lengths here count from its start.
    start: u64,
    end: Option<u64>,
}

/// What goes for a descriptor with `O_DIRECT`.
#[derive(Debug)]
struct Direct {
    /// What offsets, lengths and addresses are multiples of: a power of two.
    align: u64,
    /// Held alone by a change of parts of blocks, shared by all other changes.
    turn: RwLock<()>,
}

impl HostFile {
    /// `file`, which was opened with `O_DIRECT` if `direct_align` is not 0, and then takes multiples of it.
    pub fn new(file: File, direct_align: u32) -> Self {
        let align = u64::from(direct_align);
        let direct = align.is_power_of_two().then(|| Direct {
            align,
            turn: RwLock::default(),
        });
        Self {
            file,
            direct,
            start: 0,
            end: None,
        }
    }

    /// The part of it from byte `start` on, up to `end` if it does not go on to the file's.
    #[must_use]
    pub fn part(self, start: u64, end: Option<u64>) -> Self {
        Self { start, end, ..self }
    }

    /// The place in the file of byte `offset` of the image.
    pub const fn place(&self, offset: u64) -> u64 {
        self.start.saturating_add(offset)
    }

    /// The byte of the image at `place` in the file, or its last one.
    pub fn offset_of(&self, place: u64) -> u64 {
        let place = self.end.map_or(place, |end| place.min(end));
        place.saturating_sub(self.start)
    }

    /// How many of `len` bytes at `offset` lie before the end of the part.
    pub fn bytes_at(&self, offset: u64, len: u64) -> u64 {
        let room = self.end.map(|end| end.saturating_sub(self.place(offset)));
        room.map_or(len, |room| room.min(len))
    }

    /// How long the image is, in bytes.
    ///
    /// # Errors
    /// The host's.
    pub fn len_bytes(&self) -> Result<u64, Raw> {
        calls::len(&self.file).map(|len| self.offset_of(len))
    }

    /// Whether the part ends at a place of its own.
    pub const fn has_end(&self) -> bool {
        self.end.is_some()
    }

    /// Makes the image exactly `len` bytes long. The part must not have an end.
    ///
    /// # Errors
    /// The host's.
    pub fn set_len(&self, len: u64) -> Result<(), Raw> {
        calls::set_len(&self.file, self.place(len))
    }

    /// Whether the page cache is passed by.
    pub const fn is_direct(&self) -> bool {
        self.direct.is_some()
    }

    /// Whether a request goes to the kernel as it is.
    pub fn takes(&self, offset: u64, iovecs: &[libc::iovec]) -> bool {
        let Some(Direct { align, .. }) = &self.direct else {
            return true;
        };
        let fits = |number: u64| number.is_multiple_of(*align);
        let mut all = iovecs.iter();
        fits(self.place(offset))
            && all.all(|one| fits(one.iov_base.addr() as u64) && fits(one.iov_len as u64))
    }

    /// To be held during a change of whole blocks, or of the length.
    pub fn turn(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let direct = self.direct.as_ref()?;
        Some(direct.turn.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads bytes at `offset`; how many there were, 0 at the end.
    ///
    /// # Errors
    /// The host's.
    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Raw> {
        let there = size(self.bytes_at(offset, buffer.len() as u64))?;
        let buffer = buffer.get_mut(..there).ok_or(libc::EINVAL)?;
        let offset = self.place(offset);
        let Some(Direct { align, .. }) = &self.direct else {
            // SAFETY: the vector is the buffer, which is valid for writes.
            return unsafe { calls::read(&self.file, &[vector(buffer)], offset) }.and_then(size);
        };
        let mut blocks = Blocks::around(offset, buffer.len() as u64, *align)?;
        let read = blocks.read(&self.file)?;
        let skip = size(offset.saturating_sub(blocks.start))?;
        let there = blocks.bytes().get(skip..read.max(skip)).unwrap_or_default();
        let count = there.len().min(buffer.len());
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), there.get(..count)) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    /// Writes bytes at `offset`; how many were written.
    ///
    /// # Errors
    /// The host's.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> Result<usize, Raw> {
        let there = size(self.bytes_at(offset, bytes.len() as u64))?;
        let bytes = bytes.get(..there).ok_or(libc::EINVAL)?;
        let offset = self.place(offset);
        let Some(Direct { align, turn }) = &self.direct else {
            // SAFETY: the vector is the slice, which is valid for reads; a write only reads it.
            return unsafe { calls::write(&self.file, &[constant(bytes)], offset) }.and_then(size);
        };
        let _alone = turn.write().unwrap_or_else(PoisonError::into_inner);
        let mut blocks = Blocks::around(offset, bytes.len() as u64, *align)?;
        let skip = size(offset.saturating_sub(blocks.start))?;
        let count = bytes.len().min(blocks.len.saturating_sub(skip));
        let end = offset.saturating_add(count as u64);
        let ragged = skip > 0 || end < blocks.end();
        let mut len = None;
        if ragged {
            len = Some(calls::len(&self.file)?);
            blocks.read_ends(&self.file, size(*align)?)?;
        }
        let place = blocks.bytes_mut().get_mut(skip..skip.saturating_add(count));
        match (place, bytes.get(..count)) {
            (Some(place), Some(bytes)) => place.copy_from_slice(bytes),
            _ => return Err(libc::EINVAL),
        }
        let written = blocks.write(&self.file)?;
        // The last block may hold bytes that nobody wrote.
        if let Some(len) = len
            .map(|len| len.max(end))
            .filter(|len| *len < blocks.end())
        {
            calls::set_len(&self.file, len)?;
        }
        Ok(written.saturating_sub(skip).min(count))
    }
}

impl From<File> for HostFile {
    fn from(file: File) -> Self {
        Self::new(file, 0)
    }
}

impl Deref for HostFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

/// Whole blocks of a file, in memory that is aligned as they are.
#[derive(Debug)]
struct Blocks {
    memory: Vec<u8>,
    /// Where in the memory they begin, in bytes.
    at: usize,
    len: usize,
    /// Offset in the file.
    start: u64,
}

impl Blocks {
    /// The blocks that hold `len` bytes from `offset` on, or the first of them; all zeros.
    fn around(offset: u64, len: u64, align: u64) -> Result<Self, Raw> {
        let start = offset.saturating_sub(offset % align);
        let end = offset.checked_add(len).ok_or(libc::EINVAL)?;
        let end = end.checked_next_multiple_of(align).ok_or(libc::EINVAL)?;
        let longest = BUFFER_BYTES.max(align.saturating_mul(2));
        let len = size(end.saturating_sub(start).min(longest))?;
        let align = size(align)?;
        let memory = vec![0; len.checked_add(align).ok_or(libc::EINVAL)?];
        let at = memory.as_ptr().addr().wrapping_neg() % align;
        Ok(Self {
            memory,
            at,
            len,
            start,
        })
    }

    const fn end(&self) -> u64 {
        self.start.saturating_add(self.len as u64)
    }

    fn bytes(&self) -> &[u8] {
        let all = self.memory.get(self.at..).unwrap_or_default();
        all.get(..self.len).unwrap_or_default()
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let all = self.memory.get_mut(self.at..).unwrap_or_default();
        all.get_mut(..self.len).unwrap_or_default()
    }

    /// Fills them from the file, as far as it goes; how many bytes that were.
    fn read(&mut self, file: &File) -> Result<usize, Raw> {
        let start = self.start;
        // SAFETY: the vector is the buffer, which is valid for writes.
        let read = unsafe { calls::read(file, &[vector(self.bytes_mut())], start) }?;
        size(read)
    }

    /// Fills the first and the last block, of `align` bytes each.
    fn read_ends(&mut self, file: &File, align: usize) -> Result<(), Raw> {
        let last = self.len.saturating_sub(align);
        for at in [0, last].into_iter().take(if last == 0 { 1 } else { 2 }) {
            let offset = self.start.saturating_add(at as u64);
            let end = at.saturating_add(align);
            let block = self.bytes_mut().get_mut(at..end).ok_or(libc::EINVAL)?;
            // SAFETY: the vector is a part of the buffer, which is valid for writes.
            unsafe { calls::read(file, &[vector(block)], offset) }?;
        }
        Ok(())
    }

    fn write(&self, file: &File) -> Result<usize, Raw> {
        // SAFETY: the vector is the buffer, which is valid for reads; a write only reads it.
        let written = unsafe { calls::write(file, &[constant(self.bytes())], self.start) }?;
        size(written)
    }
}

fn size(number: u64) -> Result<usize, Raw> {
    usize::try_from(number).map_err(|_| libc::EINVAL)
}

const fn vector(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// A vector that is only read from.
const fn constant(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    const ALIGN: u32 = 4096;

    /// A file with `len` bytes, and their content: what is tested needs no `O_DIRECT` of the file system.
    fn file(len: usize) -> (HostFile, Vec<u8>) {
        let bytes: Vec<u8> = (1..=251).cycle().take(len).collect();
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&bytes, 0).unwrap();
        (HostFile::new(file, ALIGN), bytes)
    }

    #[test]
    fn any_bytes_are_read() {
        let (file, bytes) = file(10_000);
        for (offset, len) in [
            (0, 1),
            (1, 4095),
            (4000, 200),
            (4096, 4096),
            (9_990, 10),
            (0, 10_000),
        ] {
            let mut buffer = vec![0; len];
            assert_eq!(file.read_at(&mut buffer, offset as u64), Ok(len));
            assert_eq!(buffer, &bytes[offset..offset + len]);
        }
        let mut buffer = [0; 20];
        assert_eq!(file.read_at(&mut buffer, 9_990), Ok(10));
        assert_eq!(file.read_at(&mut buffer, 10_000), Ok(0));
        assert_eq!(file.read_at(&mut buffer, 1 << 40), Ok(0));
    }

    #[test]
    fn writes_leave_what_is_beside_them_and_the_length() {
        for (offset, len, after) in [
            (0, 1, 10_000),
            (4095, 2, 10_000),
            (9_999, 1, 10_000),
            (9_999, 2, 10_001),
            (12_000, 5, 12_005),
            (100_000, 512, 100_512),
            (8192, 4096, 12_288),
        ] {
            let (file, mut bytes) = file(10_000);
            let new = vec![0xff; len];
            assert_eq!(file.write_at(&new, offset as u64), Ok(len));
            bytes.resize(after, 0);
            bytes[offset..offset + len].copy_from_slice(&new);
            let mut seen = vec![0; 200_000];
            let read = FileExt::read_at(&*file, &mut seen, 0).unwrap();
            assert_eq!(read, after, "{len} bytes at {offset}");
            assert!(seen[..read] == bytes, "{len} bytes at {offset}");
        }
    }

    #[test]
    fn long_writes_are_done_in_pieces() {
        let (file, _) = file(0);
        let bytes: Vec<u8> = (0..3_000_001_u32).map(|at| (at % 253) as u8).collect();
        let mut done = 0;
        while done < bytes.len() {
            done += file.write_at(&bytes[done..], 77 + done as u64).unwrap();
        }
        let mut seen = vec![0; bytes.len() + 77];
        FileExt::read_exact_at(&*file, &mut seen, 0).unwrap();
        assert!(seen[77..] == bytes && seen[..77].iter().all(|byte| *byte == 0));
        assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64 + 77);
    }

    #[test]
    fn only_whole_blocks_are_taken_as_they_are() {
        let (file, _) = file(0);
        let at = |base: usize, iov_len| libc::iovec {
            iov_base: std::ptr::without_provenance_mut(base),
            iov_len,
        };
        assert!(file.takes(8192, &[at(4096, 4096), at(12_288, 8192)]));
        assert!(!file.takes(512, &[at(4096, 4096)]));
        assert!(!file.takes(0, &[at(512, 4096)]));
        assert!(!file.takes(0, &[at(4096, 100)]));
        assert!(HostFile::from(tempfile::tempfile().unwrap()).takes(1, &[at(1, 1)]));
    }

    #[test]
    fn threads_that_write_into_one_block_lose_nothing() {
        let (file, _) = file(0);
        std::thread::scope(|scope| {
            for part in 0..8_u8 {
                let file = &file;
                scope.spawn(move || {
                    for at in 0..16_u64 {
                        let offset = at * 4096 + u64::from(part) * 512;
                        assert_eq!(file.write_at(&[part + 1; 512], offset), Ok(512));
                    }
                });
            }
        });
        let mut seen = vec![0; 16 * 4096];
        FileExt::read_exact_at(&*file, &mut seen, 0).unwrap();
        for (at, byte) in seen.iter().enumerate() {
            assert_eq!(usize::from(*byte), at % 4096 / 512 + 1);
        }
    }
}
