//! Changes of a disk that the guest does to a real one and the host to one in memory.

use crate::Hash;
use alloc::vec;
use alloc::vec::Vec;
use instar_storage::{Reserve, StorageError, StorageMut, Write};

/// Changes that [`change`] makes.
const ROUNDS: usize = 200;
/// About how long the disk gets, in bytes.
const LEN: u64 = 8 << 20;
/// Least length of a disk that keeps its length: no change is longer than half of it.
pub const FIXED_LEN: u64 = 2 * LEN;

/// Bit of the seed: the disk, of [`FIXED_LEN`] or more, keeps its length.
pub const SEED_FIXED: u64 = 1 << 63;

/// Changes `disk` in all ways, at random places that follow from `seed`, and returns the hash of what it
/// reads in between. Two disks that were equal before are equal after it.
///
/// # Errors
/// The first error of the disk.
pub fn change<S: StorageMut>(disk: &S, seed: u64) -> Result<u64, StorageError> {
    let mut random = Random(seed);
    let mut hash = Hash::default();
    let mut bytes = vec![0; 3 << 20];
    for round in 0..ROUNDS {
        let (offset, len) = (random.below(LEN), random.below(200_000));
        match random.below(if seed & SEED_FIXED == 0 { 16 } else { 12 }) {
            0..6 => disk.write_at(offset, random.fill(&mut bytes, len))?,
            6..9 => batch(disk, &mut random, &mut bytes, offset)?,
            9 => disk.write_at(offset, random.fill(&mut bytes, 3 << 20))?,
            10 => disk.write_zeroes(offset, len)?,
            11 => {
                // What is discarded may be anything: it is written over.
                disk.discard(offset, len)?;
                disk.write_at(offset, random.fill(&mut bytes, len))?;
            }
            12 => disk.set_len(offset)?,
            13 => disk.allocate(offset, len, Reserve::Blocks)?,
            14 => disk.allocate(disk.len_bytes(), len, Reserve::WrittenZeros)?,
            _ => disk.write_at(offset, b"a constant, which devices cannot reach")?,
        }
        if round % 10 == 0 {
            disk.flush()?;
        }
        let read = bytes.get_mut(..50_000).unwrap_or_default();
        disk.read_at(random.below(LEN), read)?;
        hash.add(read);
        hash.add(&disk.len_bytes().to_le_bytes());
    }
    disk.flush()?;
    Ok(hash.0)
}

/// Many small writes at once, apart from each other.
fn batch<S: StorageMut>(
    disk: &S,
    random: &mut Random,
    bytes: &mut [u8],
    offset: u64,
) -> Result<(), StorageError> {
    let step = random.below(5000).saturating_add(1);
    let all = random.fill(bytes, step.saturating_mul(random.clone().below(200)));
    let parts = all.chunks(usize::try_from(step).unwrap_or(1)).zip(0_u64..);
    let writes: Vec<_> = parts
        .map(|(buf, index)| Write {
            offset: offset.saturating_add(index.saturating_mul(step).saturating_mul(2)),
            buf,
        })
        .collect();
    disk.write_batch(&writes)
}

/// Numbers that follow from a seed.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 20).checked_rem(limit).unwrap_or(0)
    }

    /// The first `len` bytes of `bytes`, newly filled.
    fn fill<'a>(&mut self, bytes: &'a mut [u8], len: u64) -> &'a [u8] {
        let len = usize::try_from(len).unwrap_or(0).min(bytes.len());
        let part = bytes.get_mut(..len).unwrap_or_default();
        for chunk in part.chunks_mut(8) {
            let word = self.below(u64::MAX).to_le_bytes();
            chunk.copy_from_slice(word.get(..chunk.len()).unwrap_or_default());
        }
        part
    }
}
