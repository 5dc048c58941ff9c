//! L2 tables: references counted, entries judged.
//!
//! Ordinary entries (standard, aligned, inside the file, in a page that exists)
//! take the fast path, a run at a time. Every other entry is judged on its own.

use crate::counter::Counter;
use crate::pages::{PAGE_BITS, PAGE_CLUSTERS, Page};
use crate::run::Run;
use crate::{CheckError, Reporter};
use instar_qcow2::bits;
use instar_qcow2::entries::{
    ALL_ZEROS, COPIED, CompressedDescriptor, L2Entry, OFFSET_MASK, SubclusterBitmap,
};
use instar_storage::Storage;
use instar_storage::bytes::is_zero;

/// Reserved bits of a standard descriptor that qemu-img complains of; bit 0 is
/// not among them even where L2 entries are extended.
const RESERVED: u64 = bits(1, 8) | bits(56, 61);

/// What a standard L2 entry stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No host cluster.
    Unallocated,
    /// Reads as zeros, no host cluster.
    ZeroPlain,
    /// A host cluster, whether or not it reads as zeros.
    Allocated,
}

/// One entry of an L2 table.
#[derive(Clone, Copy)]
struct Slot {
    /// Its place in the table.
    index: usize,
    entry: L2Entry,
    /// The second half of an extended entry.
    map: Option<SubclusterBitmap>,
}

/// Guest clusters met in one L2 table.
#[derive(Default)]
struct Tally {
    allocated: u64,
    fragmented: u64,
    compressed: u64,
    /// Where the next cluster would be if it followed; 0 before the first.
    next: u64,
    copied_wrong: bool,
}

impl Tally {
    #[inline]
    fn add(&mut self, offset: u64, cluster_bytes: u64) {
        self.allocated = self.allocated.wrapping_add(1);
        self.fragmented = self
            .fragmented
            .wrapping_add(u64::from(self.next != 0 && self.next != offset));
        self.next = offset.wrapping_add(cluster_bytes);
    }
}

/// What the fast path needs to know.
struct Fast<T> {
    cluster_bits: u32,
    /// Bits that an ordinary entry may have: offset, aligned, and COPIED.
    allowed: u64,
    /// Clusters of the page that lie in the file.
    limit: u64,
    max: T,
    active: bool,
}

/// Entries that [`consecutive_run`] judges at once.
const STRIDE: usize = 16;

/// Counts entries that name one cluster after the other, as in an image written
/// from start to end, by strides; gives how many. Stops at the first stride that
/// is not so.
#[inline]
fn consecutive_run<T: Counter>(
    page: &mut Page<T>,
    entries: &[[u8; 8]],
    fast: &Fast<T>,
    tally: &mut Tally,
) -> usize {
    let base = page.number << PAGE_BITS;
    let cluster_bytes = 1_u64 << fast.cluster_bits;
    let limit = usize::try_from(fast.limit).unwrap_or(0);
    let mut done = 0_usize;
    for stride in entries.as_chunks::<STRIDE>().0 {
        let [first, ..] = stride;
        let first = u64::from_be_bytes(*first);
        let offset = first & !COPIED;
        let at = (offset >> fast.cluster_bits).wrapping_sub(base);
        let mut expected = first;
        let mut differ = 0;
        for bytes in stride {
            differ |= u64::from_be_bytes(*bytes) ^ expected;
            expected = expected.wrapping_add(cluster_bytes);
        }
        if differ != 0 || first & !fast.allowed != 0 || offset == 0 {
            break;
        }
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let end = at.saturating_add(STRIDE);
        if end > limit {
            break;
        }
        let (Some(counted), Some(stored)) =
            (page.counted.get_mut(at..end), page.stored.get(at..end))
        else {
            break;
        };
        if counted
            .iter()
            .fold(false, |full, count| full | (*count == fast.max))
        {
            break;
        }
        for count in counted {
            *count = count.next();
        }
        if fast.active {
            let copied = first & COPIED != 0;
            tally.copied_wrong |= stored
                .iter()
                .fold(false, |wrong, count| wrong | ((*count == T::ONE) != copied));
            tally.add(offset, cluster_bytes);
            tally.allocated = tally.allocated.wrapping_add(STRIDE as u64).wrapping_sub(1);
            tally.next = offset.wrapping_add(cluster_bytes.wrapping_mul(STRIDE as u64));
        }
        done = done.wrapping_add(STRIDE);
    }
    done
}

/// The first word of an entry, and the second of an extended one, else 0.
#[inline]
fn words<const N: usize>(bytes: &[u8; N]) -> (u64, u64) {
    let (words, _) = bytes.as_chunks::<8>();
    let word = |at: usize| words.get(at).map_or(0, |word| u64::from_be_bytes(*word));
    (word(0), word(1))
}

