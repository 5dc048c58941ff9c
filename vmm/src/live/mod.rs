//! Live disks whose format the host does not know: a microVM says where their bytes are ([`source`]), the host moves them.
//!
//! - [`source`]: what is asked and answered.
//! - [`channel`]: questions to a microVM in another process; [`asking`]: without ever waiting for it.
//! - [`check`]: which answers are believed.
//! - [`map`]: what is known of a disk's map; [`stale`]: what of an answer is still so.
//! - [`request`]: requests on their way, and which wait for which.
//! - [`backend`]: the block device.

pub mod asking;
pub mod backend;
pub mod channel;
pub mod check;
mod map;
mod request;
pub mod source;
mod stale;
#[cfg(test)]
mod tests;
