//! The guest's memory: one lazy reservation from address 0, the slot. That of a full machine has a hole, above which
//! it goes on.
//!
//! The host reserves the whole slot and pays only for pages that are touched; the
//! guest is given its parts as they are granted.
//! The slot starts at a 2 MiB boundary of host memory, so that the heap past its
//! first 2 MiB may sit on huge pages: a guest streams through fresh memory forty
//! times faster that way, and a small operation never touches one.

use crate::VmError;
use instar_shared::layout;
use instar_shared::zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};
use rustix::mm::{MapFlags, ProtFlags};
use std::sync::Arc;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// The memory slot; unmapped when the last owner goes.
#[derive(Debug)]
pub struct GuestSlot {
    map_start: *mut std::ffi::c_void,
    map_len: usize,
    size: u64,
    /// The whole slot, for the host's own use.
    all: GuestMemoryMmap,
    /// [`layout::DMA_START`] to the end, for devices; all of it in a full machine.
    dma: GuestMemoryMmap,
    regions: Vec<Region>,
}

/// A part of the slot, at its place in the guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest-physical address.
    pub gpa: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the host has it.
    pub host_address: u64,
}

/// A hole in the guest's address space.
#[derive(Clone, Copy, Debug)]
pub struct Hole {
    /// First address that is no memory.
    pub start: u64,
    /// Where memory goes on.
    pub end: u64,
}

// SAFETY: the mapping is plain shared memory that lives as long as the value;
// all access goes through vm-memory's volatile slices, never references.
unsafe impl Send for GuestSlot {}
// SAFETY: as above; concurrent volatile access is what guest memory is for.
unsafe impl Sync for GuestSlot {}

impl GuestSlot {
    /// Reserves a slot of `size` bytes, a multiple of 2 MiB.
    ///
    /// # Errors
    /// [`VmError::Memory`] if the address space is refused.
    pub fn new(size: u64) -> Result<Arc<Self>, VmError> {
        let place = |base| {
            let region = region(base, 0, 0, size);
            let dma = region.after(layout::DMA_START)?;
            advise_huge(base, layout::HEAP_START + layout::LARGE_PAGE_SIZE, size);
            Ok((vec![region], vec![dma]))
        };
        Self::reserve(size, place)
    }

    /// Reserves a slot of `size` bytes, a multiple of 2 MiB, for a full machine: memory from address 0 up to `hole`,
    /// and, what does not fit, on from its end. Devices reach all of it.
    ///
    /// # Errors
    /// [`VmError::Memory`] if the address space is refused.
    pub fn with_hole(size: u64, hole: Hole) -> Result<Arc<Self>, VmError> {
        let place = |base| {
            let low = size.min(hole.start);
            let mut regions = vec![region(base, 0, 0, low)];
            if let Some(high) = size.checked_sub(low).filter(|high| *high > 0) {
                regions.push(region(base, low, hole.end, high));
            }
            advise_huge(base, 0, size);
            Ok((regions.clone(), regions))
        };
        Self::reserve(size, place)
    }

