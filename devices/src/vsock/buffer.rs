//! Bytes that wait for a stream.

use std::collections::VecDeque;
use vm_memory::VolatileSlice;

/// Bytes that wait, oldest first. Holds no memory when it is empty.
#[derive(Debug, Default)]
pub(super) struct Buffer(VecDeque<u8>);

impl Buffer {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Appends `data` but its first `skip` bytes.
    pub fn push(&mut self, data: &[VolatileSlice<'_>], skip: usize) {
        for slice in super::slices::after(data, skip) {
            let mut bytes = vec![0; slice.len()];
            slice.copy_to(bytes.as_mut_slice());
            self.0.extend(bytes);
        }
    }

    /// All of it, for a write.
    pub fn slices(&mut self) -> [VolatileSlice<'_>; 2] {
        let (front, back) = self.0.as_mut_slices();
        [front.into(), back.into()]
    }

    /// Drops the first `n` bytes.
    pub fn pop(&mut self, n: usize) {
        self.0.drain(..n.min(self.0.len()));
        if self.0.is_empty() {
            self.0 = VecDeque::new();
        }
    }
}
