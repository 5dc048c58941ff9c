//! The secret region: passwords on their way to the guest, and nowhere else.
//!
//! At [`crate::layout::SECRETS`], only if [`crate::boot::BootPage::secrets`] is not zero: a
//! [`SecretHeader`], then as many [`SecretEntry`] as it says, then the bytes that they name. The host writes it
//! before the first instruction and overwrites it at the end; the guest copies it once and overwrites it.

use crate::layout::SECRETS;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// First word of the secret region.
pub const SECRET_MAGIC: u32 = 0x5443_4553;
/// Most secrets of one run.
pub const MAX_SECRETS: usize = 32;
/// Longest secret in bytes.
pub const MAX_SECRET_BYTES: usize = 4096;

wire_enum! {
    /// What a secret is used for.
    pub enum SecretRole: u32 {
        /// It opens the image that is there.
        Open = 1,
        /// It will open what is made: a new image, or a new key slot.
        New = 2,
        /// It is to open the image no longer: the key slots that it opens are erased.
        Old = 3,
    }
}

wire_struct! {
    /// Starts the secret region.
    pub struct SecretHeader {
        /// [`SECRET_MAGIC`].
        pub magic: U32,
        /// Number of entries, at most [`MAX_SECRETS`].
        pub count: U32,
    }
}
wire_layout!(SecretHeader, size = 8, { magic @ 0, count @ 4 });

wire_struct! {
    /// One use of a secret. A secret that two images need is there twice.
    pub struct SecretEntry {
        /// Slot of the image that the user names.
        pub slot: U32,
        /// Which image of its chain: 0 is the image itself, 1 its backing file, and so on.
        pub depth: U32,
        /// A [`SecretRole`].
        pub role: U32,
        /// Where the bytes start, counted from the start of the region.
        pub offset: U32,
        /// How many they are, at most [`MAX_SECRET_BYTES`].
        pub len: U32,
        /// Zero.
        pub reserved: U32,
    }
}
wire_layout!(SecretEntry, size = 24, { slot @ 0, depth @ 4, role @ 8, offset @ 12, len @ 16, reserved @ 20 });

/// One use of a secret, in a copy of the region.
#[derive(Clone, Copy)]
pub struct SecretUse<'a> {
    /// Slot of the image that the user names.
    pub slot: u32,
    /// Which image of its chain; 0 is the image itself.
    pub depth: u32,
    /// What for.
    pub role: SecretRole,
    /// The secret itself.
    pub bytes: &'a [u8],
}

impl core::fmt::Debug for SecretUse<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("SecretUse")
            .field("slot", &self.slot)
            .field("depth", &self.depth)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// The uses in `region`, which is a copy of [`SECRETS`]; `None` if any part of it breaks the contract.
#[must_use]
pub fn decode(region: &[u8]) -> Option<impl Iterator<Item = SecretUse<'_>>> {
    let (header, rest) = SecretHeader::ref_from_prefix(region).ok()?;
    let count = usize::try_from(header.count.get()).ok()?;
    if header.magic.get() != SECRET_MAGIC || count > MAX_SECRETS {
        return None;
    }
    let (entries, _) = <[SecretEntry]>::ref_from_prefix_with_elems(rest, count).ok()?;
    let valid = entries
        .iter()
        .all(|entry| decode_one(region, entry).is_some());
    let uses = entries.iter().filter_map(|entry| decode_one(region, entry));
    valid.then_some(uses)
}

fn decode_one<'a>(region: &'a [u8], entry: &SecretEntry) -> Option<SecretUse<'a>> {
    let start = usize::try_from(entry.offset.get()).ok()?;
    let len = usize::try_from(entry.len.get()).ok()?;
    if len > MAX_SECRET_BYTES || entry.reserved.get() != 0 {
        return None;
    }
    Some(SecretUse {
        slot: entry.slot.get(),
        depth: entry.depth.get(),
        role: SecretRole::try_from(entry.role.get()).ok()?,
        bytes: region.get(start..start.checked_add(len)?)?,
    })
}

