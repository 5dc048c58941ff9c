//! The heap: dlmalloc for what is small, and the kernel's own pages for what is large.
//!
//! The C library of the static program maps and unmaps memory for every few allocations, which took a fifth of the CPU time
//! of a short run. dlmalloc keeps what it has once been given, and clears what is to be zeros by writing it: a connection of the user
//! network would take half a megabyte for buffers that it hardly uses, and leave it behind. A large block is a mapping of
//! its own, which takes what is touched and goes with its end.

use rustix::mm::{MapFlags, MremapFlags, ProtFlags, mmap_anonymous, mremap, munmap};
use std::alloc::{GlobalAlloc, Layout};
use std::ptr::{copy_nonoverlapping, null_mut};

/// Bytes of the smallest large block.
const LARGE_BYTES: usize = 256 << 10;
/// Every mapping is aligned to so many bytes.
const PAGE_BYTES: usize = 4096;

/// All of the program's memory that is allocated.
pub struct Heap;

const fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE_BYTES && layout.align() <= PAGE_BYTES
}

/// Zeros, or null if there is no memory.
fn map(bytes: usize) -> *mut u8 {
    let access = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: a new mapping, at a place that the kernel chooses.
    let mapped = unsafe { mmap_anonymous(null_mut(), bytes, access, MapFlags::PRIVATE) };
    mapped.map_or(null_mut(), <*mut _>::cast)
}

// SAFETY: each block comes from and goes back to the same of the two, which its layout alone says: `is_large`. Both
// give blocks that are theirs alone, aligned as asked.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promises are the same.
        unsafe { dlmalloc::GlobalDlmalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promises are the same.
        unsafe { dlmalloc::GlobalDlmalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: a mapping of this length, which nobody uses any more. One that stays is memory lost, no more.
            let _ = unsafe { munmap(block.cast(), layout.size()) };
            return;
        }
        // SAFETY: the caller's promises are the same.
        unsafe { dlmalloc::GlobalDlmalloc.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // SAFETY: the caller promises a size that a layout may have.
        let wanted = unsafe { Layout::from_size_align_unchecked(bytes, layout.align()) };
        match (is_large(layout), is_large(wanted)) {
            // SAFETY: the caller's promises are the same.
            (false, false) => unsafe { dlmalloc::GlobalDlmalloc.realloc(block, layout, bytes) },
            // SAFETY: a mapping of this length, which is used at its new place only.
            (true, true) => unsafe {
                let moved = mremap(block.cast(), layout.size(), bytes, MremapFlags::MAYMOVE);
                moved.map_or(null_mut(), <*mut _>::cast)
            },
            // SAFETY: a new block beside the old one, whose bytes it takes as far as both go.
            _ => unsafe {
                let moved = self.alloc(wanted);
                if !moved.is_null() {
                    copy_nonoverlapping(block, moved, layout.size().min(bytes));
                    self.dealloc(block, layout);
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resident_kib() -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let figure = line.and_then(|line| line.split_whitespace().nth(1));
        figure.unwrap().parse().unwrap()
    }

    #[test]
    fn zeros_take_no_memory_until_they_are_touched() {
        let before = resident_kib();
        let zeros = std::hint::black_box(vec![0_u8; 256 << 20]);
        assert!(resident_kib() < before + (64 << 10));
        assert_eq!(zeros[200 << 20], 0);
    }

    #[test]
    fn a_block_keeps_its_bytes_whatever_it_becomes() {
        let sizes = [
            1,
            LARGE_BYTES - 1,
            LARGE_BYTES,
            LARGE_BYTES * 7 + 5,
            LARGE_BYTES + 1,
            LARGE_BYTES - 1,
            100,
        ];
        let mut bytes: Vec<u8> = Vec::new();
        for size in sizes {
            let kept = bytes.len().min(size);
            bytes.truncate(kept);
            bytes.shrink_to_fit();
            bytes.reserve_exact(size - kept);
            bytes.extend((kept..size).map(|at| u8::try_from(at % 251).unwrap()));
            assert!(bytes.capacity() >= size);
            for (at, byte) in bytes.iter().enumerate() {
                assert_eq!(usize::from(*byte), at % 251, "{size}");
            }
        }
    }

    #[test]
    fn blocks_are_aligned_as_asked() {
        for align in [1, 64, PAGE_BYTES, PAGE_BYTES * 4, 1 << 20] {
            for size in [1, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES * 3] {
                let layout = Layout::from_size_align(size, align).unwrap();
                // SAFETY: the block is written within its size, and freed once.
                unsafe {
                    let block = Heap.alloc_zeroed(layout);
                    assert_eq!(block.align_offset(align), 0);
                    assert_eq!((*block, *block.add(size - 1)), (0, 0));
                    *block.add(size - 1) = 1;
                    Heap.dealloc(block, layout);
                }
            }
        }
    }
}
