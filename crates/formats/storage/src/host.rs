//! A file of the host as a store, for tools and tests.

use crate::{Reserve, Storage, StorageError, StorageMut};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Most bytes of zeros written by one call.
const ZEROS: &[u8] = &[0; 64 << 10];

/// A file on the host. Its length is asked for each time, so others may change it.
#[derive(Debug)]
pub struct FileStorage {
    file: File,
}

impl FileStorage {
    /// Takes an open file.
    ///
    /// # Errors
    /// What `fstat` says.
    pub fn new(file: File) -> std::io::Result<Self> {
        file.metadata()?;
        Ok(Self { file })
    }
}

fn failed(error: &std::io::Error, offset: u64) -> StorageError {
    let errno = error.raw_os_error().and_then(|n| u32::try_from(n).ok());
    StorageError {
        errno: errno.unwrap_or(5),
        offset,
    }
}

impl Storage for FileStorage {
    fn len_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |metadata| metadata.len())
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let mut done = 0_usize;
        while done < buf.len() {
            let rest = buf.get_mut(done..).unwrap_or_default();
            let at = offset.saturating_add(done as u64);
            match self.file.read_at(rest, at) {
                Ok(0) => {
                    rest.fill(0);
                    break;
                }
                Ok(n) => done = done.saturating_add(n),
                Err(e) => return Err(failed(&e, at)),
            }
        }
        Ok(())
    }
}

/// Zeros are written and discards do nothing: the standard library has no call for either.
impl StorageMut for FileStorage {
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        self.file
            .write_all_at(buf, offset)
            .map_err(|e| failed(&e, offset))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        let mut at = offset;
        let mut left = len;
        while left > 0 {
            let n = usize::try_from(left).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            self.write_at(at, ZEROS.get(..n).unwrap_or_default())?;
            at = at.saturating_add(n as u64);
            left = left.saturating_sub(n as u64);
        }
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> Result<(), StorageError> {
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        match how {
            Reserve::WrittenZeros => self.write_zeroes(offset, len),
            Reserve::Blocks => {
                let end = offset.saturating_add(len);
                self.set_len(self.len_bytes().max(end))
            }
        }
    }

    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.file.set_len(len).map_err(|e| failed(&e, len))
    }

    fn flush(&self) -> Result<(), StorageError> {
        self.file.sync_data().map_err(|e| failed(&e, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_what_was_written() {
        let path = std::env::temp_dir().join(std::format!("instar-file-{}", std::process::id()));
        let mut options = File::options();
        let options = options.read(true).write(true).create(true).truncate(true);
        let store = FileStorage::new(options.open(&path).unwrap()).unwrap();
        std::fs::remove_file(path).unwrap();
        store.write_at(3, b"abcdef").unwrap();
        store.write_zeroes(4, 70_000).unwrap();
        store.flush().unwrap();
        assert_eq!(store.len_bytes(), 70_004);
        store.set_len(6).unwrap();
        store.allocate(0, 8, Reserve::Blocks).unwrap();
        let mut buf = [0xff; 9];
        store.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"\0\0\0a\0\0\0\0\0");
        assert_eq!(store.len_bytes(), 8);
    }
}
