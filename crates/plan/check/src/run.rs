//! The state of a check, and the order of its parts.
//!
//! A repair drives the same parts itself; what only it needs to know is in [`Found`].

use crate::counter::Counter;
use crate::holes::Holes;
use crate::pages::{PAGE_BITS, PAGE_CLUSTERS, Pages};
use crate::stored::{BadBlock, Lines};
use crate::{CheckError, CheckSummary, MessageKind, Reporter};
use alloc::vec::Vec;
use core::fmt::Write;
use instar_qcow2::Header;
use instar_qcow2::header::{CryptMethod, MAX_FILE_BYTES};
use instar_storage::{Storage, StorageError};

/// The most clusters of a file that `qemu-img check` takes; it fails with
/// `File too large` on more. This check has no such limit.
pub const QEMU_MAX_CLUSTERS: u64 = 0x7fff_ffff;
/// The most bytes read at once.
pub(crate) const BUFFER_BYTES: u64 = 2 << 20;
/// Bytes of L1, refcount or bitmap table read at once.
pub(crate) const TABLE_BYTES: u64 = 256 << 10;
/// EIO.
pub(crate) const EIO: u32 = 5;
/// ENOMEM.
pub(crate) const ENOMEM: u32 = 12;
/// EINVAL.
pub(crate) const EINVAL: u32 = 22;
/// EFBIG.
pub(crate) const EFBIG: u32 = 27;

/// Which references a walk counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// All of them.
    All,
    /// Those to tables: header, L1 and L2 tables, snapshot table, bitmap
    /// directory and tables, LUKS header, refcount structures.
    Tables,
    /// Those to clusters with data, of the guest or of bitmaps.
    Data,
}

/// Clusters, the first and the last.
pub type Span = (u64, u64);

/// What a check found, as a repair has to know it.
#[derive(Debug, Default)]
pub struct Found {
    /// Refcounts below the number of references.
    pub low: u64,
    /// Refcounts above the number of references.
    pub high: u64,
    /// A refcount of a cluster that has references is wrong.
    pub wrong_in_use: bool,
    /// Refcount table or blocks are damaged.
    pub broken_refcounts: bool,
    /// Something has references that could not be counted.
    pub uncounted: bool,
    /// Clusters with more references than a refcount can say, in no order.
    pub overflows: Vec<u64>,
    /// Not all of them are in `overflows`.
    pub overflows_cut: bool,
    /// Damages of L2 entries that are to be repaired.
    pub mendable: u64,
    /// What is referred to outside the file.
    pub outside: Vec<Span>,
    /// Not everything outside the file is in `outside`.
    pub outside_cut: bool,
    /// Where tables are that have one place and one user, unlike L2 tables.
    pub tables: Vec<Span>,
}

/// Entries of [`Found::outside`] and [`Found::overflows`], at most.
const MAX_OUTSIDE: usize = 1 << 16;
/// Entries of [`Found::tables`], at most: above what QEMU's limits allow.
const MAX_TABLES: usize = 1 << 19;

/// Where messages and totals go.
pub struct Out<'a, R> {
    /// Who is told.
    pub reporter: &'a mut R,
    /// The totals so far.
    pub sum: CheckSummary,
    /// What a repair has to know.
    pub found: Found,
    /// False while the image is walked again for another window.
    pub first_pass: bool,
    /// An unaligned refcount block was met when a refcount was looked up.
    pub(crate) signaled: bool,
    line: Line,
    done: u64,
    total: u64,
}

/// A line under construction, its buffer used again and again.
#[derive(Default)]
struct Line(Vec<u8>);

impl Write for Line {
    fn write_str(&mut self, s: &str) -> core::fmt::Result {
        self.0.try_reserve(s.len()).map_err(|_| core::fmt::Error)?;
        self.0.extend_from_slice(s.as_bytes());
        Ok(())
    }
}

