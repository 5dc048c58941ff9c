//! Deflate by the C library that `build.rs` compiles. RFC 1951.

use alloc::vec::Vec;
use core::ffi::c_void;

use crate::context::Context;

// c/deflate.c, c/inflate.c
unsafe extern "C" {
    safe fn instar_deflate_encoder_bytes() -> usize;
    fn instar_deflate_encoder(memory: *mut c_void, bytes: usize) -> *mut c_void;
    fn instar_deflate_compress(
        context: *mut c_void,
        out: *mut c_void,
        out_bytes: usize,
        input: *const c_void,
        input_bytes: usize,
    ) -> usize;
    safe fn instar_inflate_decoder_bytes() -> usize;
    fn instar_inflate_decoder(memory: *mut c_void, bytes: usize) -> *mut c_void;
    fn instar_inflate(
        context: *mut c_void,
        out: *mut c_void,
        out_bytes: usize,
        input: *const c_void,
        input_bytes: usize,
    ) -> usize;
}

/// Most bytes that one symbol or one stored block of a stream stands for.
const LONGEST_ITEM: usize = 65_535;

/// Makes streams whose matches reach back at most 4 KiB.
#[derive(Debug)]
pub(crate) struct Encoder(Context);

impl Encoder {
    /// `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        let bytes = instar_deflate_encoder_bytes();
        Context::new(bytes, instar_deflate_encoder).map(Self)
    }

    /// One stream at the front of `out`; `None` if it does not fit.
    pub(crate) fn compress(&mut self, input: &[u8], out: &mut [u8]) -> Option<usize> {
        let len = self.0.turn(instar_deflate_compress, input, out);
        (len != 0).then_some(len)
    }
}

/// Takes streams apart.
#[derive(Debug)]
pub(crate) struct Decoder(Context);

impl Decoder {
    /// `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        let bytes = instar_inflate_decoder_bytes();
        Context::new(bytes, instar_inflate_decoder).map(Self)
    }

    /// As [`Self::decompress`], without memory: false also if a symbol goes on behind `out`.
    pub(crate) fn fill(&mut self, input: &[u8], out: &mut [u8]) -> bool {
        self.0.turn(instar_inflate, input, out) == out.len()
    }

    /// Whether the stream at the front of `input` fills `out`. It may go on behind it.
    pub(crate) fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> bool {
        let len = self.0.turn(instar_inflate, input, out);
        if len <= out.len() {
            return len == out.len();
        }
        // No sound image has this: the last symbol gives bytes on both sides of the end.
        let mut more = Vec::new();
        let room = out.len().saturating_add(LONGEST_ITEM);
        if more.try_reserve_exact(room).is_err() {
            return false;
        }
        more.resize(room, 0);
        let len = self.0.turn(instar_inflate, input, &mut more);
        let Some(filled) = more.get(..out.len()).filter(|all| len >= all.len()) else {
            return false;
        };
        out.copy_from_slice(filled);
        true
    }
}
