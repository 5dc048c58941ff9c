//! Goes through L2 entries for runs.

use crate::RunKind;
use crate::entry::{Place, Rules, State};
use crate::error::{Corruption, DataError};
use crate::tables::{Found, Tables};
use instar_qcow2::entries::{L2Entry, OFFSET_MASK, SubclusterBitmap};

/// A run of one layer, whatever lies below.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LayerRun {
    pub offset: u64,
    pub len: u64,
    pub state: State,
    /// Right behind it is an entry that QEMU refuses even for a question that begins before it.
    pub then: Option<DataError>,
}

impl LayerRun {
    /// The run from `offset` on, `None` if that is not in it.
    pub(crate) fn from(&self, offset: u64) -> Option<Self> {
        let by = offset.checked_sub(self.offset)?;
        let len = self.len.checked_sub(by).filter(|len| *len > 0)?;
        Some(Self {
            offset,
            len,
            state: self.state.advanced(by),
            then: self.then,
        })
    }
}

/// The run from `offset` on, whose slice `tables` holds, as far as they go.
///
/// # Errors
/// What is wrong at `offset`; the run ends before damage further on.
pub(crate) fn scan(rules: Rules, tables: &Tables, offset: u64) -> Result<LayerRun, DataError> {
    let mut scan = Scan {
        rules,
        tables,
        run: LayerRun {
            offset,
            len: 0,
            state: State::of(RunKind::Unallocated),
            then: None,
        },
    };
    let first = tables.geometry().slice_of(offset);
    for slice in first..tables.end() {
        match scan.slice(slice) {
            Ok(true) => {}
            Err(e) if scan.run.len == 0 => return Err(e),
            Err(e) => {
                let refused = slice == first && is_invalid_entry(&e);
                scan.run.then = Some(e).filter(|_| refused);
                break;
            }
            Ok(false) => break,
        }
    }
    Ok(scan.run)
}

/// Of other damage, only whoever asks for its place is told.
const fn is_invalid_entry(error: &DataError) -> bool {
    matches!(error, DataError::Corrupt(Corruption::InvalidEntry { .. }))
}

/// A run that is made longer.
struct Scan<'t> {
    rules: Rules,
    tables: &'t Tables,
    run: LayerRun,
}

