//! Internal qcow2 snapshots: [`create`], [`apply`] and [`delete`], as `qemu-img snapshot` does them.
//!
//! A snapshot is an entry of the snapshot table with an L1 table of its own. Each L2 table and each data cluster
//! has one reference for every path that leads to it, from the active L1 table or a snapshot's: qcow2
//! "Snapshots". A COPIED bit says that there is exactly one. Only metadata is looked at: of encrypted images
//! too, without a key. The VM state of a snapshot is data like any other.
//!
//! **Order.** Each action is one [`Transaction`](instar_plan_txn::Transaction). Nothing that the old state uses
//! is overwritten: L2 tables whose COPIED bits change, the L1 tables, the snapshot table and the refcount
//! structures are written beside the old ones, in any order; then a flush; then the header's first sector, the
//! *commit point*; then a flush. So a crash leaves the old state or the new one, and in neither a leak or a
//! damage that was not there before. What is cancelled before the commit point has done nothing.
//!
//! - *create*: one reference more to all that the active L1 table leads to. COPIED is cleared there, and the
//!   snapshot gets a copy of the L1 table. A table without COPIED bits is shared as it is.
//! - *delete*: one reference less to all that the snapshot's L1 table leads to, and to that table. Then the
//!   COPIED bits of the active tables that have one reference left are set where they are due.
//! - *apply*: one reference more to all that the snapshot's L1 table leads to, one less to what the active one
//!   leads to, and the snapshot's entries become the active table, which never gets shorter. What both lead to
//!   is left alone.
//!
//! Memory: three L1 tables, at most 96 MiB; 4 MiB of L2 tables; the snapshot table, at most 64 MiB; what a
//! transaction takes. Work is bounded by the file's length: an L1 table with more L2 tables than the file has
//! clusters is refused.
//!
//! An image whose refcounts are not up to date, the dirty bit, is to be repaired first. Damage that is met is
//! refused and nothing is changed: entries that are no cluster's offset, refcounts that
//! are too low, tables that overlap, references to a cluster of the header, an L1 table, the snapshot table or the
//! refcount table.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod apply;
mod create;
mod delete;
mod empty;
mod error;
mod find;
mod guard;
mod walk;

pub use apply::apply;
pub use create::{NewSnapshot, create};
pub use delete::delete;
pub use empty::empty;
pub use error::{ApplyError, CreateError, DeleteError};
pub use find::next_id;

#[cfg(test)]
mod tests;
