//! Refcounts that the image stores: qcow2 "Host cluster management".

use crate::counter::Counter;
use crate::pages::{PAGE_BITS, PAGE_CLUSTERS};
use crate::run::{BUFFER_BYTES, Run, TABLE_BYTES, check_range, zeroed};
use crate::{CheckError, MessageKind, Reporter};
use alloc::vec::Vec;
use instar_qcow2::entries::RefcountTableEntry;
use instar_storage::bytes::is_zero;
use instar_storage::{Read, Storage, StorageError};

/// Clusters whose refcounts cannot be read.
#[derive(Clone, Copy, Debug)]
pub struct BadBlock {
    /// First cluster.
    pub start: u64,
    /// First cluster after.
    pub end: u64,
    /// Why.
    pub fault: Fault,
}

/// Why a refcount cannot be read.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The refcount block's offset, from this entry, is not cluster aligned.
    Unaligned {
        /// As the refcount table says.
        offset: u64,
        /// The entry's place in the table.
        index: u64,
    },
    /// The store failed.
    Read {
        /// Linux errno.
        errno: u32,
    },
}

/// Bytes of a line of [`Lines`].
const LINE_BYTES: usize = 1 << LINE_BITS;
/// The logarithm of [`LINE_BYTES`].
const LINE_BITS: u32 = 12;
/// Lines kept.
const LINES: usize = 64;

/// A small cache for refcounts looked up one by one.
pub(crate) struct Lines {
    at: Vec<u64>,
    bytes: Vec<u8>,
}

impl Lines {
    pub(crate) fn new() -> Result<Self, CheckError> {
        let mut at = Vec::new();
        at.try_reserve_exact(LINES)
            .map_err(|_| CheckError::OutOfMemory)?;
        at.resize(LINES, u64::MAX);
        Ok(Self {
            at,
            bytes: Vec::new(),
        })
    }

    /// `N` bytes at `offset`, which is a multiple of `N`.
    fn get<const N: usize, S: Storage>(
        &mut self,
        storage: &S,
        offset: u64,
    ) -> Result<[u8; N], StorageError> {
        check_range(offset, N as u64)?;
        if self.bytes.is_empty() {
            self.bytes.resize(LINES.saturating_mul(LINE_BYTES), 0);
        }
        let line = offset >> LINE_BITS;
        let place = usize::try_from(line).unwrap_or(0) % LINES;
        let (lines, _) = self.bytes.as_chunks_mut::<LINE_BYTES>();
        let (Some(at), Some(bytes)) = (self.at.get_mut(place), lines.get_mut(place)) else {
            return Ok([0; N]);
        };
        if *at != line {
            *at = u64::MAX;
            storage.read_at(line.saturating_mul(LINE_BYTES as u64), bytes)?;
            *at = line;
        }
        let from = usize::try_from(offset).unwrap_or(0) % LINE_BYTES;
        Ok(bytes
            .get(from..)
            .and_then(|rest| rest.first_chunk())
            .copied()
            .unwrap_or([0; N]))
    }
}

