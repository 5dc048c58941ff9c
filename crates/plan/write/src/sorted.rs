//! A map in a sorted vector.

use alloc::vec::Vec;

/// Values by ascending keys. For some thousands of them, which are found much more often than they come and go; a tree
/// for each type of value would be much more code.
#[derive(Debug)]
pub struct Sorted<K, V>(Vec<(K, V)>);

impl<K, V> Default for Sorted<K, V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<K: Ord + Copy, V> Sorted<K, V> {
    /// How many there are.
    pub const fn len(&self) -> usize {
        self.0.len()
    }

    /// The first index whose key is not below `key`.
    fn index(&self, key: K) -> usize {
        self.0.partition_point(|(other, _)| *other < key)
    }

    /// The value of a key.
    pub fn get(&self, key: K) -> Option<&V> {
        let (found, value) = self.0.get(self.index(key))?;
        (*found == key).then_some(value)
    }

    /// The value of a key, to change it.
    pub fn get_mut(&mut self, key: K) -> Option<&mut V> {
        let index = self.index(key);
        let (found, value) = self.0.get_mut(index)?;
        (*found == key).then_some(value)
    }

    /// The last value whose key is at most `key`, with that.
    pub fn last_to(&self, key: K) -> Option<&(K, V)> {
        let end = self.0.partition_point(|(other, _)| *other <= key);
        self.0.get(end.checked_sub(1)?)
    }

    /// Adds a value whose key there is none of.
    pub fn insert(&mut self, key: K, value: V) {
        let index = self.index(key);
        self.0.insert(index, (key, value));
    }

    /// Takes the value of a key away.
    pub fn remove(&mut self, key: K) -> Option<V> {
        let index = self.index(key);
        let there = self.0.get(index).is_some_and(|(found, _)| *found == key);
        there.then(|| self.0.remove(index).1)
    }

    /// Keeps those that it is true of.
    pub fn retain(&mut self, mut keep: impl FnMut(&V) -> bool) {
        self.0.retain(|(_, value)| keep(value));
    }

    /// All, by ascending keys.
    pub fn iter(&self) -> impl Iterator<Item = &(K, V)> {
        self.0.iter()
    }

    /// All, by ascending keys, to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut (K, V)> {
        self.0.iter_mut()
    }

    /// All values, by ascending keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// All values, by ascending keys, to change them.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_stay_in_order_whatever_comes_and_goes() {
        let mut map = Sorted::default();
        for key in [5_u64, 1, 9, 3, 7] {
            map.insert(key, key * 10);
        }
        assert_eq!(map.remove(3), Some(30));
        assert_eq!(map.remove(4), None);
        *map.get_mut(7).unwrap() += 1;
        map.retain(|value| *value != 50);
        let all: Vec<_> = map.iter().copied().collect();
        assert_eq!(all, [(1, 10), (7, 71), (9, 90)]);
        assert_eq!((map.len(), map.get(9), map.get(5)), (3, Some(&90), None));
        assert_eq!(map.last_to(8), Some(&(7, 71)));
        assert_eq!(map.last_to(0), None);
    }
}
