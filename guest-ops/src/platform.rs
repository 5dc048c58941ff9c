//! The one way out: what the runtime needs of the machine it runs on.

use core::alloc::Layout;
use core::ptr::NonNull;

/// A machine of the operation contract: doorbells, and memory at fixed guest addresses.
///
/// A platform is a handle; its clones are the same machine.
///
/// # Safety
/// An implementation promises that:
/// - [`Self::pointer`] is valid for reads and writes of `len` bytes for as long as the platform lives,
///   and leads to the bytes that the host sees at that guest address (regions that the contract maps
///   read-only may fault on writes);
/// - [`Self::dma_address`] returns an address only if the host reaches exactly these bytes there;
/// - [`Self::dma_alloc`] returns memory that is not used otherwise until [`Self::dma_free`], for which
///   `dma_address` gives an address;
/// - a doorbell has the effects of `instar_shared::doorbell` and touches no other memory than what the
///   contract and the queues give to the host.
pub unsafe trait Platform: Clone {
    /// Rings the kick doorbell with `value`.
    fn kick(&self, value: u32);

    /// Rings the wait doorbell with `value`, which says nothing: returns when a request is completed.
    /// To wait with no request in flight is an error that ends the operation.
    fn wait(&self, value: u32);

    /// Where the `len` bytes at guest address `addr` are for this program.
    ///
    /// # Panics
    /// If the range is not part of the machine.
    fn pointer(&self, addr: u64, len: usize) -> NonNull<u8>;

    /// The guest address of `len` bytes at `pointer`, or `None` if devices cannot reach them all.
    fn dma_address(&self, pointer: *const u8, len: usize) -> Option<u64>;

    /// Zeroed memory that devices can reach; `None` if there is no more.
    fn dma_alloc(&self, layout: Layout) -> Option<NonNull<u8>>;

    /// Takes memory back.
    ///
    /// # Safety
    /// `pointer` comes from [`Self::dma_alloc`] with this `layout`, and nobody uses it any more,
    /// devices included.
    unsafe fn dma_free(&self, pointer: NonNull<u8>, layout: Layout);

    /// Takes note that the heap ends at `heap_end` now; memory up to there is given to the allocator
    /// when it needs more.
    fn heap_grew(&self, heap_end: u64);

    /// A counter that runs at the boot page's `tsc_hz`.
    fn ticks(&self) -> u64;
}
