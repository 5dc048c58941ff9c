//! Decompression of one cluster.

use alloc::boxed::Box;

use instar_layers::{CompressionType, Corrupt, Decompress};
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
use miniz_oxide::inflate::core::{DecompressorOxide, decompress};

use crate::zstd;

/// Decompresses clusters of both types.
///
/// Takes 11 KiB when it is made, and 0.1 MiB more with the first zstd cluster.
pub struct Decoder {
    inflate: Box<DecompressorOxide>,
    zstd: Option<zstd::Decoder>,
}

impl core::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that has decompressed nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inflate: Box::default(),
            zstd: None,
        }
    }

    /// Gets the memory that clusters of a type take, so that [`Decompress::decompress`] allocates nothing on
    /// x86-64. False without memory.
    #[must_use]
    pub fn prepare(&mut self, kind: CompressionType) -> bool {
        if kind == CompressionType::Zstd && self.zstd.is_none() {
            self.zstd = zstd::Decoder::new();
            return self.zstd.is_some();
        }
        true
    }

    /// Whether the deflate stream at the front of `input` fills `out`. It may go on or lack its end, but not be
    /// damaged before it would give more; QEMU was seen to hold it so, and not to mind distances beyond 4 KiB.
    fn inflate(&mut self, input: &[u8], out: &mut [u8]) -> bool {
        self.inflate.init();
        let flags = TINFL_FLAG_USING_NON_WRAPPING_OUTPUT_BUF;
        let (status, _, len) = decompress(&mut self.inflate, input, out, 0, flags);
        let sound = matches!(
            status,
            TINFLStatus::Done | TINFLStatus::HasMoreOutput | TINFLStatus::FailedCannotMakeProgress
        );
        sound && len == out.len()
    }
}

impl Decompress for Decoder {
    /// As the trait says; [`Corrupt`] also without memory for the first zstd cluster.
    fn decompress(
        &mut self,
        kind: CompressionType,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<(), Corrupt> {
        let filled = match kind {
            CompressionType::Zlib => self.inflate(input, out),
            CompressionType::Zstd => {
                let _ = self.prepare(kind);
                let decoder = self.zstd.as_mut();
                decoder.is_some_and(|decoder| decoder.decompress(input, out))
            }
        };
        if filled { Ok(()) } else { Err(Corrupt) }
    }
}
