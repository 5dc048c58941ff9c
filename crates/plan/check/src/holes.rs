//! Holes of the file, asked for only where tables turn out to be empty.
//!
//! Asking costs a round trip to the host, reading a hole costs time for each
//! byte. So tables are read until one is all zeros; from then on each table is
//! looked up first, until one has data again. A hole found is remembered.

use instar_storage::Storage;

/// What is known of the file's holes.
#[derive(Default)]
pub(crate) struct Holes {
    start: u64,
    end: u64,
    ask: bool,
}

impl Holes {
    /// Notes whether the last table read was all zeros.
    pub(crate) const fn saw(&mut self, all_zeros: bool) {
        self.ask = all_zeros;
    }

    /// True if it is known that these bytes are all zeros.
    pub(crate) fn are_zeros<S: Storage>(&mut self, storage: &S, offset: u64, len: u64) -> bool {
        if offset >= storage.len_bytes() {
            return true;
        }
        let end = offset.saturating_add(len).min(storage.len_bytes());
        if offset >= self.start && end <= self.end {
            return true;
        }
        if !self.ask {
            return false;
        }
        // A store that fails here fails again when it is read, and is reported.
        match storage.extent_at(offset) {
            Ok(Some(extent)) if !extent.data => {
                self.start = extent.offset;
                self.end = extent.offset.saturating_add(extent.len);
                offset >= self.start && end <= self.end
            }
            _ => false,
        }
    }
}
