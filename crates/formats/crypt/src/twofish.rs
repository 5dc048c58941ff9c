//! Twofish with tables. B. Schneier et al., "Twofish: A 128-Bit Block Cipher", 1998, section 4.
//!
//! RustCrypto's `twofish` computes its key-dependent S-boxes and the MDS matrix anew for each byte, about 2 MB/s;
//! here they are four tables of 4 KiB in all, made once for a key ("Full Keying", section 7.2). Tests compare the two.
#![expect(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    reason = "tables of 256 are indexed by bytes, the others by constants; offsets are below 40"
)]

use cipher::consts::{U1, U16, U32};
use cipher::{
    Block, BlockCipherDecBackend, BlockCipherDecClosure, BlockCipherDecrypt, BlockCipherEncBackend,
    BlockCipherEncClosure, BlockCipherEncrypt, BlockSizeUser, InOut, InvalidLength, Key, KeyInit,
    KeySizeUser, ParBlocksSizeUser,
};
use zeroize::Zeroize;

/// "4.3.5 The Permutations q0 and q1": the four 4-bit permutations of each.
const NIBBLES: [[[u8; 16]; 4]; 2] = [
    [
        [8, 1, 7, 13, 6, 15, 3, 2, 0, 11, 5, 9, 14, 12, 10, 4],
        [14, 12, 11, 8, 1, 2, 3, 5, 15, 4, 10, 6, 7, 0, 9, 13],
        [11, 10, 5, 14, 6, 13, 9, 0, 12, 8, 15, 3, 2, 4, 7, 1],
        [13, 7, 15, 4, 1, 2, 6, 14, 9, 11, 3, 0, 8, 5, 12, 10],
    ],
    [
        [2, 8, 11, 13, 15, 7, 6, 14, 3, 1, 9, 4, 0, 10, 12, 5],
        [1, 14, 2, 11, 4, 12, 3, 7, 6, 13, 10, 5, 15, 9, 0, 8],
        [4, 12, 7, 5, 1, 6, 9, 10, 0, 14, 13, 8, 2, 11, 3, 15],
        [11, 9, 5, 1, 12, 3, 13, 14, 6, 4, 7, 15, 2, 0, 8, 10],
    ],
];
/// "4.3.2 The Function h": which of q0 and q1 each byte passes, from the first that a 256-bit key has.
const ORDER: [[usize; 5]; 4] = [
    [1, 1, 0, 0, 1],
    [0, 1, 1, 0, 0],
    [0, 0, 0, 1, 1],
    [1, 0, 1, 1, 0],
];
/// "4.3.2 The Function h": the columns of the matrix MDS, the first row in the low byte.
const MDS: [[u8; 4]; 4] = [
    [0x01, 0x5b, 0xef, 0xef],
    [0xef, 0xef, 0x5b, 0x01],
    [0x5b, 0xef, 0x01, 0xef],
    [0x5b, 0x01, 0xef, 0x5b],
];
/// "4.3.1 Additional Key Lengths" and before: the matrix RS.
const RS: [[u8; 8]; 4] = [
    [0x01, 0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e],
    [0xa4, 0x56, 0x82, 0xf3, 0x1e, 0xc6, 0x68, 0xe5],
    [0x02, 0xa1, 0xfc, 0xc1, 0x47, 0xae, 0x3d, 0x19],
    [0xa4, 0x55, 0x87, 0x5a, 0x58, 0xdb, 0x9e, 0x03],
];
/// x^8 + x^6 + x^5 + x^3 + 1, without x^8.
const MDS_POLYNOMIAL: u8 = 0x69;
/// x^8 + x^6 + x^3 + x^2 + 1, without x^8.
const RS_POLYNOMIAL: u8 = 0x4d;
/// q0 and q1.
static Q: [[u8; 256]; 2] = [permutation(&NIBBLES[0]), permutation(&NIBBLES[1])];