impl Scan<'_> {
    /// First byte after the run.
    const fn end(&self) -> u64 {
        self.run.offset.saturating_add(self.run.len)
    }

    /// Adds `len` bytes in `state` to the run; false if it ends before them.
    fn push(&mut self, len: u64, state: State) -> bool {
        if self.run.len == 0 {
            self.run.state = state;
        } else if matches!(state.kind, RunKind::Compressed { .. })
            || self.run.state.advanced(self.run.len) != state
        {
            return false;
        }
        self.run.len = self.run.len.saturating_add(len);
        true
    }

    /// Adds what `slice` has; false if the run ends before its end.
    fn slice(&mut self, slice: u64) -> Result<bool, DataError> {
        let geometry = self.tables.geometry();
        let start = slice.saturating_mul(geometry.slice_span());
        match self.tables.get(slice)? {
            Found::Unallocated => {
                let end = start.saturating_add(geometry.slice_span());
                let len = end.saturating_sub(self.end());
                Ok(self.push(len, State::of(RunKind::Unallocated)))
            }
            Found::Entries { bytes, l2_offset } => self.entries(bytes, l2_offset, start),
        }
    }

    /// Adds what the entries say of a slice that begins at `start`.
    fn entries(&mut self, bytes: &[u8], l2_offset: u64, start: u64) -> Result<bool, DataError> {
        let bits = self.rules.cluster_bits.get();
        let index_before = (start & self.tables.geometry().table_span.wrapping_sub(1)) >> bits;
        let mut cluster = self.end().saturating_sub(start) >> bits;
        while let Some((entry, bitmap)) = self.entry(bytes, cluster) {
            let place = Place {
                l2_offset,
                l2_index: index_before.saturating_add(cluster),
                guest_offset: start.saturating_add(cluster << bits),
            };
            if !self.cluster(entry, bitmap, &place)? {
                return Ok(false);
            }
            cluster = cluster.saturating_add(1);
            cluster = cluster.saturating_add(self.repeated(bytes, cluster, (entry, bitmap)));
        }
        Ok(true)
    }

    /// Adds the clusters from `cluster` on whose entries say the same as the good one `before` them, of the
    /// place right behind its cluster if it has one; gives their number. It compares what [`Scan::cluster`]
    /// would decode, so an entry that differs may yet belong to the run.
    fn repeated(
        &mut self,
        bytes: &[u8],
        cluster: u64,
        (entry, bitmap): (L2Entry, SubclusterBitmap),
    ) -> u64 {
        if entry.is_compressed() || !is_uniform(bitmap) {
            return 0;
        }
        let bits = self.rules.cluster_bits.get();
        let (step, most) = if self.run.state.has_place() {
            let left = OFFSET_MASK.saturating_sub(entry.host_offset().get());
            (self.rules.cluster_bits.size_bytes(), left >> bits)
        } else {
            (0, u64::MAX)
        };
        let at = usize::try_from(cluster).unwrap_or(usize::MAX);
        let mut expected = entry.0;
        let mut is_next = |raw: &[u8; 8]| {
            expected = expected.wrapping_add(step);
            u64::from_be_bytes(*raw) == expected
        };
        let same = if self.rules.extended {
            let bitmap = bitmap.0.to_be_bytes();
            let entries = bytes.as_chunks::<8>().0.as_chunks::<2>().0;
            let rest = entries.get(at..).unwrap_or_default().iter();
            rest.take_while(|[raw, map]| *map == bitmap && is_next(raw))
                .count()
        } else {
            let entries = bytes.as_chunks::<8>().0;
            let rest = entries.get(at..).unwrap_or_default().iter();
            rest.take_while(|raw| is_next(raw)).count()
        };
        let same = (same as u64).min(most);
        self.run.len = self.run.len.saturating_add(same << bits);
        same
    }

    fn entry(&self, bytes: &[u8], cluster: u64) -> Option<(L2Entry, SubclusterBitmap)> {
        let index = usize::try_from(cluster).ok()?;
        if !self.rules.extended {
            let entry = bytes.as_chunks::<8>().0.get(index)?;
            return Some((L2Entry::from_be_bytes(*entry), SubclusterBitmap(0)));
        }
        let (entry, bitmap) = bytes.as_chunks::<16>().0.get(index)?.split_first_chunk()?;
        Some((
            L2Entry::from_be_bytes(*entry),
            SubclusterBitmap::from_be_bytes(*bitmap.first_chunk()?),
        ))
    }

    /// Adds what an entry says of its cluster. A compressed cluster is one unit, whatever its bitmap.
    fn cluster(
        &mut self,
        entry: L2Entry,
        bitmap: SubclusterBitmap,
        place: &Place,
    ) -> Result<bool, DataError> {
        let size = self.rules.cluster_bits.size_bytes();
        let end = place.guest_offset.saturating_add(size);
        let bits = if entry.is_compressed() {
            self.rules.cluster_bits.get()
        } else {
            self.rules.unit_bits()
        };
        while self.end() < end {
            let unit = self.end().saturating_sub(place.guest_offset) >> bits;
            let start = place.guest_offset.saturating_add(unit << bits);
            let within = self.end().saturating_sub(start);
            let state = self.rules.state(entry, bitmap, unit, place)?;
            let len = (1_u64 << bits).saturating_sub(within);
            if !self.push(len, state.advanced(within)) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Whether all subclusters are in one state.
const fn is_uniform(bitmap: SubclusterBitmap) -> bool {
    matches!(
        (bitmap.allocated(), bitmap.zeros()),
        (0, 0 | 0xffff_ffff) | (0xffff_ffff, 0)
    )
}
