//! Huffman codes of limited length. RFC 1951 §3.2.2 "Use of Huffman coding in the 'deflate' format".

/// Symbols of the largest alphabet, literals and lengths.
pub(super) const MAX_SYMBOLS: usize = 288;
/// Bits of the longest code of literals, lengths and distances.
pub(super) const MAX_BITS: usize = 15;

/// A code: for each symbol how many bits it has, and which.
#[derive(Clone, Debug)]
pub(super) struct Code<const N: usize> {
    /// Bits of each symbol's code word; 0 for a symbol that does not occur.
    pub(super) lens: [u8; N],
    /// The code words, reversed as they are written.
    words: [u16; N],
}

impl<const N: usize> Code<N> {
    /// The code words for given lengths, which must leave room for each other.
    pub(super) fn from_lens(lens: [u8; N]) -> Self {
        // First the words one bit shorter than the index, then the next free word of that length.
        let mut next = [0_u16; MAX_BITS + 2];
        for len in lens.iter().filter(|len| **len != 0) {
            if let Some(count) = next.get_mut(usize::from(*len) + 1) {
                *count += 1;
            }
        }
        let mut word = 0_u16;
        for count in &mut next {
            word = word.wrapping_add(*count).wrapping_shl(1);
            *count = word;
        }
        let mut words = [0_u16; N];
        for (len, place) in lens.iter().zip(&mut words) {
            let Some(next) = next.get_mut(usize::from(*len)).filter(|_| *len != 0) else {
                continue;
            };
            *place = next.reverse_bits().wrapping_shr(16 - u32::from(*len));
            *next = next.wrapping_add(1);
        }
        Self { lens, words }
    }

    /// The best code of at most `max_bits` bits for symbols that occur `counts` times.
    pub(super) fn best(counts: &[u32; N], max_bits: usize) -> Self {
        Self::from_lens(lengths(counts, max_bits))
    }

    /// Code word and length of a symbol.
    pub(super) fn word(&self, symbol: usize) -> (u64, u32) {
        let word = self.words.get(symbol).copied().unwrap_or(0);
        let len = self.lens.get(symbol).copied().unwrap_or(0);
        (word.into(), len.into())
    }

    /// Bits that symbols take which occur `counts` times.
    pub(super) fn cost(&self, counts: &[u32; N]) -> u32 {
        let each = self.lens.iter().zip(counts);
        each.map(|(len, count)| u32::from(*len) * count).sum()
    }
}

/// The lengths of an optimal prefix code, cut to `max_bits` if that is exceeded.
fn lengths<const N: usize>(counts: &[u32; N], max_bits: usize) -> [u8; N] {
    let mut lens = [0_u8; N];
    // Weight and symbol in one number, so that sorting is by weight.
    let mut leaves = [0_u64; MAX_SYMBOLS];
    let mut used = 0;
    let occurring = counts.iter().zip(0_u64..).filter(|(count, _)| **count != 0);
    for ((count, symbol), leaf) in occurring.zip(&mut leaves) {
        *leaf = u64::from(*count) << 16 | symbol;
        used += 1;
    }
    let leaves = leaves.get_mut(..used).unwrap_or_default();
    leaves.sort_unstable();
    let mut per_len = depths(leaves);
    limit(&mut per_len, max_bits);
    // The rarest symbols take the longest words.
    let mut symbols = leaves.iter().map(|leaf| (leaf & 0xffff) as usize);
    for (len, count) in per_len.iter().enumerate().rev() {
        for symbol in symbols.by_ref().take(*count as usize) {
            if let Some(place) = lens.get_mut(symbol) {
                *place = len as u8;
            }
        }
    }
    lens
}

/// Deepest leaf that [`depths`] counts on its own; deeper ones count as this deep.
const MAX_DEPTH: usize = 32;

/// How many leaves of the Huffman tree lie at each depth; `leaves` are sorted by weight.
fn depths(leaves: &[u64]) -> [u32; MAX_DEPTH] {
    let mut per_len = [0; MAX_DEPTH];
    if leaves.len() < 2 {
        per_len[1] = leaves.len() as u32;
        return per_len;
    }
    // Inner nodes come into being in the order of their weights: two queues suffice.
    let mut weights = [0_u64; MAX_SYMBOLS];
    let mut parent_of_inner = [0_u16; MAX_SYMBOLS];
    let mut leaf_children = [0_u8; MAX_SYMBOLS];
    let (mut leaf, mut inner) = (0_usize, 0_usize);
    let nodes = leaves.len() - 1;
    for node in 0..nodes {
        let (mut weight, mut own_leaves) = (0, 0);
        for _ in 0..2 {
            let next_leaf = leaves.get(leaf).map(|leaf| leaf >> 16);
            let next_inner = weights.get(inner).copied().filter(|_| inner < node);
            if let Some(light) = next_leaf
                && next_inner.is_none_or(|other| light <= other)
            {
                weight += light;
                own_leaves += 1;
                leaf += 1;
            } else {
                weight += next_inner.unwrap_or(0);
                if let Some(parent) = parent_of_inner.get_mut(inner) {
                    *parent = node as u16;
                }
                inner += 1;
            }
        }
        if let (Some(place), Some(children)) = (weights.get_mut(node), leaf_children.get_mut(node))
        {
            *place = weight;
            *children = own_leaves;
        }
    }
    // Parents come after their children, so depths follow from the root down. Weights serve as depths.
    for node in (0..nodes).rev() {
        let parent = parent_of_inner.get(node).copied().unwrap_or(0);
        let above = weights.get(usize::from(parent)).copied().unwrap_or(0);
        let depth = if node + 1 == nodes { 0 } else { above + 1 };
        if let Some(place) = weights.get_mut(node) {
            *place = depth;
        }
        let below = (depth as usize + 1).min(MAX_DEPTH - 1);
        let own = leaf_children.get(node).copied().unwrap_or(0);
        if let Some(count) = per_len.get_mut(below) {
            *count += u32::from(own);
        }
    }
    per_len
}

/// Makes no word longer than `max_bits`, with the code still complete.
fn limit(per_len: &mut [u32; MAX_DEPTH], max_bits: usize) {
    let (within, beyond) = per_len.split_at_mut(max_bits + 1);
    let cut: u32 = beyond.iter().sum();
    if cut == 0 {
        return;
    }
    beyond.fill(0);
    let Some((longest, shorter)) = within.split_last_mut() else {
        return;
    };
    *longest += cut;
    // In units of the longest word; a complete code takes 2^max_bits of them.
    let shares = shorter.iter().enumerate();
    let mut taken: u32 = shares.map(|(len, count)| count << (max_bits - len)).sum();
    taken += *longest;
    while taken > 1 << max_bits {
        // One of the longest leaves moves up beside a leaf that goes one level down.
        let Some(at) = shorter.iter().rposition(|count| *count != 0) else {
            return;
        };
        if let Some(count) = shorter.get_mut(at) {
            *count -= 1;
        }
        match shorter.get_mut(at + 1) {
            Some(below) => {
                *below += 2;
                *longest -= 1;
            }
            None => *longest += 1,
        }
        taken -= 1;
    }
}
