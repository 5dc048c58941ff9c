//! Zstd by the C library that `build.rs` compiles.

use alloc::vec::Vec;
use core::ffi::{c_int, c_void};
use core::ptr::NonNull;

/// See [`crate::Encoder::ALLOCATES`].
pub(crate) const ENCODER_ALLOCATES: bool = false;

// c/codec.c
unsafe extern "C" {
    safe fn instar_zstd_encoder_bytes(cluster_bytes: usize) -> usize;
    fn instar_zstd_encoder(memory: *mut c_void, bytes: usize) -> *mut c_void;
    fn instar_zstd_compress(
        context: *mut c_void,
        out: *mut c_void,
        out_bytes: usize,
        input: *const c_void,
        input_bytes: usize,
    ) -> usize;
    safe fn instar_zstd_decoder_bytes() -> usize;
    fn instar_zstd_decoder(memory: *mut c_void, bytes: usize) -> *mut c_void;
    fn instar_zstd_decompress(
        context: *mut c_void,
        out: *mut c_void,
        out_bytes: usize,
        input: *const c_void,
        input_bytes: usize,
    ) -> c_int;
}

/// A C function that makes a context in memory.
type Make = unsafe extern "C" fn(*mut c_void, usize) -> *mut c_void;
/// A C function that turns input into output; 0 for failure.
type Turn<R> = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, *const c_void, usize) -> R;

/// A context of the C library, in memory of its own.
#[derive(Debug)]
struct Context {
    context: NonNull<c_void>,
    /// What the context lies in. Never touched by Rust again.
    _memory: Vec<u64>,
}

// SAFETY: a context is plain memory that it alone points to, and no thread's own; every use takes `&mut`.
unsafe impl Send for Context {}

impl Context {
    fn new(bytes: usize, make: Make) -> Option<Self> {
        let mut memory: Vec<u64> = Vec::new();
        let words = bytes.div_ceil(size_of::<u64>());
        memory.try_reserve_exact(words).ok()?;
        memory.resize(words, 0);
        let bytes = words.checked_mul(size_of::<u64>())?;
        // SAFETY: the memory is `bytes` long, aligned to 8 as zstd asks, and lives as long as the context; a `Vec` that is
        // never touched does not move its heap memory.
        let context = unsafe { make(memory.as_mut_ptr().cast(), bytes) };
        Some(Self {
            context: NonNull::new(context)?,
            _memory: memory,
        })
    }

    fn turn<R>(&mut self, turn: Turn<R>, input: &[u8], out: &mut [u8]) -> R {
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

/// Makes frames.
#[derive(Debug)]
pub(crate) struct Encoder(Context);

impl Encoder {
    /// For inputs of at most `cluster_bytes`; `None` without memory.
    pub(crate) fn new(cluster_bytes: usize) -> Option<Self> {
        let bytes = instar_zstd_encoder_bytes(cluster_bytes);
        Context::new(bytes, instar_zstd_encoder).map(Self)
    }

    /// One frame at the front of `out`; `None` if it does not fit.
    pub(crate) fn compress(&mut self, input: &[u8], out: &mut [u8]) -> Option<usize> {
        let len = self.0.turn(instar_zstd_compress, input, out);
        (len != 0).then_some(len)
    }
}

/// Takes frames apart.
#[derive(Debug)]
pub(crate) struct Decoder(Context);

impl Decoder {
    /// `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        Context::new(instar_zstd_decoder_bytes(), instar_zstd_decoder).map(Self)
    }

    /// Whether the frames at the front of `input` fill `out`, and the last of them exactly.
    pub(crate) fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> bool {
        self.0.turn(instar_zstd_decompress, input, out) != 0
    }
}
