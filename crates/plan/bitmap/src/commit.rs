//! What is wanted, as one transaction.

use crate::actions::{Base, Dest, SourceImage, Wanted, table_entries};
use crate::directory::{self, Fields, Place};
use crate::guard::Freed;
use crate::merge::{Merge, write};
use crate::reader::{PIECES_BYTES, Reader};
use crate::zeroed;
use alloc::vec::Vec;
use instar_plan_txn::{Footprint, Monitor, Transaction, TxnError, write_header};
use instar_qcow2::extensions::BitmapsExtension;
use instar_qcow2::{Header, HostOffset};
use instar_storage::{Storage, StorageMut};

/// Autoclear bits that a writer of bitmaps understands: bitmaps, raw external data.
const KNOWN_AUTOCLEAR: u64 = 3;
/// Memory besides directory, tables and clusters at hand: of the transaction, of its writes on their way.
const WORK_BYTES: u64 = 6 << 20;
/// Working memory from this on is asked for.
const ANNOUNCED_BYTES: u64 = 8 << 20;

/// The image and what is wanted of it.
pub(crate) struct Change<'c, S> {
    pub(crate) storage: &'c S,
    pub(crate) header: &'c Header,
    wanted: &'c Wanted,
    name: &'c [u8],
}

/// Makes the image what is wanted; no write, if it is that.
///
/// # Errors
/// The store's or the monitor's; the image is the old one.
pub(crate) fn commit<S: StorageMut, T: Storage>(
    storage: &S,
    header: &Header,
    source: &SourceImage<'_, T>,
    wanted: &Wanted,
    name: &[u8],
    monitor: &mut dyn Monitor,
) -> Result<(), TxnError> {
    let change = Change {
        storage,
        header,
        wanted,
        name,
    };
    if change.is_nothing() {
        return change.tidy_header();
    }
    change.ask_for_memory(monitor)?;
    match source {
        SourceImage::Other {
            storage: other,
            header: other_header,
        } => {
            let readers = change.readers(*other, other_header)?;
            change.run(readers, monitor)
        }
        _ => {
            let readers = change.readers(storage, header)?;
            change.run(readers, monitor)
        }
    }
}

impl<'c, S: StorageMut> Change<'c, S> {
    /// True if the directory is to stay as it is; merges may yet turn out to add nothing.
    fn is_nothing(&self) -> bool {
        if self.wanted.removed {
            return false;
        }
        match (&self.wanted.before, &self.wanted.now) {
            (Some(place), Some(dest)) => {
                let same_flags = dest.auto == place.bitmap.auto();
                dest.base == Base::Stored && dest.sources.is_empty() && same_flags
            }
            (before, now) => before.is_none() && now.is_none(),
        }
    }

    /// Takes out of the header what a writer must not leave in it.
    fn tidy_header(&self) -> Result<(), TxnError> {
        let stale = self.header.extensions.bitmaps_ignored.is_some();
        if stale || self.header.autoclear.0 & !KNOWN_AUTOCLEAR != 0 {
            let mut new = self.header.clone();
            new.extensions.bitmaps_ignored = None;
            write_header(self.storage, self.header, &new)?;
        }
        Ok(())
    }

    fn ask_for_memory(&self, monitor: &mut dyn Monitor) -> Result<(), TxnError> {
        let directory = self.header.extensions.bitmaps;
        let directory = directory.map_or(0, |ext| ext.directory_size);
        let table = |bits| table_entries(self.header, bits).saturating_mul(8);
        let now = self.wanted.now.as_ref();
        let new_table = now.map_or(0, |dest| table(dest.granularity_bits));
        let merges = now.is_some_and(|dest| !dest.sources.is_empty());
        let pieces = if merges { PIECES_BYTES } else { 0 };
        let clusters = self.header.cluster_bits.size_bytes().saturating_mul(3);
        let before = self.wanted.before.as_ref();
        let old_table = before.map_or(0, |place| place.bitmap.table_bytes());
        let bytes = directory
            .saturating_mul(2)
            .saturating_add(new_table)
            .saturating_add(old_table.saturating_mul(2))
            .saturating_add(pieces)
            .saturating_add(clusters)
            .saturating_add(WORK_BYTES);
        if bytes >= ANNOUNCED_BYTES && monitor.grant(bytes) < bytes {
            return Err(TxnError::OutOfMemory);
        }
        Ok(())
    }

