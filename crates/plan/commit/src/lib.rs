//! What the images above a base hold becomes the base's.
//!
//! **Order.** Of base and overlay, only one is changed at a time:
//!
//! 1. [`grow`]: a base that is shorter than the overlay gets its size, reading as zeros there.
//! 2. [`copy`]: what the images above the base say is written into it, data and zeros; then everything is flushed, the
//!    data first, then what leads to it.
//! 3. [`empty`]: the overlay says nothing any more, so that the base shows through it. One write of its header's first
//!    sector is the commit point.
//!
//! **Invariant.** Until the commit point, whatever the base says is hidden: only what the images above it decide is
//! written there, and what they leave to it reads as before, its new part as zeros. After it the base says the same.
//! So what is read through the overlay never changes, whenever the power fails, as the base is durable before the
//! overlay changes at all. What was begun can be done again from the start.
//!
//! **Memory.** That of [`instar_plan_write::WriteImage`], one cluster for each compressed one on its way, 9 MiB where
//! data is encrypted, and what
//! the transactions of growing and emptying take.
//!
//! Modules: `base` (where it goes), `copy`, `grow`, `error`. Emptying is [`instar_plan_snapshot::empty`].
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod base;
mod copy;
mod error;
mod grow;

pub use base::{Base, Numbers};
pub use copy::{Cancelled, Job, Monitor, copy};
pub use error::CommitError;
pub use grow::{Image, grow};

use instar_plan_txn::Monitor as Changes;
use instar_qcow2::Header;
use instar_storage::StorageMut;

/// Takes everything out of an overlay, whose base is durable and has it all.
///
/// # Errors
/// The overlay is as it was, unless the store failed at the commit point.
pub fn empty<S: StorageMut>(
    overlay: &S,
    data: Option<&S>,
    header: &Header,
    monitor: &mut dyn Changes,
) -> Result<(), CommitError> {
    instar_plan_snapshot::empty(overlay, header, monitor)?;
    if let Some(data) = data {
        // A host that keeps the space has harmed nothing.
        let _ = data.discard(0, data.len_bytes());
    }
    Ok(())
}
