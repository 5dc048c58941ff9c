//! Decompression of one cluster.

use instar_layers::{CompressionType, Corrupt, Decompress};

use crate::{deflate, zstd};

/// Decompresses clusters of both types.
///
/// Takes memory with the first cluster of each type: 12 KiB for zlib, 0.1 MiB for zstd.
#[derive(Debug, Default)]
pub struct Decoder {
    zlib: Option<deflate::Decoder>,
    zstd: Option<zstd::Decoder>,
}

impl Decoder {
    /// A decoder that has decompressed nothing yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            zlib: None,
            zstd: None,
        }
    }

    /// Takes the memory for clusters of a type. False without memory, or if that type takes more with each cluster.
    #[must_use]
    pub fn prepare(&mut self, kind: CompressionType) -> bool {
        match kind {
            CompressionType::Zlib => {
                self.zlib = self.zlib.take().or_else(deflate::Decoder::new);
                self.zlib.is_some()
            }
            CompressionType::Zstd => {
                self.zstd = self.zstd.take().or_else(zstd::Decoder::new);
                self.zstd.is_some() && !zstd::ALLOCATES
            }
        }
    }

    /// As [`Decompress::decompress`] for a type that was prepared, without taking memory.
    ///
    /// # Errors
    /// As there, and for a few sound streams: [`Decompress::decompress`] knows.
    pub fn fill(
        &mut self,
        kind: CompressionType,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<(), Corrupt> {
        let filled = match kind {
            CompressionType::Zlib => self.zlib.as_mut().is_some_and(|d| d.fill(input, out)),
            CompressionType::Zstd => self.zstd.as_mut().is_some_and(|d| d.decompress(input, out)),
        };
        if filled { Ok(()) } else { Err(Corrupt) }
    }
}

impl Decompress for Decoder {
    /// As the trait says; [`Corrupt`] also without memory for the first cluster.
    ///
    /// A deflate stream may go on behind the cluster, and matches may reach back beyond 4 KiB; zstd frames may
    /// follow each other and be skippable, but must end at the cluster's end. QEMU was seen to hold it so.
    fn decompress(
        &mut self,
        kind: CompressionType,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<(), Corrupt> {
        let filled = match kind {
            CompressionType::Zlib => {
                self.zlib = self.zlib.take().or_else(deflate::Decoder::new);
                let decoder = self.zlib.as_mut();
                decoder.is_some_and(|decoder| decoder.decompress(input, out))
            }
            CompressionType::Zstd => {
                self.zstd = self.zstd.take().or_else(zstd::Decoder::new);
                let decoder = self.zstd.as_mut();
                decoder.is_some_and(|decoder| decoder.decompress(input, out))
            }
        };
        if filled { Ok(()) } else { Err(Corrupt) }
    }
}
