//! The contract between the host and an operation's guest.
//!
//! Both sides compile this crate. It is the single place for every address,
//! port, status value, magic number and struct that crosses the boundary. It
//! does no I/O and allocates nothing; it only names, encodes and validates.
//!
//! Integers on the wire are little-endian types without alignment
//! ([`zerocopy::little_endian`]); reserved bytes are fields and must be zero.
//! A changed number needs a new [`abi::ABI_VERSION`] (see `docs/abi.md`).
#![cfg_attr(not(test), no_std)]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

#[macro_use]
mod macros;

pub mod abi;
pub mod bench;
pub mod blk;
pub mod boot;
pub mod bootscan;
pub mod check;
pub mod commit;
pub mod compare;
pub mod control;
pub mod convert;
pub mod create;
pub mod device;
pub mod doorbell;
pub mod edit;
pub mod encrypt;
pub mod info;
pub mod layout;
pub mod live;
pub mod map;
pub mod net;
pub mod op;
pub mod rebase;
pub mod record;
pub mod ring;
pub mod secret;
#[cfg(test)]
mod tripwires;
pub mod vsock;

pub use macros::bits;
pub use zerocopy;
