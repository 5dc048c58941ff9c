//! Zstd by the C library that `build.rs` compiles.

use core::ffi::{c_int, c_void};

use crate::context::Context;

/// See [`crate::Encoder::ALLOCATES`]; the decoder does as the encoder.
pub(crate) const ALLOCATES: bool = false;

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
