//! A bitmap that is merged, read piece by piece.

use crate::span::Span;
use crate::zeroed;
use alloc::vec::Vec;
use instar_plan_txn::TxnError;
use instar_qcow2::bitmaps::{Bitmap, BitmapTableEntry};
use instar_qcow2::{Header, HostOffset};
use instar_storage::Storage;

/// Table entries read at once.
const WINDOW_ENTRIES: u64 = 4096;
/// Bytes of pieces that all readers hold together, unless they are more than a thousand.
pub(crate) const PIECES_BYTES: u64 = 4 << 20;
/// The largest piece of one reader.
const MAX_PIECE_BYTES: u64 = 1 << 20;
/// The smallest one, unless the cluster is smaller.
const MIN_PIECE_BYTES: u64 = 4 << 10;

/// The entries of a bitmap table, of which a window is in memory.
#[derive(Debug)]
pub(crate) struct Table<'s, S> {
    storage: &'s S,
    header: &'s Header,
    offset: HostOffset,
    size: u64,
    /// The first entry of the window.
    first: u64,
    window: Vec<u8>,
}

impl<'s, S: Storage> Table<'s, S> {
    /// The table of `bitmap`.
    pub(crate) const fn new(storage: &'s S, header: &'s Header, bitmap: &Bitmap) -> Self {
        Self {
            storage,
            header,
            offset: bitmap.table_offset,
            size: bitmap.table_size as u64,
            first: 0,
            window: Vec::new(),
        }
    }

    /// How many entries it has.
    pub(crate) const fn len(&self) -> u64 {
        self.size
    }

    /// Entry `index`; past the end, one without a cluster. `None`: QEMU does not take it.
    pub(crate) fn get(&mut self, index: u64) -> Result<Option<BitmapTableEntry>, TxnError> {
        if index >= self.size {
            return Ok(Some(BitmapTableEntry::default()));
        }
        let held = (self.window.len() / 8) as u64;
        if index < self.first || index >= self.first.saturating_add(held) {
            self.load(index)?;
        }
        let at = usize::try_from(index.saturating_sub(self.first)).unwrap_or(usize::MAX);
        let raw = self.window.as_chunks::<8>().0.get(at).copied();
        let entry = BitmapTableEntry::from_be_bytes(raw.unwrap_or_default());
        Ok(entry.is_valid(self.header).then_some(entry))
    }

    fn load(&mut self, index: u64) -> Result<(), TxnError> {
        let count = self.size.saturating_sub(index).min(WINDOW_ENTRIES);
        let bytes = count.saturating_mul(8);
        if self.window.len() as u64 != bytes {
            self.window = zeroed(bytes)?;
        }
        let offset = self.offset.get().checked_add(index.saturating_mul(8));
        let offset = offset.ok_or(TxnError::TooLarge)?;
        self.first = index;
        if let Err(e) = self.storage.read_at(offset, &mut self.window) {
            self.window.clear();
            return Err(e.into());
        }
        Ok(())
    }

    /// Entry `index` of a table that was judged when the image was opened.
    pub(crate) fn sound(&mut self, index: u64) -> Result<BitmapTableEntry, TxnError> {
        self.get(index)?.ok_or(TxnError::Corrupt {
            what: "bitmap table",
        })
    }
}

/// A merge source.
#[derive(Debug)]
pub(crate) struct Reader<'s, S> {
    table: Table<'s, S>,
    granularity_bits: u8,
    piece_bytes: u64,
    /// Where the piece in memory lies in the file.
    piece_at: Option<u64>,
    piece: Vec<u8>,
}

impl<'s, S: Storage> Reader<'s, S> {
    /// The source `bitmap`, one of `readers`.
    pub(crate) fn new(
        storage: &'s S,
        header: &'s Header,
        bitmap: &Bitmap,
        readers: usize,
    ) -> Result<Self, TxnError> {
        let readers = u64::try_from(readers).unwrap_or(u64::MAX);
        let share = PIECES_BYTES.checked_div(readers).unwrap_or(0);
        let share = share.clamp(MIN_PIECE_BYTES, MAX_PIECE_BYTES);
        let most = 1_u64 << share.ilog2();
        let piece_bytes = most.min(header.cluster_bits.size_bytes());
        Ok(Self {
            table: Table::new(storage, header, bitmap),
            granularity_bits: bitmap.granularity_bits,
            piece_bytes,
            piece_at: None,
            piece: zeroed(piece_bytes)?,
        })
    }

    /// Clusters of the destination, at most, in which this source can set a bit.
    pub(crate) fn touches(&mut self, dest_bits: u8, dest_cluster: u64) -> Result<u64, TxnError> {
        let own = self
            .cluster_bytes()
            .checked_shl(self.granularity_bits.into());
        let dest = dest_cluster
            .checked_shl(dest_bits.into())
            .unwrap_or(u64::MAX);
        let each = own
            .unwrap_or(u64::MAX)
            .div_ceil(dest.max(1))
            .saturating_add(1);
        let mut clusters = 0_u64;
        for index in 0..self.table.len() {
            let entry = self.table.sound(index)?;
            if entry.host_offset().get() != 0 || entry.all_ones() {
                clusters = clusters.saturating_add(each);
            }
        }
        Ok(clusters)
    }

    fn cluster_bytes(&self) -> u64 {
        self.table.header.cluster_bits.size_bytes()
    }

    /// Sets the bits of `span` that this source has; true if it may have set one.
    pub(crate) fn merge_into(&mut self, span: &mut Span<'_>) -> Result<bool, TxnError> {
        let bits = self.granularity_bits;
        let (mut bit, end) = span.covered(bits);
        let per_cluster = self.cluster_bytes().saturating_mul(8);
        let mut any = false;
        while bit < end {
            let index = bit.checked_div(per_cluster).unwrap_or(0);
            let first = index.saturating_mul(per_cluster);
            let cluster_end = first.saturating_add(per_cluster).min(end);
            let entry = self.table.sound(index)?;
            let offset = entry.host_offset().get();
            if offset == 0 {
                if entry.all_ones() {
                    span.set(bit, cluster_end, bits);
                    any = true;
                }
                bit = cluster_end;
                continue;
            }
            any = true;
            let in_cluster = bit.saturating_sub(first) / 8;
            let start = in_cluster & !self.piece_bytes.saturating_sub(1);
            self.load(offset.saturating_add(start))?;
            let piece_first = first.saturating_add(start.saturating_mul(8));
            let piece_end = piece_first.saturating_add(self.piece_bytes.saturating_mul(8));
            let to = piece_end.min(cluster_end);
            span.merge(&self.piece, piece_first, bit, to, bits);
            bit = to;
        }
        Ok(any)
    }

    fn load(&mut self, offset: u64) -> Result<(), TxnError> {
        if self.piece_at == Some(offset) {
            return Ok(());
        }
        self.piece_at = None;
        self.table.storage.read_at(offset, &mut self.piece)?;
        self.piece_at = Some(offset);
        Ok(())
    }
}