impl<R: Reporter> Out<'_, R> {
    /// Gives a line to the reporter.
    #[cold]
    pub fn print(&mut self, kind: MessageKind, args: core::fmt::Arguments<'_>) {
        self.line.0.clear();
        // Without memory for a line, as much of it as there is goes out.
        let _ = self.line.write_fmt(args);
        self.reporter.message(kind, &self.line.0);
    }

    /// A corruption found in a table: told by the first pass only.
    #[cold]
    pub fn corruption(&mut self, args: core::fmt::Arguments<'_>) {
        if self.first_pass {
            self.sum.corruptions = self.sum.corruptions.saturating_add(1);
            self.print(MessageKind::Plain, args);
        }
    }

    /// A damage of an L2 entry that is going to be repaired.
    #[cold]
    pub(crate) fn mended(&mut self, args: core::fmt::Arguments<'_>) {
        if self.first_pass {
            self.found.mendable = self.found.mendable.saturating_add(1);
            self.print(MessageKind::Plain, args);
        }
    }

    /// A line made of texts from the image, which may be any bytes.
    #[cold]
    pub(crate) fn corruption_bytes(&mut self, parts: &[&[u8]]) {
        if self.first_pass {
            self.sum.corruptions = self.sum.corruptions.saturating_add(1);
            self.reporter.message(MessageKind::Plain, &parts.concat());
        }
    }

    /// Adds table entries that are to be done.
    pub(crate) const fn total_add(&mut self, entries: u64) {
        self.total = self.total.saturating_add(entries);
    }

    /// Counts table entries that are done.
    ///
    /// # Errors
    /// [`CheckError::Cancelled`].
    pub fn progress(&mut self, entries: u64) -> Result<(), CheckError> {
        self.done = self.done.saturating_add(entries);
        self.total = self.total.max(self.done);
        Ok(self.reporter.progress(self.done, self.total)?)
    }
}

/// A check under way.
pub struct Run<'a, S, T, R> {
    pub(crate) storage: &'a S,
    pub(crate) header: &'a Header,
    /// Where lines and totals go.
    pub out: Out<'a, R>,
    /// The counters of this window.
    pub pages: Pages<T>,
    /// Bytes of the file.
    pub(crate) file_len: u64,
    /// Clusters of the file, the last one perhaps in part.
    pub clusters: u64,
    /// Something refers to the first cluster after the file's last.
    pub grown: bool,
    /// The largest refcount that the image can store.
    pub max: T,
    /// A COPIED flag of the active tables disagrees with a refcount.
    pub copied_wrong: bool,
    /// Refcount blocks that cannot be read, ascending.
    pub bad: Vec<BadBlock>,
    pub(crate) holes: Holes,
    pub(crate) lines: Lines,
    /// What [`Run::count_all`] counts.
    pub what: What,
    /// Whether the refcount table and its blocks are counted.
    pub count_refcounts: bool,
    /// Whether the snapshot table is counted; what its entries name is in any case.
    pub count_snapshot_table: bool,
    /// What a repair can mend in L2 entries is told as such and not counted.
    pub mend: bool,
    /// Whether [`Found::tables`] and [`Found::outside`] are filled.
    pub keep_places: bool,
}

/// `len` zero bytes.
/// # Errors
/// [`CheckError::OutOfMemory`].
pub fn zeroed(len: u64) -> Result<Vec<u8>, CheckError> {
    let len = usize::try_from(len).map_err(|_| CheckError::OutOfMemory)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| CheckError::OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes)
}

/// The errno with which QEMU answers a read of these bytes before it tries.
pub(crate) fn check_range(offset: u64, len: u64) -> Result<(), StorageError> {
    match offset.checked_add(len) {
        Some(end) if end <= MAX_FILE_BYTES => Ok(()),
        _ => Err(StorageError { errno: EIO, offset }),
    }
}

/// The check with counters of type `T`.
pub(crate) fn run<S: Storage, T: Counter, R: Reporter>(
    storage: &S,
    header: &Header,
    reporter: &mut R,
) -> Result<CheckSummary, CheckError> {
    let mut run = Run::<S, T, R>::new(storage, header, reporter)?;
    run.all()?;
    Ok(run.out.sum)
}

