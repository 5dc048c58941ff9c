//! Runs of bits: a stretch of the bits of a bitmap, into which bits of another granularity are merged.
//!
//! Bit n of a bitmap is bit n mod 8, counted from the lowest, of its byte n / 8: qcow2 "Bitmap data".

/// A stretch of the bits of the bitmap that is merged into.
#[derive(Debug)]
pub(crate) struct Span<'b> {
    /// The bits; their bytes are whole.
    pub(crate) bytes: &'b mut [u8],
    /// The number of the first of them, a multiple of 8.
    pub(crate) first: u64,
    /// How many they are.
    pub(crate) count: u64,
    /// Logarithm of their granularity.
    pub(crate) granularity_bits: u8,
    /// Bytes of the disk.
    pub(crate) disk_bytes: u64,
}

/// `n << by`, at most 2^64 - 1.
fn scaled(n: u64, by: u8) -> u64 {
    n.saturating_mul(1_u64.checked_shl(by.into()).unwrap_or(u64::MAX))
}

/// `n >> by`, rounded up.
fn unscaled_up(n: u64, by: u8) -> u64 {
    n.div_ceil(1_u64.checked_shl(by.into()).unwrap_or(u64::MAX))
}

impl Span<'_> {
    /// The first and one past the last bit of a bitmap of granularity `1 << bits` that stand for what these
    /// bits stand for.
    pub(crate) fn covered(&self, bits: u8) -> (u64, u64) {
        let start = scaled(self.first, self.granularity_bits);
        let end = scaled(self.first.saturating_add(self.count), self.granularity_bits);
        let first = start.checked_shr(bits.into()).unwrap_or(0);
        (first, unscaled_up(end.min(self.disk_bytes), bits))
    }

    /// Sets every bit that stands for a byte that bits `from..to` of granularity `1 << bits` stand for.
    pub(crate) fn set(&mut self, from: u64, to: u64, bits: u8) {
        if from >= to {
            return;
        }
        let start = scaled(from, bits);
        let end = scaled(to, bits).min(self.disk_bytes);
        let low = start.checked_shr(self.granularity_bits.into()).unwrap_or(0);
        let high = unscaled_up(end, self.granularity_bits);
        let low = low.max(self.first).saturating_sub(self.first);
        let high = high.saturating_sub(self.first).min(self.count);
        set_range(self.bytes, low, high);
    }

    /// Merges bits `from..to` of a bitmap of granularity `1 << bits`, of which `piece` holds those from
    /// `piece_first` on; `from` and `piece_first` are multiples of 8 where granularities are equal.
    pub(crate) fn merge(&mut self, piece: &[u8], piece_first: u64, from: u64, to: u64, bits: u8) {
        if bits == self.granularity_bits {
            self.merge_bytes(piece, piece_first, from, to);
            return;
        }
        let end = to.saturating_sub(piece_first);
        let mut at = from.saturating_sub(piece_first);
        loop {
            let start = find(piece, at, end, true);
            if start >= end {
                return;
            }
            at = find(piece, start, end, false);
            let first = piece_first.saturating_add(start);
            self.set(first, piece_first.saturating_add(at), bits);
        }
    }

    fn merge_bytes(&mut self, piece: &[u8], piece_first: u64, from: u64, to: u64) {
        let index = |bit: u64| usize::try_from(bit / 8).unwrap_or(usize::MAX);
        let to_bytes = self.bytes.get_mut(index(from.saturating_sub(self.first))..);
        let start = index(from.saturating_sub(piece_first));
        let end = index(to.saturating_sub(piece_first).saturating_add(7)).min(piece.len());
        let from_bytes = piece.get(start..end);
        let (Some(to_bytes), Some(from_bytes)) = (to_bytes, from_bytes) else {
            return;
        };
        let pairs = to_bytes.iter_mut().zip(from_bytes);
        pairs.for_each(|(to, from)| *to |= *from);
    }

    /// Clears what is behind the last bit.
    pub(crate) fn clear_tail(&mut self) {
        let whole = usize::try_from(self.count / 8).unwrap_or(usize::MAX);
        let Some(tail) = self.bytes.get_mut(whole..) else {
            return;
        };
        let rest = u32::try_from(self.count % 8).unwrap_or(0);
        if let Some((first, others)) = tail.split_first_mut() {
            *first &= !(0xff_u8.checked_shl(rest).unwrap_or(0));
            others.fill(0);
        }
    }
}

/// The first bit of `from..end` that is set, or clear if `set` is false; `end` if there is none.
fn find(bytes: &[u8], from: u64, end: u64, set: bool) -> u64 {
    let mut at = from;
    while at < end {
        let index = usize::try_from(at / 8).unwrap_or(usize::MAX);
        let Some(rest) = bytes.get(index..).filter(|rest| !rest.is_empty()) else {
            return end;
        };
        let mut word = [0; 8];
        word.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
        let word = u64::from_le_bytes(word);
        let skipped = u32::try_from(at % 8).unwrap_or(0);
        let word = if set { word } else { !word } >> skipped;
        if word != 0 {
            return at.saturating_add(word.trailing_zeros().into()).min(end);
        }
        at = at.saturating_add(64_u64.saturating_sub(skipped.into()));
    }
    end
}

/// Sets bits `low..high`.
fn set_range(bytes: &mut [u8], low: u64, high: u64) {
    if low >= high {
        return;
    }
    let index = |bit: u64| usize::try_from(bit / 8).unwrap_or(usize::MAX);
    let shift = |bit: u64| u32::try_from(bit % 8).unwrap_or(0);
    let (first, last) = (index(low), index(high));
    let low_mask = 0xff_u8.checked_shl(shift(low)).unwrap_or(0);
    let high_mask = !(0xff_u8.checked_shl(shift(high)).unwrap_or(0));
    if first == last {
        if let Some(byte) = bytes.get_mut(first) {
            *byte |= low_mask & high_mask;
        }
        return;
    }
    if let Some(byte) = bytes.get_mut(first) {
        *byte |= low_mask;
    }
    if let Some(whole) = bytes.get_mut(first.saturating_add(1)..last) {
        whole.fill(0xff);
    }
    if let (true, Some(byte)) = (high_mask != 0, bytes.get_mut(last)) {
        *byte |= high_mask;
    }
}

#[cfg(test)]
mod tests;
