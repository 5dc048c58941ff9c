//! What a chain of images shows, as a store.

use alloc::rc::Rc;
use core::cell::RefCell;
use instar_codec::Decoder;
use instar_guest_ops::Disk;
use instar_layers::{Chain, DataError};
use instar_storage::{Storage, StorageError};

/// Errno of a read that the image's damage forbids.
const EIO: u32 = 5;

/// A chain and what decompresses its clusters. Keeps the first damage that a read met.
pub struct ChainStore {
    chain: Chain<Disk>,
    codec: RefCell<Decoder>,
    error: RefCell<Option<Rc<DataError>>>,
}

impl ChainStore {
    /// The content of `chain`.
    pub fn new(chain: Chain<Disk>) -> Self {
        Self {
            chain,
            codec: RefCell::new(Decoder::new()),
            error: RefCell::new(None),
        }
    }

    /// The first damage that a read met.
    pub fn first_error(&self) -> Option<Rc<DataError>> {
        self.error.borrow().clone()
    }
}

impl Storage for ChainStore {
    fn len_bytes(&self) -> u64 {
        self.chain.len_bytes()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        let mut codec = self.codec.borrow_mut();
        let read = self.chain.read_at(offset, buf, &mut *codec);
        read.map_err(|error| {
            self.error.borrow_mut().get_or_insert(Rc::new(error));
            StorageError { errno: EIO, offset }
        })
    }
}
