//! Memory that devices reach, owned.

use crate::Platform;
use core::alloc::Layout;
use core::ptr::NonNull;

/// Zeroed bytes at a known guest address, freed on drop.
#[derive(Debug)]
pub(crate) struct DmaBuffer<P: Platform> {
    platform: P,
    pointer: NonNull<u8>,
    layout: Layout,
    addr: u64,
}

impl<P: Platform> DmaBuffer<P> {
    /// `len` bytes; `None` if there is no more memory or `len` is 0.
    pub(crate) fn new(platform: &P, len: usize) -> Option<Self> {
        let layout = Layout::from_size_align(len, 64).ok()?;
        let pointer = platform.dma_alloc(layout)?;
        let addr = platform.dma_address(pointer.as_ptr(), len)?;
        Some(Self {
            platform: platform.clone(),
            pointer,
            layout,
            addr,
        })
    }

    /// Length in bytes.
    pub(crate) const fn len(&self) -> usize {
        self.layout.size()
    }

    /// Guest address of byte `offset`.
    pub(crate) const fn address(&self, offset: usize) -> u64 {
        self.addr.wrapping_add(offset as u64)
    }

    /// Copies the bytes from `offset` on to `out`; false if they are not all in the buffer.
    #[must_use]
    pub(crate) fn read(&self, offset: usize, out: &mut [u8]) -> bool {
        let Some(from) = self.at(offset, out.len()) else {
            return false;
        };
        let len = out.len();
        // SAFETY: `at` checked that the range lies in the allocation, which no slice refers to.
        unsafe { from.copy_to_nonoverlapping(NonNull::from(out).cast(), len) };
        true
    }

    /// Copies `bytes` to `offset`; false if they do not fit.
    #[must_use]
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let Some(to) = self.at(offset, bytes.len()) else {
            return false;
        };
        // SAFETY: as for `read`.
        unsafe { to.copy_from_nonoverlapping(NonNull::from(bytes).cast(), bytes.len()) };
        true
    }

    fn at(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(len)?;
        // SAFETY: the offset is inside the allocation.
        (end <= self.len()).then(|| unsafe { self.pointer.add(offset) })
    }
}

impl<P: Platform> Drop for DmaBuffer<P> {
    fn drop(&mut self) {
        // SAFETY: it came from `dma_alloc` with this layout; whoever lends it to a device keeps it
        // until the request has completed.
        unsafe { self.platform.dma_free(self.pointer, self.layout) }
    }
}
