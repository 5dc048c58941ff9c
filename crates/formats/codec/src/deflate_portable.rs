//! Deflate by miniz_oxide, where no C is compiled. RFC 1951. Its matches reach back up to 32 KiB, which QEMU reads.

use alloc::boxed::Box;

use miniz_oxide::deflate::core::{
    CompressorOxide, TDEFLFlush, TDEFLStatus, compress, create_comp_flags_from_zip_params,
};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

/// What zlib's level 6 is compared with.
const LEVEL: i32 = 6;
/// Streams without zlib's header.
const RAW: i32 = -15;

/// Makes streams.
pub(crate) struct Encoder(Box<CompressorOxide>);

impl core::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// Takes 0.3 MiB.
    #[expect(clippy::unnecessary_wraps, reason = "the other encoder can fail")]
    pub(crate) fn new() -> Option<Self> {
        let flags = create_comp_flags_from_zip_params(LEVEL, RAW, 0);
        Some(Self(Box::new(CompressorOxide::new(flags))))
    }

    /// One stream at the front of `out`; `None` if it does not fit.
    pub(crate) fn compress(&mut self, input: &[u8], out: &mut [u8]) -> Option<usize> {
        self.0.reset();
        let (status, _, len) = compress(&mut self.0, input, out, TDEFLFlush::Finish);
        (status == TDEFLStatus::Done).then_some(len)
    }
}

/// Takes streams apart.
pub(crate) struct Decoder(Box<DecompressorOxide>);

impl core::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// Takes 11 KiB.
    #[expect(clippy::unnecessary_wraps, reason = "the other decoder can fail")]
    pub(crate) fn new() -> Option<Self> {
        Some(Self(Box::default()))
    }

    /// As [`Self::decompress`], which takes no memory.
    pub(crate) fn fill(&mut self, input: &[u8], out: &mut [u8]) -> bool {
        self.decompress(input, out)
    }

    /// Whether the stream at the front of `input` fills `out`. It may go on behind it.
    pub(crate) fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> bool {
        self.0.init();
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, _, len) = decompress(&mut self.0, input, out, 0, flags);
        let sound = matches!(
            status,
            TINFLStatus::Done | TINFLStatus::HasMoreOutput | TINFLStatus::FailedCannotMakeProgress
        );
        sound && len == out.len()
    }
}
