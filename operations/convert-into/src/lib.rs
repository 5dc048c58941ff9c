//! The convert operation into a qcow2 image that is there: `convert -n`.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod bitmaps;

pub use bitmaps::run as add_bitmaps;

use instar_guest_ops::Context;
use instar_plan_convert::{IntoImage, Manner, Source};
use instar_shared::convert::{CONVERT_BITMAPS, CONVERT_COMPRESS, CONVERT_TARGET_IS_ZERO};
use op_chain::{Keys, Reported, Unlock, fail};
use op_copy::{Job, Sources, convert, say};
use op_edit::open_written;

/// Does what the host's config says, but for bitmaps, and tells the host how it went. `keys` are those of encrypted
/// images.
pub fn run(ctx: &mut Context, keys: &dyn Keys) {
    convert(ctx, keys, fill);
}

/// Copies everything into the image in the target's slot.
fn fill(job: &Job<'_, Sources<'_>>, ctx: &mut Context) -> Result<(), Reported> {
    let request = job.request;
    let disk = &job.files.target;
    let (written, below) = open_written(ctx, disk, Unlock::of(request.keys, disk.slot()))?;
    if request.has(CONVERT_BITMAPS) && written.header.version < 3 {
        let text = format_args!("Format driver 'qcow2' does not support bitmaps");
        return Err(say::sentence(ctx, text));
    }
    job.check_size(ctx, written.header.whole_sectors_size())?;
    // It may grow by so much.
    let total = job.source.len_bytes();
    say::announce(ctx, disk.slot(), total)?;
    if let Some(data) = &written.data {
        say::announce(ctx, data.slot(), total)?;
    }
    let begun = written.begin(ctx, below);
    let image = begun.map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))?;
    let manner = Manner {
        source_bytes: total,
        is_zero: request.has(CONVERT_TARGET_IS_ZERO),
        compress: request.has(CONVERT_COMPRESS),
    };
    let mut target = IntoImage::new(image, written.slots(), manner);
    let files = [Some(disk), written.data.as_ref()];
    let kind = written.header.compression_type;
    let copied = job.run(ctx, &mut target, files.into_iter().flatten(), kind);
    let mut image = target.into_image();
    if copied.is_err() {
        // What was not written is no part of the image; the failure has been told.
        let _ = image.abandon();
    }
    copied?;
    let finished = image.finish();
    finished.map_err(|error| {
        let text = format_args!("error while writing the target's tables: {error}");
        say::sentence(ctx, text)
    })
}
