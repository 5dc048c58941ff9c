//! COPIED flags of the active tables: qcow2 "L1 table entry", "L2 table entry".
//!
//! While references are counted it is only noted that some flag is wrong. If so,
//! the active tables are walked again, and each wrong flag is told in order.

use crate::counter::Counter;
use crate::l2::Kind;
use crate::run::Run;
use crate::walk::Purpose;
use crate::{CheckError, Reporter};
use instar_qcow2::entries::{L1Entry, L2Entry};
use instar_storage::Storage;

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Notes whether a COPIED flag disagrees with the refcount in the window.
    /// Each cluster is in one window; one past the file is looked up later.
    pub(crate) fn note_copied(&mut self, cluster: u64, copied: bool) {
        if cluster >= self.clusters {
            self.copied_wrong = true;
        } else if self.pages.covers(cluster >> crate::pages::PAGE_BITS) {
            self.copied_wrong |= (self.stored_in_window(cluster) == 1) != copied;
        }
    }

    /// Tells the wrong COPIED flags, if there are any.
    ///
    /// # Errors
    /// The image cannot be read, or the reporter wants the end.
    pub fn check_copied(&mut self) -> Result<(), CheckError> {
        if !self.copied_wrong {
            return Ok(());
        }
        self.walk(
            self.header.l1_table_offset.get(),
            self.header.l1_size,
            Purpose::Copied,
        )
    }

    /// The stored refcount, from memory where all of the file is in memory.
    fn stored(&mut self, cluster: u64) -> Option<u64> {
        if self.out.sum.passes == 1 && cluster < self.clusters && self.bad.is_empty() {
            return Some(self.stored_in_window(cluster));
        }
        self.look_up(cluster)
    }

    /// Tells if the COPIED flag of an L1 entry is wrong. False if that cannot be
    /// known; its table is then left alone, as qemu-img does.
    pub(crate) fn tell_l1_copied(&mut self, index: u32, entry: L1Entry) -> bool {
        let cluster = entry.l2_offset().get() >> self.header.cluster_bits.get();
        let Some(refcount) = self.stored(cluster) else {
            return false;
        };
        if (refcount == 1) != entry.is_copied() {
            self.out.corruption(format_args!(
                "ERROR OFLAG_COPIED L2 cluster: l1_index={index} l1_entry={:x} refcount={refcount}",
                entry.0
            ));
        }
        true
    }

    /// Tells which COPIED flags of an L2 table are wrong.
    pub(crate) fn tell_l2_copied(&mut self, table: &[u8]) {
        let data_file = self.header.incompatible.external_data_file();
        let step = usize::try_from(self.header.l2_entry_bytes() / 8)
            .unwrap_or(1)
            .max(1);
        for bytes in table.as_chunks::<8>().0.iter().step_by(step) {
            let entry = L2Entry::from_be_bytes(*bytes);
            if entry.is_compressed() || self.kind(entry) != Kind::Allocated {
                continue;
            }
            let cluster = entry.host_offset().get() >> self.header.cluster_bits.get();
            // Clusters of a data file have no refcount; they count as used once.
            let refcount = if data_file {
                Some(1)
            } else {
                self.stored(cluster)
            };
            let Some(refcount) = refcount else { continue };
            if (refcount == 1) != entry.is_copied() {
                self.out.corruption(format_args!(
                    "ERROR OFLAG_COPIED data cluster: l2_entry={:x} refcount={refcount}",
                    entry.0
                ));
            }
        }
    }
}
