//! The cluster in which the old disk ends, when that is not its last byte.
//!
//! Its bytes up to the old end are the disk's; those after it become visible. Where the backing file would show
//! there, they have to be zeros; where it would not, what the cluster holds shows, as with `qemu-img`.
//! Writing in place past the old end is safe: no state of the image shows those bytes before the switch. A cluster
//! that a snapshot shares is copied.

use crate::content::{Layer, Mapping, Unpack, read_guest_by, unit_bytes, zeroed};
use crate::error::Stage;
use crate::layout::{self, ALL_ALLOCATED, Entry};
use crate::{Preallocation, ResizeError};
use alloc::vec::Vec;
use instar_qcow2::Header;
use instar_qcow2::entries::{ALL_ZEROS, COPIED};
use instar_qcow2::header::CryptMethod;
use instar_storage::{DataPlace, StorageError, StorageMut};

/// EOPNOTSUPP.
const EOPNOTSUPP: u32 = 95;
/// Low half of a subcluster bitmap: allocated.
const LOW: u64 = ALL_ALLOCATED;

/// How a disk grows.
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// Bytes, whole sectors.
    pub old_size: u64,
    /// Bytes, whole sectors.
    pub new_size: u64,
    /// What the new clusters get: with an external data file, space is the file's and not the clusters'.
    pub clusters: Preallocation,
    /// The backing file is longer than the old disk, and must not show.
    pub hide: bool,
    /// What decompresses the cluster in which the old disk ends, if that can be done.
    pub unpack: Option<Unpack>,
}

impl Growth {
    /// Version 2 cannot say that a whole cluster hides the backing file.
    ///
    /// # Errors
    /// It would have to.
    pub const fn check_version(&self, header: &Header, version: u32) -> Result<(), ResizeError> {
        let marks = matches!(self.clusters, Preallocation::Off | Preallocation::Metadata);
        let first = header.cluster_bits.clusters_for(self.old_size);
        let end = header.cluster_bits.clusters_for(self.new_size);
        if self.hide && marks && version < 3 && first < end {
            return Err(ResizeError::Failed {
                stage: Stage::Zero,
                errno: EOPNOTSUPP,
            });
        }
        Ok(())
    }
}

/// What becomes of the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// A new cluster is taken, and the references of the old entry are dropped.
    pub fresh: bool,
    /// The L2 entry changes.
    pub changes: bool,
    /// The entry without the offset and COPIED bit of a fresh cluster.
    entry: Entry,
    /// Units (subclusters, or the whole cluster) that get the disk's bytes up to its old end and zeros after it.
    fill: u64,
    /// Zeros are written from the old end to the end of its unit.
    wipe: bool,
}

impl Head {
    /// The cluster's bytes change.
    pub const fn writes(&self) -> bool {
        self.fill != 0 || self.wipe
    }
}

/// The old end within its cluster, in bytes and units.
struct Cut {
    unit: u64,
    from: u64,
    /// Units that begin before the old end.
    head_units: u64,
    /// The unit that the old end cuts, as a bit; 0 if none.
    partial: u64,
    /// Units after the old end and before the new one, as bits.
    after: u64,
}

/// Bits `0..n`.
const fn low_bits(n: u64) -> u64 {
    if n >= 64 {
        u64::MAX
    } else {
        (1_u64 << n).wrapping_sub(1)
    }
}

fn cut(header: &Header, growth: &Growth) -> Cut {
    let unit = unit_bytes(header);
    let from = growth.old_size & header.cluster_bits.mask();
    let start = growth.old_size.saturating_sub(from);
    let end = growth.new_size.saturating_sub(start);
    let end = end.min(header.cluster_bits.size_bytes());
    let head_units = from.div_ceil(unit);
    let whole = from.checked_div(unit).unwrap_or(0);
    Cut {
        unit,
        from,
        head_units,
        partial: low_bits(head_units) & !low_bits(whole),
        after: low_bits(end.div_ceil(unit)) & !low_bits(head_units),
    }
}