/// Counts a run of ordinary and empty entries of one page; gives how many.
#[inline]
fn fast_run<T: Counter, const N: usize>(
    page: &mut Page<T>,
    entries: &[[u8; N]],
    fast: &Fast<T>,
    tally: &mut Tally,
) -> usize {
    let base = page.number << PAGE_BITS;
    let cluster_bytes = 1_u64 << fast.cluster_bits;
    let (counted, stored) = (&mut page.counted, &page.stored);
    let mut done = 0_usize;
    for bytes in entries {
        let (entry, map) = words(bytes);
        if entry != 0 {
            let offset = entry & !COPIED;
            let at = (offset >> fast.cluster_bits).wrapping_sub(base);
            let ordinary = entry & !fast.allowed == 0 && offset != 0 && at < fast.limit;
            if !ordinary || SubclusterBitmap(map).conflicting() != 0 {
                break;
            }
            // `limit` is at most PAGE_CLUSTERS, so the remainder changes nothing.
            let at = usize::try_from(at).unwrap_or(0) % PAGE_CLUSTERS;
            let (Some(count), Some(stored)) = (counted.get_mut(at), stored.get(at)) else {
                break;
            };
            if *count == fast.max {
                break;
            }
            *count = count.next();
            if fast.active {
                tally.copied_wrong |= (*stored == T::ONE) != (entry & COPIED != 0);
                tally.add(offset, cluster_bytes);
            }
        } else if map != 0 {
            break;
        }
        done = done.wrapping_add(1);
    }
    done
}

