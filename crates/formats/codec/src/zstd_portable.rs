//! Zstd by ruzstd, where no C is compiled. Its encoder knows one fast level and allocates for each frame.

use ruzstd::decoding::StreamingDecoder;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use ruzstd::io::Read;

/// See [`crate::Encoder::ALLOCATES`]; the decoder does as the encoder.
pub(crate) const ALLOCATES: bool = true;

/// Largest window that QEMU accepts of a frame.
const MAX_WINDOW_BYTES: u64 = (1 << 27) + 1;
/// Magic numbers of frames to skip, but for their lowest four bits. RFC 8878 §3.1.2.
const SKIPPABLE: u32 = 0x184d_2a50;

/// Makes frames.
#[derive(Debug)]
pub(crate) struct Encoder;

impl Encoder {
    /// Takes no memory.
    #[expect(clippy::unnecessary_wraps, reason = "the other encoder can fail")]
    pub(crate) const fn new(_cluster_bytes: usize) -> Option<Self> {
        Some(Self)
    }

    /// One frame at the front of `out`; `None` if it does not fit.
    pub(crate) fn compress(&mut self, input: &[u8], out: &mut [u8]) -> Option<usize> {
        let frame = compress_to_vec(input, CompressionLevel::Fastest);
        out.get_mut(..frame.len())?.copy_from_slice(&frame);
        Some(frame.len())
    }
}

/// Takes frames apart.
#[derive(Debug)]
pub(crate) struct Decoder;

impl Decoder {
    /// Takes no memory.
    #[expect(clippy::unnecessary_wraps, reason = "the other decoder can fail")]
    pub(crate) const fn new() -> Option<Self> {
        Some(Self)
    }

    /// Whether the frames at the front of `input` fill `out`, and the last of them exactly.
    pub(crate) fn decompress(&mut self, input: &[u8], out: &mut [u8]) -> bool {
        let mut rest = input;
        let mut filled = 0;
        while filled < out.len() {
            let place = out.get_mut(filled..).unwrap_or_default();
            let Some(len) = frame(&mut rest, place) else {
                return false;
            };
            filled = filled.saturating_add(len);
        }
        true
    }
}

/// Takes one frame off `input`, to the front of `out`; `None` if it is none or does not fit.
fn frame(input: &mut &[u8], out: &mut [u8]) -> Option<usize> {
    if let Some((magic, after)) = input.split_first_chunk()
        && u32::from_le_bytes(*magic) & !15 == SKIPPABLE
    {
        let (len, after) = after.split_first_chunk()?;
        let len = usize::try_from(u32::from_le_bytes(*len)).ok()?;
        *input = after.get(len..)?;
        return Some(0);
    }
    let mut decoder =
        StreamingDecoder::new_with_max_window_size(&mut *input, MAX_WINDOW_BYTES).ok()?;
    let mut filled = 0_usize;
    loop {
        // One byte more than there is room for shows a frame that is too long.
        let mut excess = [0];
        let place = match out.get_mut(filled..).filter(|place| !place.is_empty()) {
            Some(place) => place,
            None => &mut excess,
        };
        match decoder.read(place).ok()? {
            0 => return Some(filled),
            _ if filled >= out.len() => return None,
            len => filled = filled.checked_add(len)?,
        }
    }
}
