//! Which images of the two chains are one: those with the same path.
//!
//! Paths are spelled as the images and the user spell them, relative to the folder of the image that is rebased. Two
//! spellings of one file count as two files, which costs time and nothing else.

use alloc::vec::Vec;
use instar_guest_ops::Disk;
use instar_layers::{Chain, FileOf, Layer};
use instar_qcow2::Header;

/// The layers of each chain.
pub struct Shared {
    old: Vec<Named>,
    new: Vec<Named>,
}

/// An image of a chain.
#[derive(PartialEq, Eq)]
struct Named {
    path: Vec<u8>,
    qcow2: bool,
}

impl Shared {
    /// Of the chain below the image with this header, and of the one that begins with the file that the user named.
    pub fn new(
        (disk, header): (&Disk, &Header),
        old: Option<&Chain<Disk>>,
        typed: &[u8],
        new: Option<&Chain<Disk>>,
    ) -> Self {
        let first = header.backing_file.as_deref().unwrap_or_default();
        Self {
            old: layers(first, old, disk.is_below_said()),
            new: layers(typed, new, false),
        }
    }

    /// Whether layer `old` of the old chain is layer `new` of the new one.
    pub fn is_one(&self, old: usize, new: usize) -> bool {
        match (self.old.get(old), self.new.get(new)) {
            (Some(old), Some(new)) => old == new,
            _ => false,
        }
    }
}

fn layers(first: &[u8], chain: Option<&Chain<Disk>>, is_said: bool) -> Vec<Named> {
    let mut names = Vec::new();
    let mut path = first.to_vec();
    if is_said {
        // The names are not those of the files.
        return names;
    }
    for layer in chain.map(Chain::layers).unwrap_or_default() {
        let header = Layer::header(layer);
        let below = header.and_then(|header| header.backing_file.as_deref());
        let next = below.map(|name| combine(&path, name));
        names.push(Named {
            path,
            qcow2: header.is_some(),
        });
        path = next.unwrap_or_default();
        if layer.store(FileOf::Image).is_below_said() {
            break;
        }
    }
    names
}

/// `name` as it stands in the image at `above`.
fn combine(above: &[u8], name: &[u8]) -> Vec<u8> {
    let first = name.iter().find(|byte| matches!(byte, b'/' | b':'));
    if name.first() == Some(&b'/') || first == Some(&b':') {
        return name.to_vec();
    }
    let slash = above.iter().rposition(|byte| *byte == b'/');
    let end = slash.map_or(0, |slash| slash.saturating_add(1));
    [above.get(..end).unwrap_or_default(), name].concat()
}
