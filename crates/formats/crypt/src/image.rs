//! The cipher of an image's data.

use crate::sector::{SECTOR_BYTES, SectorCipher};
use crate::store::Deciphered;
use instar_storage::{Cipher, DataPlace, Storage, StorageError, StorageMut};

/// EIO: not whole sectors.
const EIO: u32 = 5;

/// What the numbers of an image's sectors count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// Their places in the file that they lie in, from its start: LUKS in qcow2.
    ByHost,
    /// Their places in the guest's disk: the older AES method of qcow2.
    ByGuest,
}

/// The cipher of an image's data.
#[derive(Debug)]
pub struct ImageCipher {
    cipher: SectorCipher,
    counted: Counted,
}

impl ImageCipher {
    /// Sectors that are encrypted by `cipher`.
    #[must_use]
    pub const fn new(cipher: SectorCipher, counted: Counted) -> Self {
        Self { cipher, counted }
    }

    const fn counted(&self, at: DataPlace) -> u64 {
        match self.counted {
            Counted::ByHost => at.host,
            Counted::ByGuest => at.guest,
        }
    }

    /// The number of the first sector at `at`.
    fn first(&self, at: DataPlace) -> Result<u64, StorageError> {
        let counted = self.counted(at);
        if counted.is_multiple_of(SECTOR_BYTES) {
            Ok(counted / SECTOR_BYTES)
        } else {
            Err(failed(at))
        }
    }

    fn view<S>(&self, store: S, at: DataPlace) -> Deciphered<'_, S> {
        Deciphered::counted(store, &self.cipher, at.host, self.counted(at))
    }
}

const fn failed(at: DataPlace) -> StorageError {
    StorageError {
        errno: EIO,
        offset: at.host,
    }
}

impl Cipher for ImageCipher {
    fn decipher(&self, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError> {
        let first = self.first(at)?;
        self.cipher.decrypt(first, buf).map_err(|_| failed(at))
    }

    fn encipher(&self, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError> {
        let first = self.first(at)?;
        self.cipher.encrypt(first, buf).map_err(|_| failed(at))
    }

    fn read(&self, store: &dyn Storage, at: DataPlace, buf: &mut [u8]) -> Result<(), StorageError> {
        self.view(store, at).read_at(at.host, buf)
    }

    fn write(
        &self,
        store: &dyn StorageMut,
        at: DataPlace,
        bytes: &[u8],
    ) -> Result<(), StorageError> {
        self.view(store, at).write_at(at.host, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_storage::MemStorage;
    use std::vec;

    const PLACE: DataPlace = DataPlace {
        host: 1024,
        guest: 5120,
    };

    #[test]
    fn sectors_are_counted_by_one_of_their_places() {
        for (counted, same) in [
            (Counted::ByHost, DataPlace { guest: 0, ..PLACE }),
            (Counted::ByGuest, DataPlace { host: 0, ..PLACE }),
        ] {
            let sectors = SectorCipher::legacy_aes(b"password").unwrap();
            let cipher = ImageCipher::new(sectors, counted);
            let mut buf = vec![7; 1024];
            cipher.encipher(PLACE, &mut buf).unwrap();
            let store = MemStorage::hole(4096);
            cipher.write(&store, PLACE, &[7; 1024]).unwrap();
            assert_eq!(store.to_vec()[1024..2048], buf);
            cipher.decipher(same, &mut buf).unwrap();
            assert_eq!(buf, vec![7; 1024]);
            // A place whose offsets are not equally far into a sector is none that data can have.
            let odd = PLACE.advanced(100);
            cipher.write(&store, odd, &[9; 10]).unwrap();
            let mut buf = vec![0; 20];
            cipher.read(&store, PLACE.advanced(95), &mut buf).unwrap();
            assert_eq!(buf, [&[7; 5][..], &[9; 10], &[7; 5]].concat());
        }
    }

    #[test]
    fn parts_of_sectors_are_refused() {
        let sectors = SectorCipher::legacy_aes(b"password").unwrap();
        let cipher = ImageCipher::new(sectors, Counted::ByHost);
        assert!(cipher.decipher(PLACE, &mut [0; 100]).is_err());
        assert!(cipher.encipher(PLACE.advanced(1), &mut [0; 512]).is_err());
    }
}