const fn permutation(nibbles: &[[u8; 16]; 4]) -> [u8; 256] {
    let mut out = [0; 256];
    let mut x = 0_u8;
    loop {
        let (mut a, mut b) = (x >> 4, x & 15);
        let mut half = 0;
        while half < 2 {
            let sum = a ^ b;
            let turned = (a ^ (b >> 1) ^ (b << 3) ^ (a << 3)) & 15;
            a = nibbles[2 * half][sum as usize];
            b = nibbles[2 * half + 1][turned as usize];
            half += 1;
        }
        out[x as usize] = b << 4 | a;
        if x == 255 {
            return out;
        }
        x += 1;
    }
}

/// The product of two polynomials over GF(2), modulo one.
const fn product(mut a: u8, mut b: u8, polynomial: u8) -> u8 {
    let mut out = 0;
    while a > 0 {
        if a & 1 == 1 {
            out ^= b;
        }
        b = (b << 1) ^ if b & 0x80 == 0 { 0 } else { polynomial };
        a >>= 1;
    }
    out
}

/// Byte `lane` of the function h, with its part of the product with MDS; `words` in the order of their use.
fn h_lane(lane: usize, x: u8, words: &[[u8; 4]]) -> u32 {
    let order = &ORDER[lane][4 - words.len()..];
    let mut y = Q[order[0]][usize::from(x)];
    for (word, q) in words.iter().zip(&order[1..]) {
        y = Q[*q][usize::from(y ^ word[lane])];
    }
    u32::from_le_bytes(MDS[lane].map(|factor| product(factor, y, MDS_POLYNOMIAL)))
}

/// The words S: the product of the key with the matrix RS.
fn s_words(key: &[u8]) -> [[u8; 4]; 4] {
    let mut s = [[0; 4]; 4];
    for (word, bytes) in s.iter_mut().zip(key.chunks_exact(8)) {
        *word = RS.map(|row| {
            let products = row
                .iter()
                .zip(bytes)
                .map(|(a, b)| product(*a, *b, RS_POLYNOMIAL));
            products.fold(0, |sum, product| sum ^ product)
        });
    }
    s
}

/// A key, expanded.
#[derive(Clone)]
pub(crate) struct Twofish {
    subkeys: [u32; 40],
    /// The function g, a table for each byte.
    g: [[u32; 256]; 4],
}

impl Twofish {
    /// From a key of 16, 24 or 32 bytes.
    fn expanded(key: &[u8]) -> Self {
        let mut made = Self {
            subkeys: [0; 40],
            g: [[0; 256]; 4],
        };
        let (words, _) = key.as_chunks::<4>();
        let mut used = [[[0; 4]; 4]; 2];
        let count = words.len() / 2;
        // "4.3.3 The Expanded Key Words K": even words, odd words, the last first.
        for (index, pair) in words.chunks_exact(2).rev().enumerate() {
            used[0][index] = pair[0];
            used[1][index] = pair[1];
        }
        let h = |x: u8, words: &[[u8; 4]]| (0..4).fold(0, |sum, lane| sum ^ h_lane(lane, x, words));
        for (pair, x) in made.subkeys.chunks_exact_mut(2).zip((0_u8..).step_by(2)) {
            let a = h(x, &used[0][..count]);
            let b = h(x + 1, &used[1][..count]).rotate_left(8);
            pair[0] = a.wrapping_add(b);
            pair[1] = pair[0].wrapping_add(b).rotate_left(9);
        }
        let mut s = s_words(key);
        for (lane, table) in made.g.iter_mut().enumerate() {
            for (entry, x) in table.iter_mut().zip(0_u8..=255) {
                *entry = h_lane(lane, x, &s[..count]);
            }
        }
        used.iter_mut()
            .for_each(|words| words.as_flattened_mut().zeroize());
        s.as_flattened_mut().zeroize();
        made
    }

    fn g(&self, x: u32) -> u32 {
        let [a, b, c, d] = x.to_le_bytes().map(usize::from);
        self.g[0][a] ^ self.g[1][b] ^ self.g[2][c] ^ self.g[3][d]
    }

