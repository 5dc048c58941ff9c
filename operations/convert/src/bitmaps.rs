//! The source's persistent bitmaps.

use crate::request::Request;
use crate::say;
use alloc::string::String;
use alloc::vec::Vec;
use instar_guest_ops::Context;
use instar_layers::{FileOf, Layer};
use instar_plan_convert::{bitmaps_of, copy_bitmap};
use instar_plan_create::NewImage;
use instar_qcow2::bitmaps::Bitmap;
use instar_shared::convert::CONVERT_SKIP_BROKEN_BITMAPS;
use instar_storage::StorageMut;
use op_chain::{Layers, Reported};

/// What `qemu-img` advises about inconsistent bitmaps.
const ADVICE: &str = "Try --skip-broken-bitmaps, or use 'qemu-img bitmap --remove' to delete it";

/// The bitmaps of the only source that can be copied.
///
/// # Errors
/// It has none by its format, or one is inconsistent: the record that says so has been sent.
pub fn find(
    ctx: &mut Context,
    request: &Request<'_>,
    sources: &[Layers],
) -> Result<Vec<Bitmap>, Reported> {
    let layer = sources
        .first()
        .and_then(|source| source.chain.layers().first());
    let header = layer.and_then(|layer| layer.header());
    let Some((layer, header)) = layer.zip(header.filter(|header| header.version > 2)) else {
        return Err(say::sentence(
            ctx,
            format_args!("Source lacks bitmap support"),
        ));
    };
    let all = bitmaps_of(layer.store(FileOf::Image), header);
    let all = all.map_err(|error| say::sentence(ctx, format_args!("{error}")))?;
    let mut good = Vec::new();
    // QEMU walks from the last one to the first.
    for bitmap in all.into_iter().rev() {
        if !bitmap.in_use() {
            good.push(bitmap);
            continue;
        }
        let name = String::from_utf8_lossy(&bitmap.name);
        if !request.has(CONVERT_SKIP_BROKEN_BITMAPS) {
            let text = format_args!("Cannot copy inconsistent bitmap '{name}'\n{ADVICE}");
            return Err(say::sentence(ctx, text));
        }
        let text = format_args!("warning: Skipping inconsistent bitmap '{name}'");
        ctx.records().prefixed(text);
    }
    good.reverse();
    Ok(good)
}

/// Copies bitmaps of a source's top image into a new one.
///
/// # Errors
/// The record that says why has been sent.
pub fn copy<S: instar_storage::Storage, T: StorageMut>(
    ctx: &mut Context,
    layer: &Layer<S>,
    bitmaps: &[Bitmap],
    image: &mut NewImage<'_, T>,
    cluster_bytes: u64,
) -> Result<(), Reported> {
    let Some(header) = layer.header() else {
        return Ok(());
    };
    for bitmap in bitmaps {
        let store = layer.store(FileOf::Image);
        let copied = copy_bitmap(store, header, bitmap, image, cluster_bytes);
        copied.map_err(|error| {
            let name = String::from_utf8_lossy(&bitmap.name);
            say::sentence(
                ctx,
                format_args!("Failed to populate bitmap {name}: {error}"),
            )
        })?;
    }
    Ok(())
}