/// Decides what becomes of the cluster whose entry is `old`.
///
/// # Errors
/// Zeros are needed where the format has no way to say so.
pub fn plan(header: &Header, growth: &Growth, old: Mapping) -> Result<Head, ResizeError> {
    let cut = cut(header, growth);
    let keep = Head::default();
    if cut.from == 0 || (growth.clusters == Preallocation::Off && !growth.hide) {
        return Ok(keep);
    }
    let data_file = header.incompatible.external_data_file();
    let has_place = !old.entry.is_compressed()
        && (old.entry.host_offset().get() != 0 || (data_file && old.entry.is_copied()));
    let own = has_place && (data_file || old.entry.is_copied());
    let reserved = matches!(growth.clusters, Preallocation::Falloc | Preallocation::Full);
    if own && !reserved {
        return Ok(match (growth.hide, header.incompatible.extended_l2()) {
            // What is marked as zeros becomes zeros, as the new clusters are not marked.
            (_, false) if old.entry.has_zero_flag() => Head {
                changes: true,
                entry: Entry(old.entry.0 & !ALL_ZEROS, 0),
                fill: 1,
                ..keep
            },
            (false, _) => keep,
            (true, false) => Head { wipe: true, ..keep },
            (true, true) => in_place(&cut, old),
        });
    }
    if !header.incompatible.extended_l2() {
        return Ok(Head {
            fresh: true,
            changes: true,
            fill: 1,
            ..keep
        });
    }
    if old.entry.is_compressed() {
        return unpack(&cut, growth, reserved);
    }
    Ok(copy(&cut, growth, old, has_place, reserved))
}

/// Subclusters of a cluster that is only this disk's.
fn in_place(cut: &Cut, old: Mapping) -> Head {
    let marks = old.bitmap.0;
    let allocated = old.bitmap.allocated();
    let fill = cut.partial & !allocated;
    let allocated = (allocated | cut.partial) & !cut.after;
    let zeros = (marks >> 32) & !cut.partial | cut.after;
    Head {
        fresh: false,
        changes: true,
        entry: Entry(old.entry.0, allocated | (zeros << 32)),
        fill,
        wipe: cut.partial != 0 && fill == 0,
    }
}

/// A compressed cluster becomes one with subclusters.
fn unpack(cut: &Cut, growth: &Growth, reserved: bool) -> Result<Head, ResizeError> {
    if growth.clusters == Preallocation::Off && cut.after != 0 {
        return Err(ResizeError::Failed {
            stage: Stage::Zero,
            errno: EOPNOTSUPP,
        });
    }
    let head = low_bits(cut.head_units);
    let marks = match (reserved, growth.hide) {
        (true, true) => LOW,
        (false, true) if growth.clusters == Preallocation::Off => LOW,
        (false, true) => head | (cut.after << 32),
        (_, false) => head,
    };
    Ok(Head {
        fresh: true,
        changes: true,
        entry: Entry(0, marks),
        fill: marks & LOW,
        wipe: false,
    })
}

/// A new cluster for one that has none, or shares it.
fn copy(cut: &Cut, growth: &Growth, old: Mapping, has_place: bool, reserved: bool) -> Head {
    let head = low_bits(cut.head_units);
    let (allocated, zeros) = (old.bitmap.allocated(), old.bitmap.zeros());
    let mut result = Head {
        fresh: true,
        changes: true,
        ..Head::default()
    };
    if reserved && growth.hide {
        (result.entry, result.fill) = (Entry(0, LOW), LOW);
        return result;
    }
    let off = growth.clusters == Preallocation::Off;
    if off && cut.partial == 0 {
        // Marks are enough.
        let marks = allocated & !cut.after | ((zeros | cut.after) << 32);
        result.fresh = false;
        result.entry = Entry(old.entry.0, marks);
        return result;
    }
    let mut filled = if has_place { allocated & head } else { 0 };
    if off && has_place {
        filled |= head & !zeros;
    }
    let (mut marked, mut zeros) = (filled, zeros);
    if growth.hide {
        filled |= cut.partial;
        zeros = zeros & head & !cut.partial | cut.after;
        marked = filled;
    } else if has_place {
        // What is marked behind the old end becomes zeros, as the rest of the cluster.
        marked |= allocated;
    }
    result.entry = Entry(0, marked | (zeros << 32));
    result.fill = filled;
    result
}

