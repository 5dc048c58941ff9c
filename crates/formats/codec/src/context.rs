//! Contexts of the C libraries that `build.rs` compiles.

use alloc::vec::Vec;
use core::ffi::c_void;
use core::ptr::NonNull;

/// A C function that makes a context in memory.
pub(crate) type Make = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
/// A C function that turns input into output; 0 for failure.
pub(crate) type Turn<R> =
    unsafe extern "C" fn(*mut c_void, *mut c_void, usize, *const c_void, usize) -> R;

/// A context of a C library, in memory of its own.
#[derive(Debug)]
pub(crate) struct Context {
    context: NonNull<c_void>,
    /// What the context lies in. Never touched by Rust again.
    _memory: Vec<u64>,
}

// SAFETY: a context is plain memory that it alone points to, and no thread's own; every use takes `&mut`.
unsafe impl Send for Context {}

impl Context {
    /// A context in `bytes` of memory; `None` without.
    pub(crate) fn new(bytes: usize, make: Make) -> Option<Self> {
        let mut memory: Vec<u64> = Vec::new();
        let words = bytes.div_ceil(size_of::<u64>());
        memory.try_reserve_exact(words).ok()?;
        memory.resize(words, 0);
        let bytes = words.checked_mul(size_of::<u64>())?;
        // SAFETY: the memory is `bytes` long, aligned to 8 as the libraries ask, and lives as long as the context; a
        // `Vec` that is never touched does not move its heap memory.
        let context = unsafe { make(memory.as_mut_ptr().cast(), bytes) };
        Some(Self {
            context: NonNull::new(context)?,
            _memory: memory,
        })
    }

    /// Turns `input` into the front of `out`.
    pub(crate) fn turn<R>(&mut self, turn: Turn<R>, input: &[u8], out: &mut [u8]) -> R {
        // SAFETY: the context is one of `turn`'s kind, as each `Context` is used with one pair of functions;
        // pointers and lengths are those of live slices that do not overlap.
        unsafe {
            turn(
                self.context.as_ptr(),
                out.as_mut_ptr().cast(),
                out.len(),
                input.as_ptr().cast(),
                input.len(),
            )
        }
    }
}
