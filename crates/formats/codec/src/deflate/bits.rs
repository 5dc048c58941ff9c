//! Bits into a byte buffer, least significant first. RFC 1951 §3.1.1 "Packing into bytes".

/// Writes bits to a buffer that may be too short for them.
#[derive(Debug)]
pub(super) struct BitWriter<'a> {
    out: &'a mut [u8],
    /// Whole bytes written.
    len: usize,
    /// Bits not yet written, from the lowest.
    pending: u64,
    count: u32,
    full: bool,
}

impl<'a> BitWriter<'a> {
    /// An empty stream at the start of `out`.
    pub(super) const fn new(out: &'a mut [u8]) -> Self {
        Self {
            out,
            len: 0,
            pending: 0,
            count: 0,
            full: false,
        }
    }

    /// Whether something did not fit; what was written is then worthless.
    pub(super) const fn is_full(&self) -> bool {
        self.full
    }

    /// Appends the lowest `count` bits of `bits`, at most 56; the others are 0.
    pub(super) fn put(&mut self, bits: u64, count: u32) {
        self.pending |= bits.wrapping_shl(self.count);
        self.count += count;
        let whole = (self.count / 8) as usize;
        let end = self.len + 8;
        if let Some(place) = self.out.get_mut(self.len..end) {
            place.copy_from_slice(&self.pending.to_le_bytes());
            self.len += whole;
        } else {
            self.put_at_end(whole);
        }
        // 64 bits pending cannot be: less than 8 were, and at most 56 came.
        self.pending = self.pending.wrapping_shr(self.count & !7);
        self.count %= 8;
    }

    /// Appends `whole` pending bytes where less than 8 bytes are left.
    #[cold]
    fn put_at_end(&mut self, whole: usize) {
        for byte in self.pending.to_le_bytes().into_iter().take(whole) {
            self.put_byte(byte);
        }
    }

    fn put_byte(&mut self, byte: u8) {
        match self.out.get_mut(self.len) {
            Some(place) => {
                *place = byte;
                self.len += 1;
            }
            None => self.full = true,
        }
    }

    /// Bits to the next byte boundary.
    pub(super) const fn to_boundary(&self) -> u32 {
        (8 - self.count) % 8
    }

    /// Fills up to a byte boundary and appends bytes.
    pub(super) fn put_bytes(&mut self, bytes: &[u8]) {
        self.put(0, self.to_boundary());
        match self.out.get_mut(self.len..self.len + bytes.len()) {
            Some(place) => {
                place.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.full = true,
        }
    }

    /// Fills up to a byte boundary. Gives the bytes written, or nothing if the buffer was too short.
    pub(super) fn finish(mut self) -> Option<usize> {
        self.put(0, self.to_boundary());
        (!self.full).then_some(self.len)
    }
}
