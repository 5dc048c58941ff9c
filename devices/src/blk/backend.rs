//! What stands behind a block device.

use crate::virtio::GuestBuffer;
use crate::virtio::chain::{scatter, total_len};
use instar_shared::blk::ID_BYTES;
use vm_memory::GuestMemory;

/// Names one request in flight; the device chooses it, the backend hands it back.
pub type Token = u64;

/// A host error number in Linux numbering, e.g. 5 for EIO. Never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub u32);

impl Errno {
    /// Input/output error.
    pub const EIO: Self = Self(5);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// File too large: a change past the length that the file may have.
    pub const EFBIG: Self = Self(27);
    /// Read-only file system: a write to a read-only device.
    pub const EROFS: Self = Self(30);
    /// Operation not supported.
    pub const EOPNOTSUPP: Self = Self(95);
}

/// What is to be done. Offsets and lengths are in bytes; no range passes `i64::MAX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// Fill all buffers from `offset`; zeros past the end.
    Read {
        /// First byte.
        offset: u64,
    },
    /// Write all buffers at `offset`; past the end the file grows.
    Write {
        /// First byte.
        offset: u64,
    },
    /// Make completed writes durable. No buffers.
    Flush,
    /// The range's content is no longer needed: a hint, and no error if it cannot be taken. No buffers.
    Discard {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The range reads as zeros from now on; past the end the file grows. No buffers.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Length in bytes.
        len: u64,
        /// Whether the range may be deallocated.
        unmap: bool,
    },
    /// Make the file exactly so long. No buffers.
    SetLength {
        /// Length in bytes.
        len: u64,
    },
    /// Reserve space for the range; the file grows if it is shorter. No buffers.
    Allocate {
        /// First byte.
        offset: u64,
        /// Length in bytes, not 0.
        len: u64,
        /// By writing zeros, over whatever is there; else contents stay.
        zeros: bool,
    },
    /// Copy from the file of another device, or from another range of this one; past the source's end
    /// zeros, past the target's end the file grows. EINVAL if the ranges overlap. No buffers.
    Copy {
        /// Device slot of the source.
        from_slot: u16,
        /// First byte that is read.
        from_offset: u64,
        /// First byte that is written.
        offset: u64,
        /// Length in bytes, not 0.
        len: u64,
    },
    /// Fill the buffers with [`instar_shared::blk::StatusExtent`]s from `offset` on, ended by one of
    /// length 0 if there is room ([`IoRequest::fill`] puts them there). At or past the end: none.
    BlockStatus {
        /// Where the first run starts.
        offset: u64,
    },
}

/// One request to a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IoRequest {
    /// What is to be done.
    pub kind: IoKind,
    /// The data buffers in order; at most the queue size of them, at most
    /// [`instar_shared::blk::MAX_REQUEST_BYTES`] in all.
    pub buffers: Vec<GuestBuffer>,
}

impl IoRequest {
    /// Bytes of all buffers.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        total_len(&self.buffers)
    }

    /// Writes `bytes` into the buffers from the front; says how many fitted.
    ///
    /// # Errors
    /// EIO if guest memory cannot be accessed.
    pub fn fill<M: GuestMemory>(&self, mem: &M, bytes: &[u8]) -> Result<u32, Errno> {
        scatter(mem, &self.buffers, bytes).map_err(|_| Errno::EIO)
    }
}

/// How a request ended: the bytes written to its buffers (0 for all but reads), or the host's error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// Bytes written to the guest, or why not.
    pub result: Result<u32, Errno>,
}

/// What became of a submitted request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submission {
    /// It is done; `poll` does not return it.
    Done(Completion),
    /// It goes on; [`BlockBackend::poll`] returns its token later. Until then the buffers are the backend's.
    Pending,
}

/// A store that serves a block device. It reaches guest memory by a handle of its own.
pub trait BlockBackend {
    /// Starts a request, or does it at once if that is cheap.
    fn submit(&mut self, token: Token, request: IoRequest) -> Submission;

    /// The next finished request of those that were pending, in any order; `None` if there is none now.
    fn poll(&mut self) -> Option<(Token, Completion)>;

    /// Forgets all requests that were submitted and not polled; on return none of them touches guest memory or the
    /// store any more. What a write had done by then stays.
    fn stop(&mut self);

    /// The exact length in bytes now.
    ///
    /// # Errors
    /// What the host says.
    fn len_bytes(&mut self) -> Result<u64, Errno>;

    /// The device's identifier, NUL-padded. VirtIO 1.3 §5.2.6 (`VIRTIO_BLK_T_GET_ID`).
    fn id(&mut self) -> [u8; ID_BYTES] {
        [0; ID_BYTES]
    }
}