    /// Memory that another process shares: all of it is its guest's, and devices reach it. Nothing is reserved.
    #[cfg_attr(
        not(all(target_os = "linux", target_arch = "x86_64")),
        allow(dead_code)
    )]
    #[must_use]
    pub fn shared(memory: GuestMemoryMmap) -> Arc<Self> {
        Arc::new(Self {
            map_start: std::ptr::null_mut(),
            map_len: 0,
            size: 0,
            all: memory.clone(),
            dma: memory,
            regions: Vec::new(),
        })
    }

    /// Reserves the slot; `place` says, for its first byte in the host, what lies where for host and devices.
    fn reserve(
        size: u64,
        place: impl FnOnce(*mut u8) -> Result<(Vec<Region>, Vec<Region>), String>,
    ) -> Result<Arc<Self>, VmError> {
        let fail = |source: std::io::Error| VmError::Memory {
            bytes: size,
            source,
        };
        let align = layout::LARGE_PAGE_SIZE;
        let len = size
            .checked_add(align)
            .and_then(|len| usize::try_from(len).ok());
        let len = len.ok_or_else(|| fail(std::io::ErrorKind::OutOfMemory.into()))?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice.
        let start =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), len, prot, map_flags()) }
                .map_err(|e| fail(e.into()))?;
        let shift = start.align_offset(usize::try_from(align).unwrap_or(1));
        let base = start.cast::<u8>().wrapping_add(shift);
        let views = place(base).and_then(|(all, dma)| Ok((view(&all)?, view(&dma)?, all)));
        match views {
            Ok((all, dma, regions)) => Ok(Arc::new(Self {
                map_start: start,
                map_len: len,
                size,
                all,
                dma,
                regions,
            })),
            Err(text) => {
                // SAFETY: the mapping made above, which nothing refers to.
                let _ = unsafe { rustix::mm::munmap(start, len) };
                Err(fail(std::io::Error::other(text)))
            }
        }
    }

    /// What lies where, in order.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// All of it, for the host's own use.
    #[must_use]
    pub const fn all(&self) -> &GuestMemoryMmap {
        &self.all
    }

    /// Size of the slot in bytes.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Host address of guest address 0.
    #[must_use]
    pub fn host_address(&self) -> *mut u8 {
        let shift = self
            .map_start
            .align_offset(usize::try_from(layout::LARGE_PAGE_SIZE).unwrap_or(1));
        self.map_start.cast::<u8>().wrapping_add(shift)
    }

    /// The part that devices may reach.
    #[must_use]
    pub const fn dma(&self) -> &GuestMemoryMmap {
        &self.dma
    }

    /// Copies `bytes` to `gpa`.
    ///
    /// # Errors
    /// [`VmError::OutsideMemory`].
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<(), VmError> {
        let outside = |_| VmError::OutsideMemory {
            gpa,
            len: bytes.len(),
        };
        self.all
            .write_slice(bytes, GuestAddress(gpa))
            .map_err(outside)
    }

    /// Copies from `gpa` into `buf`: the one read of memory that the guest may change.
    ///
    /// # Errors
    /// [`VmError::OutsideMemory`].
    pub fn read(&self, gpa: u64, buf: &mut [u8]) -> Result<(), VmError> {
        let outside = VmError::OutsideMemory {
            gpa,
            len: buf.len(),
        };
        self.all
            .read_slice(buf, GuestAddress(gpa))
            .map_err(|_| outside)
    }

    /// Has the host provide the memory of `len` bytes at `gpa` at once, which is cheaper than a fault for each
    /// page. Only a hint: what is not provided comes with the first access.
    pub fn populate(&self, gpa: u64, len: u64) {
        let end = gpa.saturating_add(len).min(self.size);
        let start = gpa - gpa % layout::PAGE_SIZE;
        let (Ok(skip), Ok(len)) = (
            usize::try_from(start),
            usize::try_from(end.saturating_sub(start)),
        ) else {
            return;
        };
        if len == 0 {
            return;
        }
        #[cfg(target_os = "linux")]
        // SAFETY: a range inside our own mapping; contents stay as they are. Kernels before 5.14 refuse.
        let _ = unsafe {
            rustix::mm::madvise(
                self.host_address().wrapping_add(skip).cast(),
                len,
                rustix::mm::Advice::LinuxPopulateWrite,
            )
        };
        #[cfg(not(target_os = "linux"))]
        let _ = (skip, len);
    }

    /// Keeps what the guest's memory holds out of core dumps.
    ///
    /// # Errors
    /// [`VmError::Memory`]: the kernel does not do it.
    pub fn keep_out_of_dumps(&self) -> Result<(), VmError> {
        #[cfg(target_os = "linux")]
        // SAFETY: our own mapping; the advice changes no contents.
        unsafe {
            rustix::mm::madvise(
                self.map_start,
                self.map_len,
                rustix::mm::Advice::LinuxDontDump,
            )
        }
        .map_err(|e| VmError::Memory {
            bytes: self.size,
            source: e.into(),
        })?;
        Ok(())
    }

    /// Writes a wire struct at `gpa`.
    ///
    /// # Errors
    /// [`VmError::OutsideMemory`].
    pub fn store<T: IntoBytes + Immutable>(&self, gpa: u64, value: &T) -> Result<(), VmError> {
        self.write(gpa, value.as_bytes())
    }

    /// Reads a wire struct at `gpa` into a copy.
    ///
    /// # Errors
    /// [`VmError::OutsideMemory`].
    pub fn load<T: FromBytes + FromZeros + IntoBytes>(&self, gpa: u64) -> Result<T, VmError> {
        let mut value = T::new_zeroed();
        self.read(gpa, value.as_mut_bytes())?;
        Ok(value)
    }
}

impl Drop for GuestSlot {
    fn drop(&mut self) {
        if self.map_len == 0 {
            return;
        }
        // SAFETY: the mapping of `new`; the views hold raw pointers into it but go with self.
        let _ = unsafe { rustix::mm::munmap(self.map_start, self.map_len) };
    }
}

/// What lies `from..size` into the slot may use huge pages. Of an operation that is the heap past its first 2 MiB:
/// everything below stays small.
fn advise_huge(base: *mut u8, from: u64, size: u64) {
    let (Ok(skip), Ok(len)) = (
        usize::try_from(from),
        usize::try_from(size.saturating_sub(from)),
    ) else {
        return;
    };
    if len == 0 {
        return;
    }
    #[cfg(target_os = "linux")]
    // SAFETY: a range inside our own mapping; the advice changes no contents. A kernel
    // without huge pages refuses, and small pages serve.
    let _ = unsafe {
        rustix::mm::madvise(
            base.wrapping_add(skip).cast(),
            len,
            rustix::mm::Advice::LinuxHugepage,
        )
    };
    #[cfg(not(target_os = "linux"))]
    let _ = (base, skip, len);
}

