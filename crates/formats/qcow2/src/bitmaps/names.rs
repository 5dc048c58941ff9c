//! A set of bitmap names in bounded memory.

use alloc::vec::Vec;

/// Remembers names by their hash: 8 bytes for each of at most 65535 names, in a
/// table of twice as many slots. Two names of one hash count as one, which for an
/// honest image happens once in 2^32 directories of 65535 names.
pub(super) struct NameSet {
    slots: Vec<u64>,
}

impl NameSet {
    /// Room for `names` names; `None` if there is no memory.
    pub(super) fn new(names: u32) -> Option<Self> {
        let len = usize::try_from(names)
            .ok()?
            .checked_mul(2)?
            .checked_next_power_of_two()?;
        let mut slots = Vec::new();
        slots.try_reserve_exact(len).ok()?;
        slots.resize(len, 0);
        Some(Self { slots })
    }

    /// Adds a name; false if it is there already.
    pub(super) fn insert(&mut self, name: &[u8]) -> bool {
        let hash = hash(name);
        let mask = (self.slots.len() as u64).saturating_sub(1);
        for step in 0..=mask {
            let at = usize::try_from(hash.wrapping_add(step) & mask).unwrap_or(0);
            match self.slots.get_mut(at) {
                Some(slot) if *slot == 0 => {
                    *slot = hash;
                    return true;
                }
                Some(slot) if *slot == hash => return false,
                _ => {}
            }
        }
        true
    }
}

/// FNV-1a with a final mix; never 0, which marks an empty slot.
fn hash(name: &[u8]) -> u64 {
    let fnv = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_again() {
        let mut set = NameSet::new(1000).unwrap();
        for i in 0..1000 {
            assert!(set.insert(alloc::format!("bitmap{i}").as_bytes()), "{i}");
        }
        for i in 0..1000 {
            assert!(!set.insert(alloc::format!("bitmap{i}").as_bytes()), "{i}");
        }
    }
}