    /// "4.2 The Function F" of round `round`.
    fn f(&self, round: usize, a: u32, b: u32) -> (u32, u32) {
        let (t0, t1) = (self.g(a), self.g(b.rotate_left(8)));
        let sum = t0.wrapping_add(t1);
        let keys = &self.subkeys[8 + 2 * round..];
        (
            sum.wrapping_add(keys[0]),
            sum.wrapping_add(t1).wrapping_add(keys[1]),
        )
    }

    fn whitened(&self, words: [u32; 4], keys: usize) -> [u32; 4] {
        let mut out = words;
        for (word, key) in out.iter_mut().zip(&self.subkeys[keys..]) {
            *word ^= key;
        }
        out
    }
}

fn load(block: &Block<Twofish>) -> [u32; 4] {
    let (words, _) = block.as_slice().as_chunks::<4>();
    [words[0], words[1], words[2], words[3]].map(u32::from_le_bytes)
}

fn store(words: [u32; 4], block: &mut Block<Twofish>) {
    let (places, _) = block.as_mut_slice().as_chunks_mut::<4>();
    for (place, word) in places.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
}

impl BlockCipherEncBackend for Twofish {
    fn encrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let [mut a, mut b, mut c, mut d] = self.whitened(load(block.get_in()), 0);
        for round in 0..16 {
            let (f0, f1) = self.f(round, a, b);
            (a, b, c, d) = ((c ^ f0).rotate_right(1), d.rotate_left(1) ^ f1, a, b);
        }
        store(self.whitened([c, d, a, b], 4), block.get_out());
    }
}

impl BlockCipherDecBackend for Twofish {
    fn decrypt_block(&self, mut block: InOut<'_, '_, Block<Self>>) {
        let [mut c, mut d, mut a, mut b] = self.whitened(load(block.get_in()), 4);
        for round in (0..16).rev() {
            let (f0, f1) = self.f(round, c, d);
            (a, b, c, d) = (c, d, a.rotate_left(1) ^ f0, (b ^ f1).rotate_right(1));
        }
        store(self.whitened([a, b, c, d], 0), block.get_out());
    }
}

impl BlockCipherEncrypt for Twofish {
    fn encrypt_with_backend(&self, f: impl BlockCipherEncClosure<BlockSize = U16>) {
        f.call(self);
    }
}

impl BlockCipherDecrypt for Twofish {
    fn decrypt_with_backend(&self, f: impl BlockCipherDecClosure<BlockSize = U16>) {
        f.call(self);
    }
}

impl KeySizeUser for Twofish {
    type KeySize = U32;
}

impl BlockSizeUser for Twofish {
    type BlockSize = U16;
}

impl ParBlocksSizeUser for Twofish {
    type ParBlocksSize = U1;
}

impl KeyInit for Twofish {
    fn new(key: &Key<Self>) -> Self {
        Self::expanded(key)
    }

    /// A key of 16, 24 or 32 bytes.
    fn new_from_slice(key: &[u8]) -> Result<Self, InvalidLength> {
        if !matches!(key.len(), 16 | 24 | 32) {
            return Err(InvalidLength);
        }
        Ok(Self::expanded(key))
    }
}

impl Drop for Twofish {
    fn drop(&mut self) {
        self.subkeys.zeroize();
        self.g.as_flattened_mut().zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tables_give_what_the_reference_gives(
            key in any::<[u8; 32]>(),
            bytes in prop_oneof![Just(16_usize), Just(24), Just(32)],
            plain in any::<[u8; 16]>(),
        ) {
            let ours = Twofish::new_from_slice(&key[..bytes]).unwrap();
            let reference = twofish::Twofish::new_from_slice(&key[..bytes]).unwrap();
            let (mut a, mut b) = (Block::<Twofish>::from(plain), Block::<Twofish>::from(plain));
            ours.encrypt_blocks(core::slice::from_mut(&mut a));
            reference.encrypt_blocks(core::slice::from_mut(&mut b));
            prop_assert_eq!(a, b);
            ours.decrypt_blocks(core::slice::from_mut(&mut a));
            prop_assert_eq!(a.0, plain);
        }
    }
}
