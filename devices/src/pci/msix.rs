//! MSI-X: a function's table of messages, its masks and pending bits. PCI 3.0 §6.8.2.

use crate::msi::{MsiMessage, MsiVectors};
use crate::registers::{read_image, value};
use crate::virtio::RestoreError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most vectors of a function here, by the page that the table has; PCI allows 2,048.
pub const MAX_VECTORS: u16 = 256;
/// Length of a table entry. PCI 3.0 §6.8.2.
const ENTRY_BYTES: u64 = 16;
/// Capability ID. PCI 3.0 appendix H.
pub const CAPABILITY_ID: u8 = 0x11;
/// Message control: MSI-X is on. PCI 3.0 §6.8.2.3.
const CONTROL_ENABLE: u16 = 1 << 15;
/// Message control: all vectors are masked.
const CONTROL_FUNCTION_MASK: u16 = 1 << 14;
/// The bits of message control that the guest may change.
pub const CONTROL_WRITABLE: u16 = CONTROL_ENABLE | CONTROL_FUNCTION_MASK;
/// Vector control: the vector is masked. PCI 3.0 §6.8.2.9.
const VECTOR_MASKED: u32 = 1;

/// A saved table entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixEntryState {
    /// Message address, both halves.
    pub address: u64,
    /// Message data.
    pub data: u32,
    /// Whether the vector is masked.
    pub masked: bool,
    /// Whether a message waits for the mask to go.
    pub pending: bool,
}

/// After a reset a vector is masked. PCI 3.0 §6.8.2.9.
const RESET_ENTRY: MsixEntryState = MsixEntryState {
    address: 0,
    data: 0,
    masked: true,
    pending: false,
};

impl MsixEntryState {
    fn message(&self) -> MsiMessage {
        MsiMessage {
            address: self.address,
            data: self.data,
        }
    }

    /// As the guest reads it.
    fn bytes(&self) -> [u8; 16] {
        let control = u128::from(u32::from(self.masked));
        let entry = u128::from(self.address) | u128::from(self.data) << 64 | control << 96;
        entry.to_le_bytes()
    }

    /// Changes one of the entry's four words.
    fn set_word(&mut self, word: u64, new: u32) {
        let new64 = u64::from(new);
        match word {
            // The low two bits of the address are zeros. PCI 3.0 §6.8.2.7.
            0 => self.address = (self.address & !0xffff_ffff) | (new64 & !0b11),
            1 => self.address = (self.address & 0xffff_ffff) | new64 << 32,
            2 => self.data = new,
            _ => self.masked = new & VECTOR_MASKED != 0,
        }
    }
}

/// A saved table, with what message control and the command register say of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MsixState {
    /// By vector.
    pub entries: Vec<MsixEntryState>,
}

/// A function's MSI-X. Its lock is a leaf: taken by vCPU threads for registers and by device threads for messages, it
/// covers calls to [`MsiVectors`] only.
#[derive(Debug)]
pub struct Msix {
    vectors: Arc<dyn MsiVectors>,
    table: Mutex<Table>,
}

#[derive(Debug)]
struct Table {
    entries: Vec<Entry>,
    /// MSI-X is on.
    enabled: bool,
    /// No vector may send: the function's mask, or no bus mastering.
    held: bool,
}

#[derive(Debug)]
struct Entry {
    state: MsixEntryState,
    /// What the machine has been told last.
    told: Option<MsiMessage>,
}

impl Msix {
    /// MSI-X with as many vectors as the machine gives, [`MAX_VECTORS`] at most, all masked.
    #[must_use]
    pub fn new(vectors: Arc<dyn MsiVectors>) -> Self {
        let count = vectors.count().min(MAX_VECTORS);
        let entry = || Entry {
            state: RESET_ENTRY,
            told: None,
        };
        let table = Table {
            entries: std::iter::repeat_with(entry)
                .take(usize::from(count))
                .collect(),
            enabled: false,
            held: true,
        };
        Self {
            vectors,
            table: Mutex::new(table),
        }
    }