impl<'a, S: Storage, T: Counter, R: Reporter> Run<'a, S, T, R> {
    /// A check that has read nothing yet; asks for its memory.
    ///
    /// # Errors
    /// [`CheckError::OutOfMemory`].
    pub fn new(
        storage: &'a S,
        header: &'a Header,
        reporter: &'a mut R,
    ) -> Result<Self, CheckError> {
        // QEMU sees a file as whole sectors.
        let file_len = storage
            .len_bytes()
            .checked_next_multiple_of(512)
            .unwrap_or(u64::MAX);
        let clusters = header.cluster_bits.clusters_for(file_len);
        // One cluster more: data may end in the cluster after a full last one.
        let counted = clusters.saturating_add(1);
        let fixed = BUFFER_BYTES.saturating_mul(2);
        let want = counted
            .div_ceil(PAGE_CLUSTERS as u64)
            .saturating_mul(Pages::<T>::PAGE_BYTES);
        let granted = reporter.grant(fixed.saturating_add(want));
        let pages = Pages::new(counted, granted.saturating_sub(fixed))?;
        let out = Out {
            reporter,
            sum: CheckSummary::default(),
            found: Found::default(),
            first_pass: true,
            signaled: false,
            line: Line::default(),
            done: 0,
            total: u64::from(header.l1_size).saturating_add(header.refcount_table_bytes() / 8),
        };
        Ok(Self {
            storage,
            header,
            out,
            pages,
            file_len,
            clusters,
            grown: false,
            max: T::from_u64(u64::MAX >> 64_u32.saturating_sub(header.refcount_bits())),
            copied_wrong: false,
            bad: Vec::new(),
            holes: Holes::default(),
            lines: Lines::new()?,
            what: What::All,
            count_refcounts: true,
            count_snapshot_table: true,
            mend: false,
            keep_places: false,
        })
    }

    fn all(&mut self) -> Result<(), CheckError> {
        self.start()?;
        let mut first = 0;
        loop {
            self.count_window(first)?;
            let Some(next) = self.pages.next_window() else {
                break;
            };
            first = next;
        }
        self.out.first_pass = true;
        self.check_copied()
    }

    /// What comes before references are counted: the snapshot table is judged.
    ///
    /// # Errors
    /// [`CheckError::Failed`] if it cannot be read.
    pub fn start(&mut self) -> Result<(), CheckError> {
        self.start_totals();
        self.check_snapshot_table()
    }

    /// Sets the totals that need no counting.
    pub const fn start_totals(&mut self) {
        self.out.sum.total_clusters = self
            .header
            .cluster_bits
            .clusters_for(self.header.whole_sectors_size());
        // The header's cluster is in use whatever the tables say.
        self.out.sum.image_end_offset = self.header.cluster_bits.size_bytes();
    }

    /// Counts the references of the window that starts at page `first`, and
    /// compares them with the refcounts that the image stores.
    ///
    /// # Errors
    /// The image cannot be read, or the reporter wants the end.
    pub fn count_window(&mut self, first: u64) -> Result<(), CheckError> {
        self.pages.begin(first);
        self.load_stored()?;
        self.count_all()?;
        self.compare()?;
        self.out.sum.passes = self.out.sum.passes.saturating_add(1);
        self.out.first_pass = false;
        Ok(())
    }

    /// Counts every reference of [`Run::what`], in qemu's order of structures.
    ///
    /// # Errors
    /// The image cannot be read, or the reporter wants the end.
    pub fn count_all(&mut self) -> Result<(), CheckError> {
        let cluster_bytes = self.header.cluster_bits.size_bytes();
        self.count_table_region(0, cluster_bytes)?;
        self.count_l1(self.header.l1_table_offset.get(), self.header.l1_size, true)?;
        self.count_snapshots()?;
        let refcounts = self.count_refcounts && self.what != What::Data;
        if refcounts {
            let table = self.header.refcount_table_offset.get();
            self.count_region(table, self.header.refcount_table_bytes())?;
        }
        if let (CryptMethod::Luks, Some(luks)) = (
            self.header.crypt_method,
            &self.header.extensions.crypto_header,
        ) {
            self.count_table_region(luks.offset.get(), luks.length)?;
        }
        self.count_bitmaps()?;
        if refcounts {
            self.count_refcount_blocks()?;
        }
        Ok(())
    }

    /// Counts one reference to each cluster of a table that has one user.
    pub(crate) fn count_table_region(&mut self, offset: u64, size: u64) -> Result<(), CheckError> {
        if self.what == What::Data {
            return Ok(());
        }
        let tables = &mut self.out.found.tables;
        if self.keep_places && self.out.first_pass && size > 0 && tables.len() < MAX_TABLES {
            let bits = self.header.cluster_bits.get();
            let last = offset.saturating_add(size).saturating_sub(1) >> bits;
            tables.try_reserve(1).map_err(|_| CheckError::OutOfMemory)?;
            tables.push((offset >> bits, last));
        }
        self.count_region(offset, size)
    }

