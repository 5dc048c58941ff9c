//! Bitmaps that record writes, and will miss some.

use crate::{WriteError, zeroed};
use instar_qcow2::Header;
use instar_storage::StorageMut;

/// Flag: it misses what was written since it was saved.
const FLAG_IN_USE: u32 = 1 << 0;
/// Flag: it records writes.
const FLAG_AUTO: u32 = 1 << 1;
/// Bytes of a directory entry before what varies.
const FIXED_BYTES: usize = 24;
/// Where the flags are in an entry.
const FLAGS_AT: usize = 12;

/// Marks the bitmaps that record writes as in use; flushes if there are any.
///
/// # Errors
/// The store's; the directory makes no sense.
pub fn mark_in_use<S: StorageMut>(image: &S, header: &Header) -> Result<(), WriteError> {
    let Some(directory) = header.extensions.bitmaps else {
        return Ok(());
    };
    let start = directory.directory_offset.get();
    let mut bytes = zeroed(directory.directory_size)?;
    image.read_at(start, &mut bytes)?;
    let (mut at, mut marked) = (0_usize, false);
    while let Some(entry) = bytes.get(at..).filter(|rest| rest.len() >= FIXED_BYTES) {
        let flags = be32(entry, FLAGS_AT);
        if flags & FLAG_AUTO != 0 && flags & FLAG_IN_USE == 0 {
            let place = start
                .saturating_add(at as u64)
                .saturating_add(FLAGS_AT as u64);
            image.write_at(place, &(flags | FLAG_IN_USE).to_be_bytes())?;
            marked = true;
        }
        let name = be32(entry, 16) & 0xffff;
        let extra = be32(entry, 20);
        let varies = (name as usize).saturating_add(extra as usize);
        let len = FIXED_BYTES.saturating_add(varies).next_multiple_of(8);
        at = at.saturating_add(len);
    }
    if marked {
        image.flush()?;
    }
    Ok(())
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk::<4>());
    word.map_or(0, |word| u32::from_be_bytes(*word))
}