    fn readers<'s, R: Storage>(
        &self,
        storage: &'s R,
        header: &'s Header,
    ) -> Result<Vec<Reader<'s, R>>, TxnError> {
        let now = self.wanted.now.as_ref();
        let sources = now.map_or(&[][..], |dest| &dest.sources);
        let mut readers = Vec::new();
        for bitmap in sources {
            readers.push(Reader::new(storage, header, bitmap, sources.len())?);
        }
        Ok(readers)
    }

    fn run<R: Storage>(
        &self,
        mut readers: Vec<Reader<'_, R>>,
        monitor: &mut dyn Monitor,
    ) -> Result<(), TxnError> {
        let footprint = self.footprint(&mut readers)?;
        let mut txn = Transaction::begin(self.storage, self.header, footprint, monitor)?;
        match self.build(&mut txn, &mut readers, monitor) {
            Ok(true) => {
                let old_len = self.storage.len_bytes();
                let done = txn.commit(monitor);
                if done == Err(TxnError::HeaderFull) {
                    self.cut_back(old_len)?;
                }
                done.map(|_| ())
            }
            Ok(false) => {
                txn.abandon();
                self.tidy_header()
            }
            Err(e) => {
                txn.abandon();
                Err(e)
            }
        }
    }

    /// The header is the old one: what was written behind the old end is nobody's.
    fn cut_back(&self, old_len: u64) -> Result<(), TxnError> {
        if self.storage.can_grow() && self.storage.len_bytes() > old_len {
            self.storage.set_len(old_len)?;
        }
        Ok(())
    }

    fn footprint<R: Storage>(&self, readers: &mut [Reader<'_, R>]) -> Result<Footprint, TxnError> {
        let bits = self.header.cluster_bits;
        let directory = self.header.extensions.bitmaps;
        let directory = directory.map_or(0, |ext| ext.directory_size);
        let mut fixed = bits.clusters_for(directory).saturating_add(1);
        // An entry of the longest name.
        fixed = fixed.saturating_add(bits.clusters_for(2048));
        if let Some(dest) = &self.wanted.now {
            let entries = table_entries(self.header, dest.granularity_bits);
            let mut merged = 0_u64;
            for reader in readers {
                let touched = reader.touches(dest.granularity_bits, bits.size_bytes())?;
                merged = merged.saturating_add(touched);
            }
            fixed = fixed
                .saturating_add(bits.clusters_for(entries.saturating_mul(8)))
                .saturating_add(merged.min(entries));
        }
        Ok(Footprint { tables: 0, fixed })
    }

    /// Fills the transaction; false if there is nothing to do after all.
    fn build<R: Storage>(
        &self,
        txn: &mut Transaction<'_, S>,
        readers: &mut [Reader<'_, R>],
        monitor: &mut dyn Monitor,
    ) -> Result<bool, TxnError> {
        let mut freed = Freed::default();
        let edit = match &self.wanted.now {
            None => self.removal(&mut freed)?,
            Some(dest) => match self.new_fields(dest, txn, readers, &mut freed, monitor)? {
                Some(fields) => self.entry(fields, &mut freed)?,
                None => return Ok(false),
            },
        };
        freed.next_group();
        let old = self.header.extensions.bitmaps;
        if let Some(extension) = old {
            freed.add(
                self.header,
                extension.directory_offset,
                extension.directory_size,
            )?;
        }
        let mut directory = directory::read(self.storage, old)?;
        let count = old.map_or(0, |ext| ext.nb_bitmaps);
        let count = edit.apply(&mut directory, count)?;
        txn.header.extensions.bitmaps_ignored = None;
        txn.header.extensions.bitmaps = None;
        if count > 0 {
            let directory_size = directory.len() as u64;
            let clusters = self.header.cluster_bits.clusters_for(directory_size);
            let padded = clusters.saturating_mul(self.header.cluster_bits.size_bytes());
            let padded = usize::try_from(padded).map_err(|_| TxnError::OutOfMemory)?;
            let more = padded.saturating_sub(directory.len());
            directory
                .try_reserve_exact(more)
                .map_err(|_| TxnError::OutOfMemory)?;
            directory.resize(padded, 0);
            let directory_offset = write(txn, directory)?;
            txn.header.extensions.bitmaps = Some(BitmapsExtension {
                nb_bitmaps: count,
                directory_size,
                directory_offset,
            });
        }
        freed.release(txn)?;
        Ok(true)
    }

    /// The edit that takes the bitmap out of the directory.
    fn removal(&self, freed: &mut Freed) -> Result<Edit, TxnError> {
        let before = self.wanted.before.clone();
        if let Some(place) = &before {
            freed.add_bitmap(self.storage, self.header, &place.bitmap)?;
        }
        Ok(Edit {
            removed: before,
            set: None,
            put: None,
        })
    }

    /// Where the new bits are; `None` if the bitmap stays as it is.
    fn new_fields<R: Storage>(
        &self,
        dest: &Dest,
        txn: &mut Transaction<'_, S>,
        readers: &mut [Reader<'_, R>],
        freed: &mut Freed,
        monitor: &mut dyn Monitor,
    ) -> Result<Option<Fields>, TxnError> {
        let entries = table_entries(self.header, dest.granularity_bits);
        let mut fields = Fields {
            table_offset: HostOffset(0),
            table_size: u32::try_from(entries).map_err(|_| TxnError::TooLarge)?,
            auto: dest.auto,
            granularity_bits: dest.granularity_bits,
        };
        let stored = self.wanted.before.as_ref().map(|place| &place.bitmap);
        let table = if readers.is_empty() {
            None
        } else {
            let mut merge = Merge::new(self, dest.granularity_bits, dest.base, stored)?;
            merge.run(txn, readers, freed, monitor)?
        };
        match (table, dest.base, stored) {
            (Some(table), Base::Stored, Some(stored)) => {
                freed.add(self.header, stored.table_offset, stored.table_bytes())?;
                fields.table_offset = write(txn, table)?;
            }
            (None, Base::Stored, Some(stored)) => {
                if stored.auto() == dest.auto {
                    return Ok(None);
                }
                fields.table_offset = stored.table_offset;
            }
            (table, ..) => {
                let bits = self.header.cluster_bits;
                let bytes = bits.clusters_for(entries.saturating_mul(8));
                let table = match table {
                    Some(table) => table,
                    None => zeroed(bytes.saturating_mul(bits.size_bytes()))?,
                };
                if let Some(stored) = stored {
                    freed.add_bitmap(self.storage, self.header, stored)?;
                }
                fields.table_offset = write(txn, table)?;
            }
        }
        Ok(Some(fields))
    }

    /// The edit that gives the bitmap's entry these fields.
    fn entry(&self, fields: Fields, freed: &mut Freed) -> Result<Edit, TxnError> {
        let before = self.wanted.before.clone();
        if !self.wanted.removed {
            return Ok(match before {
                Some(place) => Edit {
                    removed: None,
                    set: Some((place, fields)),
                    put: None,
                },
                None => Edit {
                    removed: None,
                    set: None,
                    put: Some((None, directory::encode(fields, self.name)?)),
                },
            });
        }
        // QEMU looks for the name again when it stores: another bitmap of that name, in use, is replaced.
        let after = before.as_ref().map_or(0, |p| p.at.saturating_add(p.bytes));
        let other = directory::find(self.storage, self.header, self.name, after)?;
        if let Some(place) = &other {
            freed.next_group();
            freed.add_bitmap(self.storage, self.header, &place.bitmap)?;
        }
        Ok(Edit {
            removed: before,
            set: None,
            put: Some((other, directory::encode(fields, self.name)?)),
        })
    }
}

/// A change of the directory.
struct Edit {
    /// An entry that goes.
    removed: Option<Place>,
    /// An entry that stays where it is.
    set: Option<(Place, Fields)>,
    /// A new entry: instead of another one behind `removed`, or at the end.
    put: Option<(Option<Place>, Vec<u8>)>,
}

impl Edit {
    /// Edits the directory of `count` bitmaps; gives how many it has then.
    fn apply(self, directory: &mut Vec<u8>, mut count: u32) -> Result<u32, TxnError> {
        if let Some((place, fields)) = self.set {
            directory::set_fields(directory, &place, fields)?;
        }
        match self.put {
            Some((Some(place), entry)) => directory::replace(directory, &place, &entry)?,
            Some((None, entry)) => {
                directory
                    .try_reserve_exact(entry.len())
                    .map_err(|_| TxnError::OutOfMemory)?;
                directory.extend_from_slice(&entry);
                count = count.saturating_add(1);
            }
            None => {}
        }
        if let Some(place) = self.removed {
            directory::replace(directory, &place, &[])?;
            count = count.saturating_sub(1);
        }
        Ok(count)
    }
}
