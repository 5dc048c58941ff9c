//! What the operations that make an image, or measure one, have in common: its options, as the host gives them.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod encrypt;

pub use encrypt::{Encrypt, Plain};

use instar_guest_ops::Context;
use instar_plan_create::{Encryption, Options, Preallocation};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::header::CompressionType;
use instar_shared::convert::{
    TARGET_DATA_FILE_RAW, TARGET_EXTENDED_L2, TARGET_LAZY_REFCOUNTS, TARGET_ZSTD, TargetOptions,
};
use instar_shared::edit::Preallocation as GivenPreallocation;

/// The options of a new qcow2 image of `size` bytes; nothing if they make no sense.
#[must_use]
pub fn options(given: &TargetOptions, size: u64) -> Option<Options<'_>> {
    let has = |flag: u32| given.flags.get() & flag != 0;
    Some(Options {
        size,
        version: given.version.get(),
        cluster_bytes: given.cluster_bytes.get(),
        refcount_bits: given.refcount_bits.get(),
        compression: if has(TARGET_ZSTD) {
            CompressionType::Zstd
        } else {
            CompressionType::Zlib
        },
        extended_l2: has(TARGET_EXTENDED_L2),
        lazy_refcounts: has(TARGET_LAZY_REFCOUNTS),
        backing_file: name(&given.backing_file, given.backing_file_len.get())?,
        backing_format: name(&given.backing_format, given.backing_format_len.get())?,
        data_file: name(&given.data_file, given.data_file_len.get())?,
        data_file_raw: has(TARGET_DATA_FILE_RAW),
        preallocation: preallocation(given)?,
        encryption: Encryption::None,
    })
}

/// What is reserved; nothing if there is no such mode.
#[must_use]
pub fn preallocation(given: &TargetOptions) -> Option<Preallocation> {
    Some(
        match GivenPreallocation::try_from(given.preallocation.get()).ok()? {
            GivenPreallocation::Off => Preallocation::Off,
            GivenPreallocation::Metadata => Preallocation::Metadata,
            GivenPreallocation::Falloc => Preallocation::Falloc,
            GivenPreallocation::Full => Preallocation::Full,
        },
    )
}

/// A name that may be left out.
fn name(bytes: &[u8], len: u32) -> Option<Option<&[u8]>> {
    let name = bytes.get(..usize::try_from(len).ok()?)?;
    Some((!name.is_empty()).then_some(name))
}

/// A planner's [`Monitor`] that shows no progress.
#[derive(Debug)]
pub struct Watch<'a>(pub &'a mut Context);

impl Monitor for Watch<'_> {
    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        if self.0.cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        self.0.grant(bytes)
    }
}