/// Writes what the cluster needs, into host offset `place` of `file`, and gives its L2 entry.
///
/// `layers` is the old image and its backing chain.
///
/// # Errors
/// The store's; the guest data cannot be read, or would have to be encrypted without its key.
pub fn write<S: StorageMut>(
    head: &Head,
    layers: &[Layer<'_, S>],
    header: &Header,
    growth: &Growth,
    file: &S,
    place: u64,
) -> Result<Entry, ResizeError> {
    let cut = cut(header, growth);
    let start = growth.old_size.saturating_sub(cut.from);
    let cipher = layers.first().and_then(|layer| layer.cipher);
    let encrypted = header.crypt_method != CryptMethod::None;
    if encrypted && cipher.is_none() && (head.fill != 0 || head.wipe) {
        return Err(ResizeError::KeyRequired);
    }
    let data = |at: u64, mut bytes: Vec<u8>| {
        let host = place.saturating_add(at);
        let guest = start.saturating_add(at);
        if let Some(cipher) = cipher {
            let sealed = cipher.encipher(DataPlace { host, guest }, &mut bytes);
            sealed.map_err(failed)?;
        }
        file.write_at(host, &bytes).map_err(failed)
    };
    for unit in (0..64).filter(|unit| head.fill & (1 << unit) != 0) {
        let at = cut.unit.saturating_mul(unit);
        data(at, unit_content(layers, growth, &cut, at)?)?;
    }
    if head.wipe {
        let end = cut.unit.saturating_mul(cut.head_units);
        let end = end.min(growth.new_size.saturating_sub(start));
        let len = end.saturating_sub(cut.from);
        if cipher.is_some() {
            data(cut.from, zeroed(len)?)?;
        } else {
            let at = place.saturating_add(cut.from);
            file.write_zeroes(at, len).map_err(failed)?;
        }
    }
    let offset = if head.fresh { place | COPIED } else { 0 };
    Ok(Entry(head.entry.0 | offset, head.entry.1))
}

/// Judges whether [`write()`] will find the disk's bytes without a decompressor, before anything is written. Other
/// troubles are its own to tell.
///
/// # Errors
/// [`ResizeError::Compressed`].
pub fn check_unpacked<S: StorageMut>(
    head: &Head,
    layers: &[Layer<'_, S>],
    header: &Header,
    growth: &Growth,
) -> Result<(), ResizeError> {
    let cut = cut(header, growth);
    for unit in (0..64).filter(|unit| head.fill & (1 << unit) != 0) {
        let at = cut.unit.saturating_mul(unit);
        if let Err(ResizeError::Compressed) = unit_content(layers, growth, &cut, at) {
            return Err(ResizeError::Compressed);
        }
    }
    Ok(())
}

/// The bytes of the unit at `at` of the cluster: the disk's up to its old end, then zeros.
fn unit_content<S: StorageMut>(
    layers: &[Layer<'_, S>],
    growth: &Growth,
    cut: &Cut,
    at: u64,
) -> Result<Vec<u8>, ResizeError> {
    let start = growth.old_size.saturating_sub(cut.from);
    let mut bytes = zeroed(cut.unit)?;
    let keep = cut.from.saturating_sub(at).min(cut.unit);
    let keep = usize::try_from(keep).map_err(|_| ResizeError::OutOfMemory)?;
    let kept = bytes.get_mut(..keep).unwrap_or_default();
    read_guest_by(growth.unpack, layers, start.saturating_add(at), kept)?;
    Ok(bytes)
}

fn failed(e: StorageError) -> ResizeError {
    ResizeError::Failed {
        stage: Stage::Zero,
        errno: e.errno,
    }
}

/// The entry of a cluster that lies past the old disk.
pub const fn new_cluster(extended: bool, growth: &Growth, offset: u64) -> Entry {
    match growth.clusters {
        Preallocation::Off => layout::zero(extended),
        Preallocation::Metadata => layout::metadata(extended, offset, growth.hide),
        Preallocation::Falloc | Preallocation::Full => layout::data(extended, offset, growth.hide),
    }
}
