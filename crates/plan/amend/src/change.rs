//! One transaction that does everything.

use crate::options::{self, Changes};
use crate::size::Size;
use crate::tables::Survey;
use crate::{AmendError, Image, Layer, Request, downgrade};
use instar_plan_resize::{Preallocation, Wish};
use instar_plan_txn::{Footprint, Monitor, Transaction, TxnError, write_header};
use instar_qcow2::Header;
use instar_qcow2::header::MAX_SNAPSHOTS;
use instar_qcow2::snapshot::SnapshotTable;
use instar_storage::StorageMut;

/// How much of the new state lies beside the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing: the header area is all that changes.
    Nothing,
    /// Tables, refcounts or data.
    Structures,
}

impl Written {
    /// [`Written::Structures`] if so.
    pub const fn when(structures: bool) -> Self {
        if structures {
            Self::Structures
        } else {
            Self::Nothing
        }
    }
}

/// What is asked for, judged as far as the header tells.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// All of it.
    pub request: Request<'a>,
    /// What it comes to.
    pub changes: Changes,
}

/// Changes everything.
pub fn change<'a, S: StorageMut, Z: Size<'a, S>>(
    image: Image<'a, S>,
    below: &[Layer<'a, S>],
    wanted: &Wanted<'_>,
    monitor: &mut dyn Monitor,
) -> Result<Header, AmendError> {
    let mut survey = None;
    if wanted.changes.downgrade {
        let taken = Survey::take(image.storage, image.header, monitor);
        survey = Some(taken.map_err(AmendError::in_step(AmendError::Zeros))?);
    }
    let size = wanted.request.size.filter(|size| *size != 0);
    // A new size, or why the image cannot have it.
    let mut resize = size.map(|size| plan_size::<S, Z>(image, below, size, wanted, monitor));
    let mut footprint = footprint(image.header, &wanted.changes, survey.as_ref());
    if let Some(Ok(resize)) = &resize {
        let more = resize.footprint();
        footprint.tables = footprint.tables.saturating_add(more.tables);
        footprint.fixed = footprint.fixed.saturating_add(more.fixed);
    }
    let failed = AmendError::in_step(AmendError::Header);
    let txn = Transaction::begin(image.storage, image.header, footprint, monitor);
    let mut change = Change {
        txn: txn.map_err(&failed)?,
        written: Written::Nothing,
    };
    let built = change.build(image.header, wanted, (resize.as_mut(), survey), monitor);
    let done = match built {
        Ok(()) => change.commit(monitor).map_err(failed),
        Err(e) => {
            change.txn.abandon();
            Err(e)
        }
    };
    match (done, resize) {
        (Ok(header), Some(Ok(resize))) => {
            resize.after_commit()?;
            Ok(header)
        }
        (Err(e), Some(Ok(resize))) => {
            resize.undo();
            Err(e)
        }
        (done, _) => done,
    }
}

fn plan_size<'a, S: StorageMut, Z: Size<'a, S>>(
    image: Image<'a, S>,
    below: &[Layer<'a, S>],
    size: u64,
    wanted: &Wanted<'_>,
    monitor: &mut dyn Monitor,
) -> Result<Z, AmendError> {
    options::check_size(size)?;
    let version = if wanted.changes.upgrade {
        3
    } else {
        image.header.version
    };
    let wish = Wish {
        new_size: size,
        preallocation: Preallocation::Off,
        version,
        unpack: Some(instar_plan_resize::unpack),
    };
    Z::plan(image, below, wish, monitor)
}

/// A change that is being built.
struct Change<'s, S> {
    txn: Transaction<'s, S>,
    written: Written,
}

impl<S: StorageMut> Change<'_, S> {
    /// In the order in which `qemu-img` goes through the options.
    fn build<'a, Z: Size<'a, S>>(
        &mut self,
        old: &Header,
        wanted: &Wanted<'_>,
        (resize, mut survey): (Option<&mut Result<Z, AmendError>>, Option<Survey>),
        monitor: &mut dyn Monitor,
    ) -> Result<(), AmendError> {
        if let Some(order) = wanted.changes.refcount_order {
            self.change_width(order, monitor)?;
        }
        if wanted.changes.upgrade {
            self.txn.header.version = 3;
            self.complete_snapshots()
                .map_err(AmendError::in_step(AmendError::Header))?;
        }
        options::set(old, &mut self.txn.header, &wanted.request)?;
        if let Some(resize) = resize {
            let resize = resize.as_mut().map_err(|e| e.clone())?;
            if resize.is_needed() {
                self.written = Written::Structures;
                resize.build(&mut self.txn, monitor)?;
                survey = self.survey_again(survey, monitor)?;
            }
        }
        match survey {
            Some(survey) => self.downgrade(survey, monitor),
            None => Ok(()),
        }
    }

    fn change_width(&mut self, order: u32, monitor: &mut dyn Monitor) -> Result<(), AmendError> {
        self.written = Written::Structures;
        let failed = AmendError::in_step(AmendError::Refcounts);
        match self.txn.change_refcount_width(order, monitor) {
            Err(TxnError::RefcountOverflow { cluster }) => Err(AmendError::RefcountTooLarge {
                bits: 1_u32.checked_shl(order).unwrap_or(0),
                offset: cluster << self.txn.header.cluster_bits.get(),
                refcount: self.txn.refcount(cluster).map_err(failed)?,
            }),
            result => result.map_err(failed),
        }
    }

    /// Version 3 asks for extra data in every entry of the snapshot table: qcow2 "Snapshots".
    fn complete_snapshots(&mut self) -> Result<(), TxnError> {
        let mut incomplete = false;
        for snapshot in SnapshotTable::new(self.txn.storage(), &self.txn.header) {
            let snapshot = snapshot.map_err(|_| TxnError::Corrupt {
                what: "snapshot table",
            })?;
            incomplete |= snapshot.is_incomplete();
        }
        if incomplete {
            let entries = self.txn.read_snapshots()?;
            self.txn.replace_snapshots(&entries)?;
            self.written = Written::Structures;
        }
        Ok(())
    }

    /// Takes a survey of the new state, if there was one of the old.
    fn survey_again(
        &mut self,
        survey: Option<Survey>,
        monitor: &mut dyn Monitor,
    ) -> Result<Option<Survey>, AmendError> {
        if survey.is_none() {
            return Ok(None);
        }
        let failed = AmendError::in_step(AmendError::Zeros);
        self.txn.send_queue().map_err(&failed)?;
        let survey = Survey::take(self.txn.storage(), &self.txn.header, monitor);
        survey.map(Some).map_err(failed)
    }

    fn downgrade(
        &mut self,
        mut survey: Survey,
        monitor: &mut dyn Monitor,
    ) -> Result<(), AmendError> {
        downgrade::check(&mut self.txn, &survey)?;
        let written = downgrade::downgrade(&mut self.txn, &mut survey, monitor);
        if written.map_err(AmendError::in_step(AmendError::Zeros))? == Written::Structures {
            self.written = Written::Structures;
        }
        Ok(())
    }

    fn commit(self, monitor: &mut dyn Monitor) -> Result<Header, TxnError> {
        if self.written == Written::Structures {
            return self.txn.commit(monitor);
        }
        let (old, new) = (self.txn.old_header(), &self.txn.header);
        if old == new {
            return Ok(new.clone());
        }
        monitor.progress(1, 1)?;
        write_header(self.txn.storage(), old, new)
    }
}

/// How much the change may write.
fn footprint(header: &Header, changes: &Changes, survey: Option<&Survey>) -> Footprint {
    // A snapshot's entry takes at most 128 KiB, seldom more than 128 bytes.
    let mut tables = u64::from(header.nb_snapshots.min(MAX_SNAPSHOTS)).div_ceil(4);
    if let Some(order) = changes.refcount_order {
        let blocks = header.refcount_table_bytes() / 8;
        let growth = order.saturating_sub(header.refcount_order);
        tables = tables.saturating_add(blocks << growth);
    }
    let mut fixed = 0;
    if let Some(survey) = survey {
        tables = tables
            .saturating_add(survey.zero_tables())
            .saturating_add(survey.l1_clusters);
        if header.backing_file.is_some() {
            fixed = survey.plain_zeros;
        }
    }
    Footprint { tables, fixed }
}

/// Removes the data file's name, though the image needs one: whoever opens it has to give it from then on.
pub fn remove_data_file_name<S: StorageMut>(
    storage: &S,
    header: &Header,
) -> Result<Header, TxnError> {
    let mut without = header.clone();
    without.extensions.data_file_name = None;
    write_header(storage, header, &without)
}
