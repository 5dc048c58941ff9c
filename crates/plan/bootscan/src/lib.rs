//! What a disk boots: its partitions, its boot loader's configuration, the entries of that, and the one that the boot
//! loader would choose.
//!
//! [`Disk::open`] finds the partitions and what they hold; [`scan`] reads the first configuration with something to
//! boot: GRUB's (by way of the EFI partition's, if that leads to it), boot loader specification entries, or those of
//! extlinux and syslinux. Everything that is read is hostile: files, entries, steps of scripts and lengths of texts are
//! bounded.
//!
//! Modules:
//! - `disk`: partitions; `places`: where configurations are looked for.
//! - `grub`: GRUB's scripts; `bls`: entries of the boot loader specification; `extlinux`: extlinux and syslinux.
//! - `kernel`: which parts of a kernel go where.
//! - `version`: the order of versions.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod bls;
mod disk;
mod extlinux;
mod grub;
pub mod kernel;
mod places;
mod version;

pub use disk::{Disk, Held, Volume};
pub use places::scan;

use alloc::string::String;
use alloc::vec::Vec;

/// Most entries that are kept.
pub const MAX_ENTRIES: usize = 256;
/// Largest configuration that is read, in bytes.
pub const MAX_CONFIG: u64 = 1 << 20;
/// Longest command line in bytes. Linux takes 2,048 on x86 and arm64.
pub const MAX_CMDLINE: usize = 4096;
/// Longest path of a kernel or an initial RAM disk, in bytes.
pub const MAX_PATH: usize = 1000;
/// Longest title and ID in bytes; what is longer is cut.
pub const MAX_NAME: usize = 512;
/// Most initial RAM disks of an entry.
pub const MAX_INITRDS: usize = 8;
/// Most notes about what could not be read.
const MAX_NOTES: usize = 64;

/// Whose configuration it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// GRUB 2.
    Grub,
    /// Entries of the boot loader specification, as systemd-boot reads them.
    Bls,
    /// extlinux or syslinux.
    Extlinux,
}

/// A file on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the volume.
    pub volume: usize,
    /// Absolute path.
    pub path: Vec<u8>,
}

/// Something that can be chosen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the menu, from 0; in a submenu `1>0`.
    pub index: String,
    /// Its ID, or else its title.
    pub id: Vec<u8>,
    /// What the menu shows.
    pub title: Vec<u8>,
    /// The kernel.
    pub kernel: Option<Place>,
    /// Initial RAM disks, which the kernel gets one after the other.
    pub initrds: Vec<Place>,
    /// The kernel's command line.
    pub cmdline: Vec<u8>,
    /// Why it cannot be booted; `None` if nothing is known against it.
    pub problem: Option<String>,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// The configuration that was chosen; `None` if there is none.
    pub source: Option<Source>,
    /// Its entries, in the order of the menu.
    pub entries: Vec<Entry>,
    /// Index of the default one in `entries`.
    pub default: Option<usize>,
    /// What could not be read, in sentences.
    pub notes: Vec<String>,
}

/// Where the entries come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whose it is.
    pub loader: Loader,
    /// The file, or the folder of entries.
    pub place: Place,
    /// Why its default is the default: a clause.
    pub why: String,
}

impl Scan {
    fn note(&mut self, sentence: String) {
        if self.notes.len() < MAX_NOTES {
            self.notes.push(sentence);
        }
    }
}

/// The entry that `word` names: by index, ID or title.
#[must_use]
pub fn find(entries: &[Entry], word: &[u8]) -> Option<usize> {
    let by = |test: &dyn Fn(&Entry) -> bool| entries.iter().position(test);
    by(&|entry| entry.index.as_bytes() == word)
        .or_else(|| by(&|entry| entry.id == word))
        .or_else(|| by(&|entry| entry.title == word))
}

/// Cuts a name that is too long.
fn short_name(name: &[u8]) -> Vec<u8> {
    name.get(..MAX_NAME).unwrap_or(name).to_vec()
}