/// Counts what it can of `entries` in one page; gives how many.
#[inline]
fn run_in_page<T: Counter, const N: usize>(
    page: &mut Page<T>,
    entries: &[[u8; N]],
    fast: &Fast<T>,
    tally: &mut Tally,
) -> usize {
    let strides = if N == 8 {
        consecutive_run(page, entries.as_flattened().as_chunks().0, fast, tally)
    } else {
        0
    };
    let rest = entries.get(strides..).unwrap_or_default();
    strides.wrapping_add(fast_run(page, rest, fast, tally))
}

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Counts what an L2 table refers to.
    pub(crate) fn count_l2(&mut self, table: &[u8], active: bool) -> Result<(), CheckError> {
        if is_zero(table) {
            self.holes.saw(true);
            return Ok(());
        }
        self.holes.saw(false);
        let mut tally = Tally::default();
        if self.header.incompatible.extended_l2() {
            self.count_table(table.as_chunks::<16>().0, active, &mut tally)?;
        } else {
            self.count_table(table.as_chunks::<8>().0, active, &mut tally)?;
        }
        self.copied_wrong |= tally.copied_wrong;
        if active && self.out.first_pass {
            let sum = &mut self.out.sum;
            sum.allocated_clusters = sum.allocated_clusters.saturating_add(tally.allocated);
            sum.fragmented_clusters = sum.fragmented_clusters.saturating_add(tally.fragmented);
            sum.compressed_clusters = sum.compressed_clusters.saturating_add(tally.compressed);
        }
        Ok(())
    }

    /// Counts entries of `N` bytes: runs of ordinary ones, and others singly.
    fn count_table<const N: usize>(
        &mut self,
        entries: &[[u8; N]],
        active: bool,
        tally: &mut Tally,
    ) -> Result<(), CheckError> {
        let data_file = self.header.incompatible.external_data_file();
        let bits = self.header.cluster_bits;
        let allowed = COPIED | (OFFSET_MASK & !bits.mask());
        let (cluster_bits, max) = (bits.get(), self.max);
        let mut fast = Fast {
            cluster_bits,
            allowed,
            limit: 0,
            max,
            active,
        };
        let mut rest = entries;
        while let Some(first) = rest.first() {
            let (entry, map) = words(first);
            let cluster = (entry & !COPIED) >> bits.get();
            let mut done = 0;
            if entry == 0 && map == 0 {
                done = 1;
            } else if entry & !fast.allowed == 0 && cluster < self.clusters && !data_file {
                let number = cluster >> PAGE_BITS;
                if let Some(page) = self.pages.get_or_make(number)? {
                    let left = self.clusters.saturating_sub(number << PAGE_BITS);
                    fast.limit = left.min(PAGE_CLUSTERS as u64);
                    done = run_in_page(page, rest, &fast, tally);
                }
            }
            if done == 0 {
                let index = entries.len().saturating_sub(rest.len());
                let map = (N == 16).then_some(SubclusterBitmap(map));
                self.count_entry(
                    Slot {
                        index,
                        entry: L2Entry(entry),
                        map,
                    },
                    active,
                    tally,
                )?;
                done = 1;
            }
            rest = rest.get(done..).unwrap_or_default();
        }
        Ok(())
    }

    /// Judges one entry and counts what it refers to.
    fn count_entry(
        &mut self,
        slot: Slot,
        active: bool,
        tally: &mut Tally,
    ) -> Result<(), CheckError> {
        let Slot { entry, map, .. } = slot;
        if let Some(data) = entry.compressed(self.header.cluster_bits) {
            return self.count_compressed(slot, data, tally);
        }
        if entry.0 & RESERVED != 0 {
            self.out.corruption(format_args!(
                "ERROR found l2 entry with reserved bits set: {:x}",
                entry.0
            ));
        }
        match self.kind(entry) {
            Kind::Allocated => self.count_allocated(slot, active, tally),
            Kind::Unallocated if map.is_some_and(|map| map.allocated() != 0) => {
                self.out.corruption(format_args!(
                    "ERROR: Unallocated cluster has non-zero subcluster allocation map"
                ));
                Ok(())
            }
            Kind::Unallocated | Kind::ZeroPlain => Ok(()),
        }
    }

    /// What a standard entry stands for. In an external data file offset 0 is a
    /// place like any other, and COPIED tells it from "unallocated".
    pub fn kind(&self, entry: L2Entry) -> Kind {
        let has_offset = entry.host_offset().get() != 0;
        let zero_flag = entry.0 & ALL_ZEROS != 0 && !self.header.incompatible.extended_l2();
        let at_zero = self.header.incompatible.external_data_file() && entry.is_copied();
        match (zero_flag, has_offset) {
            (_, true) => Kind::Allocated,
            (true, false) => Kind::ZeroPlain,
            (false, false) if at_zero => Kind::Allocated,
            (false, false) => Kind::Unallocated,
        }
    }

    fn count_allocated(
        &mut self,
        slot: Slot,
        active: bool,
        tally: &mut Tally,
    ) -> Result<(), CheckError> {
        let Slot { entry, map, .. } = slot;
        let offset = entry.host_offset().get();
        let bits = self.header.cluster_bits;
        if map.is_some_and(|map| map.conflicting() != 0) {
            self.out.corruption(format_args!(
                "ERROR offset={offset:x}: Allocated cluster has corrupted subcluster allocation bitmap"
            ));
        }
        if !bits.is_aligned(offset) {
            let has_data = map.map_or(entry.0 & ALL_ZEROS == 0, |map| map.allocated() != 0);
            let kind = if has_data { "Data" } else { "Preallocated" };
            if self.mend && !has_data {
                // It reads as zeros whatever the offset says, which is dropped.
                self.out.mended(format_args!(
                    "Repairing offset={offset:x}: {kind} cluster is not properly aligned; L2 entry corrupted."
                ));
                return Ok(());
            }
            self.out.corruption(format_args!(
                "ERROR offset={offset:x}: {kind} cluster is not properly aligned; L2 entry corrupted."
            ));
        }
        tally.add(offset, bits.size_bytes());
        if self.header.incompatible.external_data_file() {
            tally.copied_wrong |= active && !entry.is_copied();
            return Ok(());
        }
        self.count_region(offset, bits.size_bytes())?;
        if active {
            self.note_copied(offset >> bits.get(), entry.is_copied());
        }
        Ok(())
    }

    fn count_compressed(
        &mut self,
        slot: Slot,
        data: CompressedDescriptor,
        tally: &mut Tally,
    ) -> Result<(), CheckError> {
        let Slot { index, entry, map } = slot;
        let offset = data.offset.get();
        if entry.is_copied() && self.mend {
            self.out.mended(format_args!(
                "Repairing: coffset=0x{offset:x}: copied flag must never be set for compressed clusters"
            ));
        } else if entry.is_copied() {
            self.out.corruption(format_args!(
                "ERROR: coffset=0x{offset:x}: copied flag must never be set for compressed clusters"
            ));
        }
        let plain = entry.0 & !COPIED;
        if self.header.incompatible.external_data_file() {
            self.out.corruption(format_args!(
                "ERROR compressed cluster {index} with data file, entry=0x{plain:x}"
            ));
            self.out.found.uncounted = true;
            return Ok(());
        }
        if map.is_some_and(|map| map.0 != 0) {
            self.out.corruption(format_args!(
                "ERROR compressed cluster {index} with non-zero subcluster allocation bitmap, entry=0x{plain:x}"
            ));
            self.out.found.uncounted = true;
            return Ok(());
        }
        self.count_region(offset, data.size_bytes())?;
        tally.allocated = tally.allocated.saturating_add(1);
        tally.compressed = tally.compressed.saturating_add(1);
        tally.fragmented = tally.fragmented.saturating_add(1);
        Ok(())
    }
}
