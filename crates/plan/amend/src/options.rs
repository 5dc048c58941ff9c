//! Checks that need no more than the header, and the fields that change at once.

use crate::{AmendError, Request};
use instar_plan_resize::ResizeError;
use instar_qcow2::Header;
use instar_qcow2::header::MAX_FILE_BYTES;

/// Autoclear feature bit 1.
const DATA_FILE_RAW: u64 = 1 << 1;
/// Compatible feature bit 0.
const LAZY_REFCOUNTS: u64 = 1 << 0;

/// What a request comes to for an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Version 2 becomes 3.
    pub upgrade: bool,
    /// Version 3 becomes 2.
    pub downgrade: bool,
    /// Logarithm of the new refcount width, if it changes.
    pub refcount_order: Option<u32>,
}

/// Judges the values of the options, before anything is done.
///
/// # Errors
/// The first that the image cannot have.
pub fn check(header: &Header, request: &Request<'_>) -> Result<Changes, AmendError> {
    if request.data_file.is_some() && !header.incompatible.external_data_file() {
        return Err(AmendError::NoDataFile);
    }
    if request.data_file_raw == Some(true) && !header.autoclear.data_file_raw() {
        return Err(AmendError::DataFileRaw);
    }
    let refcount_order = match request.refcount_bits {
        Some(bits) if !bits.is_power_of_two() || bits > 64 => return Err(AmendError::RefcountBits),
        Some(bits) => Some(bits.trailing_zeros()).filter(|order| *order != header.refcount_order),
        None => None,
    };
    let version = new_version(header, request);
    if version < 3 && refcount_order.is_some_and(|order| order != 4) {
        return Err(AmendError::RefcountBitsInVersion2);
    }
    Ok(Changes {
        upgrade: version > header.version,
        downgrade: version < header.version,
        refcount_order,
    })
}

fn new_version(header: &Header, request: &Request<'_>) -> u32 {
    request.version.unwrap_or(header.version)
}

/// Changes names and feature bits in `new`, the header of the new state so far; `old` is that of the old one.
pub fn set(old: &Header, new: &mut Header, request: &Request<'_>) -> Result<(), AmendError> {
    if let Some(name) = request.data_file.filter(|name| !name.is_empty()) {
        new.extensions.data_file_name = Some(name.to_vec());
    }
    if request.data_file_raw == Some(false) {
        new.autoclear.0 &= !DATA_FILE_RAW;
    }
    let names_backing = request.backing_file.is_some() || request.backing_format.is_some();
    let same_file = request.backing_file == old.backing_file.as_deref();
    let same_format = request.backing_format == old.extensions.backing_format.as_deref();
    if names_backing && !(same_file && same_format) {
        return Err(AmendError::BackingFile);
    }
    if let Some(lazy) = request.lazy_refcounts {
        if lazy && !old.compatible.lazy_refcounts() && new_version(old, request) < 3 {
            return Err(AmendError::LazyRefcountsInVersion2);
        }
        new.compatible.0 &= !LAZY_REFCOUNTS;
        if lazy {
            new.compatible.0 |= LAZY_REFCOUNTS;
        }
    }
    Ok(())
}

/// Judges a new size as such.
pub fn check_size(size: u64) -> Result<(), AmendError> {
    if i64::try_from(size).is_err() {
        return Err(AmendError::NegativeSize);
    }
    if size > MAX_FILE_BYTES {
        return Err(ResizeError::ExceedsMaximum { size }.into());
    }
    Ok(())
}
