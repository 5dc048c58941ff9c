//! New images: made empty, filled by a conversion, and measured beforehand.
//!
//! [`create`] makes an empty qcow2 image, [`create_raw`] a raw one. [`NewImage`] is a qcow2 image that
//! is being filled: the caller asks where guest data goes and writes it there itself. [`measure`] says
//! how long a file would become.
//!
//! **Layout.** Header, refcount table (one cluster), the first refcount block, the L1 table; then
//! whatever is asked for, in the order of the calls: an L2 table when the first of its clusters is
//! placed, then the data. A refcount block follows the run of clusters that made it necessary. A refcount
//! table that outgrows its cluster is put at the end, and its cluster becomes free. So a conversion in guest
//! order makes a file in guest order.
//!
//! **Order of writes and commit point.**
//!
//! 1. What the file held before goes: it is cut to length 0; of a device, which has a given length,
//!    the first cluster is cleared, and the L1 table's place. Flush.
//! 2. Data (the caller's writes), L2 tables and refcount blocks, in any order; bitmaps.
//! 3. Refcount table, L1 table, the header's area behind its first sector; the file's length.
//! 4. Flush; the data file first.
//! 5. The header's first sector: the *commit point*. 512 bytes, which do not tear.
//! 6. Flush.
//!
//! *Invariant:* before step 5 the first sector holds zeros or is not there, so no program takes the
//! file for a qcow2 image; after it, the image is complete. *A crash* leaves one or the other.
//!
//! *Memory:* a cache of L2 tables and refcount blocks, 2 MiB or 6 clusters, whichever is more; 1 MiB of
//! the L1 table; the refcount table, at most 8 MiB. It does not depend on the size of the disk.
//!
//! Modules: `spec` (what is asked, and its checks), `pages` (clusters of metadata in memory), `refcounts` (clusters
//! that are taken, and their counts), `image` and `place` (an image being filled), `prealloc`, `bitmaps`,
//! `header` (the header's bytes), `raw`, `measure`.
#![no_std]
#![cfg_attr(
    not(test),
    deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)
)]

extern crate alloc;

mod bitmaps;
mod error;
mod header;
mod image;
mod measure;
mod pages;
mod place;
mod prealloc;
mod raw;
mod refcounts;
mod spec;

pub use bitmaps::NewBitmap;
pub use error::{CreateError, OfACopy};
pub use image::NewImage;
pub use instar_plan_resize::{Preallocation, ReserveError};
pub use measure::{Content, MeasureError, Measured, measure, measure_bitmaps, measure_raw};
pub use place::{Place, PlacedIn};
pub use raw::create_raw;
pub use spec::{Backing, Encryption, Options, Spec};

use instar_plan_txn::Monitor;
use instar_storage::StorageMut;

/// Makes an empty image; `data` is the external data file, if `spec` names one.
///
/// # Errors
/// [`CreateError`]: `image` is no qcow2 image then.
pub fn create<S: StorageMut>(
    image: &S,
    data: Option<&S>,
    spec: &Spec,
    monitor: &mut dyn Monitor,
) -> Result<(), CreateError> {
    NewImage::begin(image, data, spec, monitor)
        .and_then(NewImage::finish)
        .map_err(CreateError::of_an_empty_image)
}
