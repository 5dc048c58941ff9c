//! The bitmaps of an image, read by a decoder of the tests' own.

/// A bitmap with its bits.
#[derive(Clone, PartialEq, Eq)]
pub struct Decoded {
    pub name: Vec<u8>,
    pub granularity_bits: u8,
    pub flags: u32,
    /// What is behind the last bit is zero.
    pub bits: Vec<u8>,
}

impl std::fmt::Debug for Decoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let set: u32 = self.bits.iter().map(|b| b.count_ones()).sum();
        let name = String::from_utf8_lossy(&self.name[..self.name.len().min(40)]).into_owned();
        let (bits, flags) = (self.granularity_bits, self.flags);
        write!(
            f,
            "{name}: 2^{bits} flags {flags}, {set} of {} bits",
            self.bits.len() * 8
        )
    }
}

/// Where the entry of a bitmap lies in the file, and its table.
pub struct Entry {
    pub at: usize,
    pub table: u64,
    pub table_size: u32,
    pub decoded: Decoded,
}

pub fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap())
}

pub fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// Where the data of the bitmaps extension is.
pub fn extension(bytes: &[u8]) -> Option<usize> {
    let mut at = match be32(bytes, 4) {
        2 => 72,
        _ => be32(bytes, 100) as usize,
    };
    loop {
        let (kind, len) = (be32(bytes, at), be32(bytes, at + 4) as usize);
        match kind {
            0 => return None,
            0x2385_2875 => return Some(at + 8),
            _ => at += 8 + len.next_multiple_of(8),
        }
    }
}

/// Every entry of the directory.
pub fn entries(bytes: &[u8]) -> Vec<Entry> {
    let Some(extension) = extension(bytes) else {
        return Vec::new();
    };
    let (count, mut at) = (be32(bytes, extension), be64(bytes, extension + 16) as usize);
    let mut found = Vec::new();
    for _ in 0..count {
        let name_len = u16::from_be_bytes([bytes[at + 18], bytes[at + 19]]) as usize;
        let (table, table_size) = (be64(bytes, at), be32(bytes, at + 8));
        let decoded = Decoded {
            name: bytes[at + 24..at + 24 + name_len].to_vec(),
            granularity_bits: bytes[at + 17],
            flags: be32(bytes, at + 12),
            bits: bits(bytes, table, table_size, bytes[at + 17]),
        };
        found.push(Entry {
            at,
            table,
            table_size,
            decoded,
        });
        at += (24 + name_len).next_multiple_of(8);
    }
    found
}

/// Every bitmap.
pub fn bitmaps(bytes: &[u8]) -> Vec<Decoded> {
    entries(bytes).into_iter().map(|e| e.decoded).collect()
}

fn bits(bytes: &[u8], table: u64, table_size: u32, granularity_bits: u8) -> Vec<u8> {
    let cluster = 1_usize << be32(bytes, 20);
    let mut bits = Vec::new();
    for index in 0..table_size as usize {
        let at = table as usize + 8 * index;
        // A table at the end of the file need not be there to its cluster's end.
        let entry = if at + 8 <= bytes.len() {
            be64(bytes, at)
        } else {
            0
        };
        let offset = (entry & 0x00ff_ffff_ffff_fe00) as usize;
        if offset == 0 {
            let fill = if entry & 1 == 1 { 0xff } else { 0 };
            bits.resize(bits.len() + cluster, fill);
        } else {
            let mut data = bytes.get(offset..).unwrap_or_default().to_vec();
            data.resize(cluster, 0);
            bits.extend(data);
        }
    }
    let disk = be64(bytes, 24) & !511;
    let count = disk.div_ceil(1 << granularity_bits) as usize;
    bits.truncate(count.div_ceil(8));
    if !count.is_multiple_of(8)
        && let Some(last) = bits.last_mut()
    {
        *last &= !(0xff << (count % 8));
    }
    bits
}