/// Writes `uses` to `region`, which is as long as [`SECRETS`] or shorter; `None` if they are too many or too long.
#[must_use]
pub fn encode<'a>(
    uses: impl ExactSizeIterator<Item = SecretUse<'a>>,
    region: &mut [u8],
) -> Option<()> {
    let count = uses.len();
    if count > MAX_SECRETS {
        return None;
    }
    let mut entry_at = size_of::<SecretHeader>();
    let mut bytes_at = count
        .checked_mul(size_of::<SecretEntry>())?
        .checked_add(entry_at)?;
    let header = SecretHeader {
        magic: U32::new(SECRET_MAGIC),
        count: U32::new(u32::try_from(count).ok()?),
    };
    put(region, 0, &header)?;
    for used in uses {
        if used.bytes.len() > MAX_SECRET_BYTES {
            return None;
        }
        let entry = SecretEntry {
            slot: U32::new(used.slot),
            depth: U32::new(used.depth),
            role: U32::new(used.role.raw()),
            offset: U32::new(u32::try_from(bytes_at).ok()?),
            len: U32::new(u32::try_from(used.bytes.len()).ok()?),
            reserved: U32::new(0),
        };
        entry_at = put(region, entry_at, &entry)?;
        bytes_at = put(region, bytes_at, used.bytes)?;
    }
    Some(())
}

/// Writes `value` at `at`; where it ends.
fn put<T: zerocopy::IntoBytes + zerocopy::Immutable + ?Sized>(
    region: &mut [u8],
    at: usize,
    value: &T,
) -> Option<usize> {
    let bytes = value.as_bytes();
    let end = at.checked_add(bytes.len())?;
    region.get_mut(at..end)?.copy_from_slice(bytes);
    Some(end)
}

// Three of the longest fit.
const _: () = assert!(
    (size_of::<SecretHeader>() + 3 * (size_of::<SecretEntry>() + MAX_SECRET_BYTES)) as u64
        <= SECRETS.size
);

#[cfg(test)]
mod tests {
    use super::*;

    fn used(slot: u32, depth: u32, role: SecretRole, bytes: &[u8]) -> SecretUse<'_> {
        SecretUse {
            slot,
            depth,
            role,
            bytes,
        }
    }

    fn region() -> Vec<u8> {
        vec![0; usize::try_from(SECRETS.size).unwrap()]
    }

    type Flat = (u32, u32, SecretRole, Vec<u8>);

    fn flat(region: &[u8]) -> Option<Vec<Flat>> {
        let uses = decode(region)?;
        Some(
            uses.map(|used| (used.slot, used.depth, used.role, used.bytes.to_vec()))
                .collect(),
        )
    }

    #[test]
    fn what_is_written_is_read() {
        let long = [7; MAX_SECRET_BYTES];
        let uses = [
            used(0, 0, SecretRole::Open, b"one"),
            used(0, 3, SecretRole::Old, b""),
            used(1, 0, SecretRole::New, &long),
        ];
        let mut region = region();
        encode(uses.into_iter(), &mut region).unwrap();
        let seen = flat(&region).unwrap();
        assert_eq!(seen.len(), 3);
        assert_eq!(seen[0], (0, 0, SecretRole::Open, b"one".to_vec()));
        assert_eq!(seen[1], (0, 3, SecretRole::Old, Vec::new()));
        assert_eq!(seen[2], (1, 0, SecretRole::New, long.to_vec()));
    }

    #[test]
    fn too_many_and_too_long_are_refused() {
        let mut region = region();
        let long = [0; MAX_SECRET_BYTES + 1];
        let one = used(0, 0, SecretRole::Open, &long);
        assert!(encode([one].into_iter(), &mut region).is_none());
        let short = used(0, 0, SecretRole::Open, b"x");
        assert!(encode(vec![short; MAX_SECRETS + 1].into_iter(), &mut region).is_none());
        let fits = used(0, 0, SecretRole::Open, &long[1..]);
        assert!(encode(vec![fits; 3].into_iter(), &mut region).is_some());
        assert!(encode(vec![fits; 4].into_iter(), &mut region).is_none());
    }

    #[test]
    fn every_broken_word_is_refused() {
        let mut good = region();
        let uses = [used(0, 1, SecretRole::Open, b"word")];
        encode(uses.into_iter(), &mut good).unwrap();
        let breaks: [(usize, u32); 7] = [
            (0, 1),         // magic
            (4, 33),        // count
            (16, 0),        // role
            (16, 4),        // role
            (20, u32::MAX), // offset
            (24, 4097),     // length
            (28, 1),        // reserved
        ];
        for (at, value) in breaks {
            let mut bad = good.clone();
            bad[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(flat(&bad).is_none(), "{at}");
        }
        assert!(flat(&[]).is_none());
        assert!(flat(&good[..30]).is_none());
    }

    #[test]
    fn a_secret_is_not_in_its_debug_text() {
        let text = format!("{:?}", used(0, 0, SecretRole::Open, b"hidden"));
        assert!(!text.contains("104") && !text.contains("hidden"), "{text}");
    }
}
