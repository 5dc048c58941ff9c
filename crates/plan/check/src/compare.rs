//! References counted against refcounts stored.

use crate::counter::Counter;
use crate::pages::{PAGE_BITS, PAGE_CLUSTERS};
use crate::run::{Out, Run};
use crate::stored::{BadBlock, Fault};
use crate::{CheckError, MessageKind, Reporter};
use instar_storage::Storage;

/// The text of an errno, as the C library has it.
pub(crate) fn errno_text(errno: u32) -> &'static str {
    match errno {
        1 => "Operation not permitted",
        4 => "Interrupted system call",
        5 => "Input/output error",
        6 => "No such device or address",
        9 => "Bad file descriptor",
        11 => "Resource temporarily unavailable",
        12 => "Cannot allocate memory",
        22 => "Invalid argument",
        27 => "File too large",
        74 => "Bad message",
        75 => "Value too large for defined data type",
        107 => "Transport endpoint is not connected",
        110 => "Connection timed out",
        116 => "Stale file handle",
        121 => "Remote I/O error",
        _ => "Unknown error",
    }
}

/// Tells a cluster whose refcount differs from its references.
#[cold]
fn judge<R: Reporter>(out: &mut Out<'_, R>, cluster: u64, counted: u64, stored: u64) {
    out.found.wrong_in_use |= counted != 0;
    let kind = if stored < counted {
        out.found.low = out.found.low.saturating_add(1);
        out.sum.corruptions = out.sum.corruptions.saturating_add(1);
        "ERROR"
    } else {
        out.found.high = out.found.high.saturating_add(1);
        out.sum.leaks = out.sum.leaks.saturating_add(1);
        "Leaked"
    };
    out.print(
        MessageKind::Plain,
        format_args!("{kind} cluster {cluster} refcount={stored} reference={counted}"),
    );
}

impl<S: Storage, T: Counter, R: Reporter> Run<'_, S, T, R> {
    /// Compares the window's clusters and tells each that differs.
    pub(crate) fn compare(&mut self) -> Result<(), CheckError> {
        let clusters = self.clusters.saturating_add(u64::from(self.grown));
        let window_end = self
            .pages
            .next_window()
            .map_or(clusters, |page| clusters.min(page << PAGE_BITS));
        let numbers = self.pages.numbers();
        let mut numbers = numbers.iter().copied().peekable();
        let mut at = self.pages.first() << PAGE_BITS;
        while at < window_end {
            let bad = self.first_bad_after(at);
            let next_bad = bad.map_or(u64::MAX, |bad| bad.start.max(at) >> PAGE_BITS);
            while numbers
                .next_if(|number| *number < at >> PAGE_BITS)
                .is_some()
            {}
            let number = numbers.peek().copied().unwrap_or(u64::MAX).min(next_bad);
            if number == u64::MAX || number << PAGE_BITS >= window_end {
                break;
            }
            let end = window_end.min(number.saturating_add(1) << PAGE_BITS);
            if number == next_bad {
                self.compare_with_bad(at.max(number << PAGE_BITS), end);
            } else {
                self.compare_page(number, end);
            }
            at = end;
            self.out.progress(0)?;
        }
        Ok(())
    }

    /// The first range of unreadable refcounts that ends after `cluster`.
    fn first_bad_after(&self, cluster: u64) -> Option<BadBlock> {
        let place = self.bad.partition_point(|bad| bad.end <= cluster);
        self.bad.get(place).copied()
    }

    /// Compares a page up to cluster `end`.
    fn compare_page(&mut self, number: u64, end: u64) {
        let base = number << PAGE_BITS;
        let len = usize::try_from(end.saturating_sub(base))
            .unwrap_or(0)
            .min(PAGE_CLUSTERS);
        let Some(page) = self.pages.get(number) else {
            return;
        };
        let (Some(counted), Some(stored)) = (page.counted.get(..len), page.stored.get(..len))
        else {
            return;
        };
        let zero = T::default();
        let in_use = counted
            .iter()
            .zip(stored)
            .rposition(|(counted, stored)| *counted != zero || *stored != zero);
        if let Some(last) = in_use {
            let after = base.saturating_add(last as u64).saturating_add(1);
            let end_offset = after.saturating_mul(self.header.cluster_bits.size_bytes());
            self.out.sum.image_end_offset = self.out.sum.image_end_offset.max(end_offset);
        }
        if counted == stored {
            return;
        }
        for ((counted, stored), cluster) in counted.iter().zip(stored).zip(base..) {
            if counted == stored {
                continue;
            }
            judge(&mut self.out, cluster, (*counted).into(), (*stored).into());
        }
    }

    /// Compares clusters one by one, some of which cannot be judged.
    #[cold]
    fn compare_with_bad(&mut self, start: u64, end: u64) {
        for cluster in start..end {
            if let Some(bad) = self
                .first_bad_after(cluster)
                .filter(|bad| bad.start <= cluster)
            {
                self.signal(bad.fault);
                let errno = match bad.fault {
                    Fault::Unaligned { .. } => crate::run::EIO,
                    Fault::Read { errno } => errno,
                };
                self.out.sum.check_errors = self.out.sum.check_errors.saturating_add(1);
                let text = errno_text(errno);
                self.out.print(
                    MessageKind::Plain,
                    format_args!("Can't get refcount for cluster {cluster}: {text}"),
                );
            } else {
                self.compare_one(cluster);
            }
        }
    }

    /// Compares one cluster.
    fn compare_one(&mut self, cluster: u64) {
        let at = usize::try_from(cluster).unwrap_or(0) % PAGE_CLUSTERS;
        let Some(page) = self.pages.get(cluster >> PAGE_BITS) else {
            return;
        };
        let (Some(counted), Some(stored)) = (page.counted.get(at), page.stored.get(at)) else {
            return;
        };
        let (counted, stored): (u64, u64) = ((*counted).into(), (*stored).into());
        if counted != 0 || stored != 0 {
            let end = cluster
                .saturating_add(1)
                .saturating_mul(self.header.cluster_bits.size_bytes());
            self.out.sum.image_end_offset = self.out.sum.image_end_offset.max(end);
        }
        if counted != stored {
            judge(&mut self.out, cluster, counted, stored);
        }
    }
}