#[cfg(target_os = "linux")]
const fn map_flags() -> MapFlags {
    MapFlags::PRIVATE.union(MapFlags::NORESERVE)
}

#[cfg(not(target_os = "linux"))]
const fn map_flags() -> MapFlags {
    MapFlags::PRIVATE
}

/// The region of `len` bytes at `gpa` that begins `skip` bytes into the slot at `base`.
fn region(base: *mut u8, skip: u64, gpa: u64, len: u64) -> Region {
    Region {
        gpa,
        len,
        host_address: (base as u64).saturating_add(skip),
    }
}

impl Region {
    /// What is left without the first `skip` bytes.
    fn after(self, skip: u64) -> Result<Self, String> {
        Ok(Self {
            gpa: self.gpa.saturating_add(skip),
            len: self.len.checked_sub(skip).ok_or("the slot is too small")?,
            host_address: self.host_address.saturating_add(skip),
        })
    }
}

/// Regions of a slot as vm-memory sees them.
fn view(regions: &[Region]) -> Result<GuestMemoryMmap, String> {
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON;
    let view = |region: &Region| {
        let len = usize::try_from(region.len).map_err(|e| e.to_string())?;
        let address = region.host_address as *mut u8;
        // SAFETY: the range lies inside the mapping of GuestSlot, which outlives the view: both are
        // fields of one value and the view does not own (unmap) its memory.
        let mapped = unsafe { MmapRegion::build_raw(address, len, prot, flags) };
        let mapped = mapped.map_err(|e| e.to_string())?;
        GuestRegionMmap::new(mapped, GuestAddress(region.gpa))
            .ok_or_else(|| "address overflow".to_string())
    };
    let regions: Result<Vec<_>, String> = regions.iter().map(view).collect();
    GuestMemoryMmap::from_regions(regions?).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_cannot_reach_below_the_dma_window() {
        let slot = GuestSlot::new(64 << 20).unwrap();
        slot.write(0x1000, b"table").unwrap();
        assert!(slot.dma().write_slice(b"x", GuestAddress(0x1000)).is_err());
        assert!(
            slot.dma()
                .write_slice(b"x", GuestAddress(layout::DMA_START - 1))
                .is_err()
        );
        slot.dma()
            .write_slice(b"x", GuestAddress(layout::DMA_START))
            .unwrap();
        let mut seen = [0; 1];
        slot.read(layout::DMA_START, &mut seen).unwrap();
        assert_eq!(&seen, b"x");
    }

    #[test]
    fn populating_changes_nothing_and_goes_nowhere_else() {
        let slot = GuestSlot::new(64 << 20).unwrap();
        slot.write(0x5123, b"kept").unwrap();
        slot.populate(0x5123, 9000);
        slot.populate((64 << 20) - 1, 1 << 20);
        slot.populate(u64::MAX, u64::MAX);
        let mut seen = [0; 4];
        slot.read(0x5123, &mut seen).unwrap();
        assert_eq!(&seen, b"kept");
    }

    #[test]
    fn memory_goes_on_above_the_hole() {
        let hole = Hole {
            start: 0xc000_0000,
            end: 0x1_0000_0000,
        };
        let slot = GuestSlot::with_hole(4 << 30, hole).unwrap();
        let [low, high] = slot.regions() else {
            panic!("{:?}", slot.regions());
        };
        assert_eq!((low.gpa, low.len), (0, 0xc000_0000));
        assert_eq!((high.gpa, high.len), (0x1_0000_0000, 1 << 30));
        assert_eq!(high.host_address, low.host_address + low.len);
        for memory in [slot.all(), slot.dma()] {
            memory.write_slice(b"a", GuestAddress(0)).unwrap();
            memory.write_slice(b"b", GuestAddress(hole.end)).unwrap();
            for gpa in [hole.start, hole.end - 1, hole.end + (1 << 30)] {
                assert!(memory.write_slice(b"c", GuestAddress(gpa)).is_err());
            }
        }
        let small = GuestSlot::with_hole(64 << 20, hole).unwrap();
        assert_eq!(small.regions().len(), 1);
    }

    #[test]
    fn accesses_past_the_end_are_refused() {
        let slot = GuestSlot::new(64 << 20).unwrap();
        assert!(slot.write((64 << 20) - 1, b"ab").is_err());
        assert!(slot.read(u64::MAX, &mut [0; 2]).is_err());
        assert_eq!(slot.host_address() as u64 % layout::LARGE_PAGE_SIZE, 0);
    }
}