/// A refcount block to be loaded.
struct Block {
    /// First cluster it speaks of.
    start: u64,
    offset: u64,
}

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Loads the stored refcounts of the window's clusters.
    ///
    /// # Errors
    /// The refcount table cannot be read, or the reporter wants the end.
    pub fn load_stored(&mut self) -> Result<(), CheckError> {
        let first_cluster = self.pages.first() << PAGE_BITS;
        self.bad.clear();
        let mut index = first_cluster >> self.block_bits();
        let entries = (self.header.refcount_table_bytes() / 8)
            .min((self.clusters >> self.block_bits()).saturating_add(1));
        let mut table = zeroed(TABLE_BYTES.min(entries.saturating_sub(index).saturating_mul(8)))?;
        let mut buf = zeroed(self.block_buffer_bytes(entries.saturating_sub(index)))?;
        let mut blocks: Vec<Block> = Vec::new();
        while index < entries {
            let n = (entries.saturating_sub(index)).min(TABLE_BYTES / 8);
            let piece = table
                .get_mut(..usize::try_from(n.saturating_mul(8)).unwrap_or(0))
                .unwrap_or_default();
            let at = self
                .header
                .refcount_table_offset
                .get()
                .saturating_add(index.saturating_mul(8));
            self.read(at, piece)
                .map_err(|e| CheckError::Failed { errno: e.errno })?;
            for (entry, index) in piece.as_chunks::<8>().0.iter().zip(index..) {
                self.plan_block(
                    RefcountTableEntry::from_be_bytes(*entry),
                    index,
                    &mut blocks,
                    &mut buf,
                )?;
            }
            self.load_blocks(&mut blocks, &mut buf)?;
            index = index.saturating_add(n);
            self.out.progress(0)?;
        }
        self.bad.sort_unstable_by_key(|bad| bad.start);
        Ok(())
    }

    /// The logarithm of how many refcounts a block holds.
    const fn block_bits(&self) -> u32 {
        self.header
            .cluster_bits
            .get()
            .saturating_add(3)
            .saturating_sub(self.header.refcount_order)
    }

    fn block_buffer_bytes(&self, entries: u64) -> u64 {
        let block = self.header.cluster_bits.size_bytes();
        block.saturating_mul(entries).min(BUFFER_BYTES).max(block)
    }

    /// Notes a block for loading, and loads when the buffer is full.
    fn plan_block(
        &mut self,
        entry: RefcountTableEntry,
        index: u64,
        blocks: &mut Vec<Block>,
        buf: &mut [u8],
    ) -> Result<(), CheckError> {
        let (offset, per_block) = (
            entry.block_offset().get(),
            self.header.refcounts_per_block(),
        );
        let start = index.saturating_mul(per_block);
        if offset == 0 {
            return Ok(());
        }
        let end = start.saturating_add(per_block);
        let bytes = self.header.cluster_bits.size_bytes();
        if !self.header.cluster_bits.is_aligned(offset) {
            self.add_bad(BadBlock {
                start,
                end,
                fault: Fault::Unaligned { offset, index },
            })?;
        } else if let Err(e) = check_range(offset, bytes) {
            self.add_bad(BadBlock {
                start,
                end,
                fault: Fault::Read { errno: e.errno },
            })?;
        } else if !self.holes.are_zeros(self.storage, offset, bytes) {
            blocks.push(Block { start, offset });
            if (blocks.len() as u64)
                .saturating_add(1)
                .saturating_mul(bytes)
                > buf.len() as u64
            {
                self.load_blocks(blocks, buf)?;
            }
        }
        Ok(())
    }

    fn add_bad(&mut self, bad: BadBlock) -> Result<(), CheckError> {
        self.bad
            .try_reserve(1)
            .map_err(|_| CheckError::OutOfMemory)?;
        self.bad.push(bad);
        Ok(())
    }

    /// Reads the planned blocks at once; if that fails, one by one.
    fn load_blocks(&mut self, blocks: &mut Vec<Block>, buf: &mut [u8]) -> Result<(), CheckError> {
        let bytes = usize::try_from(self.header.cluster_bits.size_bytes()).unwrap_or(usize::MAX);
        let mut reads: Vec<Read<'_>> = Vec::new();
        for (block, buf) in blocks.iter().zip(buf.chunks_exact_mut(bytes)) {
            reads.push(Read {
                offset: block.offset,
                buf,
            });
        }
        let read = self.storage.read_batch(&mut reads);
        drop(reads);
        for (block, buf) in blocks.drain(..).zip(buf.chunks_exact_mut(bytes)) {
            if let Err(e) = read.or_else(|_| self.storage.read_at(block.offset, buf)) {
                let end = block
                    .start
                    .saturating_add(self.header.refcounts_per_block());
                self.add_bad(BadBlock {
                    start: block.start,
                    end,
                    fault: Fault::Read { errno: e.errno },
                })?;
                continue;
            }
            self.decode_block(block.start, buf)?;
        }
        self.out.progress(0)
    }

    /// Takes a block's refcounts into the window's pages.
    fn decode_block(&mut self, start: u64, bytes: &[u8]) -> Result<(), CheckError> {
        let order = self.header.refcount_order;
        let per_block = self.header.refcounts_per_block();
        // A block holds a whole number of pages, or a page a whole number of blocks.
        let run = per_block.min(PAGE_CLUSTERS as u64);
        let run_bytes = usize::try_from((run << order) / 8)
            .unwrap_or(usize::MAX)
            .max(1);
        let mut any = false;
        for (piece, first) in bytes
            .chunks(run_bytes)
            .zip((start..).step_by(usize::try_from(run).unwrap_or(1)))
        {
            if first > self.clusters || is_zero(piece) {
                continue;
            }
            any = true;
            let Some(page) = self.pages.get_or_make(first >> PAGE_BITS)? else {
                continue;
            };
            let at = usize::try_from(first).unwrap_or(0) % PAGE_CLUSTERS;
            let len = usize::try_from(run).unwrap_or(0);
            if let Some(out) = page
                .stored
                .get_mut(at..)
                .and_then(|rest| rest.get_mut(..len))
            {
                T::decode(order, piece, out);
            }
        }
        self.holes.saw(!any);
        Ok(())
    }

    /// Looks up one refcount in the image. `None` if it cannot be read.
    pub fn look_up(&mut self, cluster: u64) -> Option<u64> {
        let index = cluster >> self.block_bits();
        if index >= self.header.refcount_table_bytes() / 8 {
            return Some(0);
        }
        let at = self
            .header
            .refcount_table_offset
            .get()
            .saturating_add(index.saturating_mul(8));
        let entry = RefcountTableEntry::from_be_bytes(self.lines.get(self.storage, at).ok()?);
        let offset = entry.block_offset().get();
        if offset == 0 {
            return Some(0);
        }
        if !self.header.cluster_bits.is_aligned(offset) {
            self.signal(Fault::Unaligned { offset, index });
            return None;
        }
        check_range(offset, self.header.cluster_bits.size_bytes()).ok()?;
        let bit = (cluster & self.header.refcounts_per_block().saturating_sub(1))
            << self.header.refcount_order;
        let word = offset.saturating_add((bit / 64) << 3);
        let bytes: [u8; 8] = self.lines.get(self.storage, word).ok()?;
        let from = usize::try_from(bit / 8 % 8).unwrap_or(0);
        let mut out = [T::default(); 8];
        T::decode(
            self.header.refcount_order,
            bytes.get(from..).unwrap_or_default(),
            &mut out,
        );
        let nth = if self.header.refcount_order < 3 {
            (bit % 8) >> self.header.refcount_order
        } else {
            0
        };
        out.get(usize::try_from(nth).unwrap_or(0))
            .map(|count| (*count).into())
    }

    /// Says once that a refcount block is unaligned.
    pub(crate) fn signal(&mut self, fault: Fault) {
        if let (Fault::Unaligned { offset, index }, false) = (fault, self.out.signaled) {
            self.out.signaled = true;
            // In this line 0 stands without the prefix of hexadecimal numbers.
            let prefix = if index == 0 { "" } else { "0x" };
            self.out.print(
                MessageKind::Plain,
                format_args!(
                    "qcow2: Image is corrupt: Refblock offset 0x{offset:x} unaligned (reftable \
                     index: {prefix}{index:x}); further non-fatal corruption events will be suppressed"
                ),
            );
        }
    }
}