    #[cold]
    fn note_overflow(&mut self, cluster: u64) {
        let found = &mut self.out.found;
        if !self.keep_places || found.overflows.last() == Some(&cluster) {
            return;
        }
        if found.overflows.len() >= MAX_OUTSIDE || found.overflows.try_reserve(1).is_err() {
            found.overflows_cut = true;
            return;
        }
        found.overflows.push(cluster);
    }

    /// Notes bytes outside the file that something refers to.
    #[cold]
    fn note_outside(&mut self, offset: u64, end: u64) {
        let found = &mut self.out.found;
        // What of it lies in the file has references that are not counted.
        found.uncounted |= offset < self.file_len;
        if !self.keep_places || !self.out.first_pass {
            return;
        }
        if found.outside.len() >= MAX_OUTSIDE || found.outside.try_reserve(1).is_err() {
            found.outside_cut = true;
            return;
        }
        let bits = self.header.cluster_bits.get();
        found
            .outside
            .push((offset >> bits, end.saturating_sub(1) >> bits));
    }

    /// Counts one reference to each cluster that these bytes touch.
    pub(crate) fn count_region(&mut self, offset: u64, size: u64) -> Result<(), CheckError> {
        if size == 0 || size > i64::MAX.unsigned_abs() {
            return Ok(());
        }
        let bits = self.header.cluster_bits;
        let end = offset.wrapping_add(size);
        // QEMU computes with signed numbers. An offset from 2^63 on is beyond
        // the end, or so negative that no memory for its counter is found.
        let beyond = end.wrapping_sub(self.file_len).cast_signed();
        if beyond >= bits.size_bytes().cast_signed() {
            self.out.corruption(format_args!(
                "ERROR: counting reference for region exceeding the end of the file by \
                 one cluster or more: offset 0x{offset:x} size 0x{size:x}"
            ));
            self.note_outside(offset, end);
            return Ok(());
        }
        if offset > i64::MAX.unsigned_abs() {
            return Err(CheckError::Failed { errno: ENOMEM });
        }
        let first = offset >> bits.get();
        let last = end.saturating_sub(1) >> bits.get();
        self.count_cluster(first)?;
        for cluster in first.saturating_add(1)..=last {
            if cluster.trailing_zeros() >= PAGE_BITS {
                self.out.progress(0)?;
            }
            self.count_cluster(cluster)?;
        }
        Ok(())
    }

    /// Counts one reference to a cluster of the file, or the one after it.
    pub(crate) fn count_cluster(&mut self, cluster: u64) -> Result<(), CheckError> {
        if cluster >= self.clusters {
            self.grown = true;
        }
        let number = cluster >> PAGE_BITS;
        let Some(page) = self.pages.get_or_make(number)? else {
            return Ok(());
        };
        let at = usize::try_from(cluster).unwrap_or(0) % PAGE_CLUSTERS;
        let Some(count) = page.counted.get_mut(at) else {
            return Ok(());
        };
        if *count == self.max {
            self.overflow(cluster);
        } else {
            *count = count.next();
        }
        Ok(())
    }

    #[cold]
    fn overflow(&mut self, cluster: u64) {
        self.note_overflow(cluster);
        if !self.pages.tell(cluster >> PAGE_BITS) {
            return;
        }
        let offset = cluster << self.header.cluster_bits.get();
        self.out.sum.corruptions = self.out.sum.corruptions.saturating_add(1);
        self.out.print(
            MessageKind::Plain,
            format_args!("ERROR: overflow cluster offset=0x{offset:x}"),
        );
        self.out.print(
            MessageKind::Plain,
            format_args!(
                "Use qemu-img amend to increase the refcount entry width or qemu-img convert \
                 to create a clean copy if the image cannot be opened for writing"
            ),
        );
    }

    /// The header that the check goes by.
    pub const fn header_of(&self) -> &'a Header {
        self.header
    }

    /// The largest refcount that the image can store.
    pub fn max_refcount(&self) -> u64 {
        self.max.into()
    }

    /// The stored refcount of a cluster in a page that exists; 0 elsewhere.
    pub fn stored_in_window(&self, cluster: u64) -> u64 {
        let at = usize::try_from(cluster).unwrap_or(0) % PAGE_CLUSTERS;
        let page = self.pages.get(cluster >> PAGE_BITS);
        page.and_then(|page| page.stored.get(at))
            .map_or(0, |count| (*count).into())
    }

    /// Reads, with QEMU's limit on offsets.
    pub(crate) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        check_range(offset, buf.len() as u64)?;
        self.storage.read_at(offset, buf)
    }
}