    /// Number of vectors.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.vectors.count().min(MAX_VECTORS)
    }

    /// Whether MSI-X is on.
    #[must_use]
    pub fn enabled(&self) -> bool {
        self.lock().enabled
    }

    /// The guest has written message control or the command register.
    pub fn set_control(&self, control: u16, bus_master: bool) {
        let mut table = self.lock();
        let enabled = control & CONTROL_ENABLE != 0;
        let held = control & CONTROL_FUNCTION_MASK != 0 || !bus_master;
        if (enabled, held) != (table.enabled, table.held) {
            (table.enabled, table.held) = (enabled, held);
            for vector in 0..self.count() {
                table.settle(&*self.vectors, vector);
            }
        }
    }

    /// Sends the message of `vector`, or keeps it pending while it is masked; nothing if MSI-X is off or has no such vector.
    pub fn send(&self, vector: u16) {
        let mut table = self.lock();
        if !table.enabled {
            return;
        }
        if let Some(entry) = table.entries.get_mut(usize::from(vector)) {
            entry.state.pending = true;
            table.settle(&*self.vectors, vector);
        }
    }

    /// The guest reads the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let table = self.lock();
        let image: Vec<u8> = table
            .entries
            .iter()
            .flat_map(|entry| entry.state.bytes())
            .collect();
        read_image(&image, offset, data);
    }

    /// The guest writes the table: whole words or pairs of them. PCI 3.0 §6.8.2: other accesses are undefined; here
    /// nothing happens.
    pub fn write_table(&self, offset: u64, data: &[u8]) {
        let Some(value) = value(data).filter(|_| offset.is_multiple_of(4)) else {
            return;
        };
        let mut table = self.lock();
        let [low, high] = [value & 0xffff_ffff, value >> 32];
        let words: &[(u64, u64)] = match data.len() {
            4 => &[(0, low)],
            8 => &[(0, low), (4, high)],
            _ => &[],
        };
        for (more, word) in words {
            let Ok(word) = u32::try_from(*word) else {
                continue;
            };
            table.write_word(&*self.vectors, offset.saturating_add(*more), word);
        }
    }

    /// The guest reads the pending bits. PCI 3.0 §6.8.2.10.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        let mut image = [0_u8; MAX_VECTORS as usize / 8];
        let table = self.lock();
        for (byte, entries) in image.iter_mut().zip(table.entries.chunks(8)) {
            for (bit, entry) in (0_u32..).zip(entries) {
                *byte |= u8::from(entry.state.pending).wrapping_shl(bit);
            }
        }
        read_image(&image, offset, data);
    }

    /// The table as plain data.
    #[must_use]
    pub fn save(&self) -> MsixState {
        let table = self.lock();
        MsixState {
            entries: table.entries.iter().map(|entry| entry.state).collect(),
        }
    }

    /// All vectors masked, MSI-X off.
    pub fn reset(&self) {
        let mut table = self.lock();
        (table.enabled, table.held) = (false, true);
        for vector in 0..self.count() {
            if let Some(entry) = table.entries.get_mut(usize::from(vector)) {
                entry.state = RESET_ENTRY;
            }
            table.settle(&*self.vectors, vector);
        }
    }

    /// Takes a saved table over, as after [`Self::reset`]; [`Self::set_control`] follows.
    ///
    /// # Errors
    /// A table of another length.
    pub fn restore(&self, state: &MsixState) -> Result<(), RestoreError> {
        let mut table = self.lock();
        if state.entries.len() != table.entries.len() {
            return Err(RestoreError::Impossible {
                device: "virtio-pci",
                what: "a number of vectors",
            });
        }
        for (entry, saved) in table.entries.iter_mut().zip(&state.entries) {
            entry.state = *saved;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn write_word(&mut self, vectors: &dyn MsiVectors, offset: u64, word: u32) {
        let vector = offset.checked_div(ENTRY_BYTES).unwrap_or(0);
        let Ok(vector) = u16::try_from(vector) else {
            return;
        };
        if let Some(entry) = self.entries.get_mut(usize::from(vector)) {
            entry.state.set_word((offset >> 2) & 0b11, word);
            self.settle(vectors, vector);
        }
    }

    /// Tells the machine what has changed of `vector`, and sends its message if that waits and may go.
    fn settle(&mut self, vectors: &dyn MsiVectors, vector: u16) {
        let may_send = self.enabled && !self.held;
        let Some(entry) = self.entries.get_mut(usize::from(vector)) else {
            return;
        };
        let live = (may_send && !entry.state.masked).then(|| entry.state.message());
        if live != entry.told {
            entry.told = live;
            vectors.set(vector, live);
        }
        if live.is_some() && entry.state.pending {
            entry.state.pending = false;
            vectors.send(vector);
        }
    }
}
