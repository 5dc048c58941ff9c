//! Another size as a part of the change, or the want of this part.

use crate::{AmendError, Image, Layer};
use instar_plan_resize::{Change, ResizeError, Wish};
use instar_plan_txn::{Footprint, Monitor, Transaction};
use instar_storage::StorageMut;

/// A new size, planned. A program that never changes one is linked without the code for it.
pub trait Size<'a, S>: Sized {
    /// Judges the new size; nothing is written.
    ///
    /// # Errors
    /// The image cannot have it.
    fn plan(
        image: Image<'a, S>,
        below: &[Layer<'a, S>],
        wish: Wish,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, AmendError>;

    /// What it writes.
    fn footprint(&self) -> Footprint;

    /// False if the image itself stays as it is.
    fn is_needed(&self) -> bool;

    /// Everything up to the commit.
    ///
    /// # Errors
    /// The store's, the transaction's; the monitor wants the end.
    fn build(
        &mut self,
        txn: &mut Transaction<'_, S>,
        monitor: &mut dyn Monitor,
    ) -> Result<(), ResizeError>;

    /// What follows the commit.
    ///
    /// # Errors
    /// The store's.
    fn after_commit(&self) -> Result<(), ResizeError>;

    /// Nothing was switched.
    fn undo(&self);
}

impl<'a, S: StorageMut> Size<'a, S> for Change<'a, S> {
    fn plan(
        image: Image<'a, S>,
        below: &[Layer<'a, S>],
        wish: Wish,
        monitor: &mut dyn Monitor,
    ) -> Result<Self, AmendError> {
        Ok(Change::plan(image, below, wish, monitor)?)
    }

    fn footprint(&self) -> Footprint {
        Change::footprint(self)
    }

    fn is_needed(&self) -> bool {
        Change::is_needed(self)
    }

    fn build(
        &mut self,
        txn: &mut Transaction<'_, S>,
        monitor: &mut dyn Monitor,
    ) -> Result<(), ResizeError> {
        Change::build(self, txn, monitor)
    }

    fn after_commit(&self) -> Result<(), ResizeError> {
        Change::after_commit(self)
    }

    fn undo(&self) {
        Change::undo(self);
    }
}

/// No size is changed; there is no such plan.
#[derive(Debug)]
pub enum Kept {}

impl<'a, S: StorageMut> Size<'a, S> for Kept {
    fn plan(
        _: Image<'a, S>,
        _: &[Layer<'a, S>],
        _: Wish,
        _: &mut dyn Monitor,
    ) -> Result<Self, AmendError> {
        Err(AmendError::SizeIsKept)
    }

    fn footprint(&self) -> Footprint {
        match *self {}
    }

    fn is_needed(&self) -> bool {
        match *self {}
    }

    fn build(
        &mut self,
        _: &mut Transaction<'_, S>,
        _: &mut dyn Monitor,
    ) -> Result<(), ResizeError> {
        match *self {}
    }

    fn after_commit(&self) -> Result<(), ResizeError> {
        match *self {}
    }

    fn undo(&self) {
        match *self {}
    }
}
