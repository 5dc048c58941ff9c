//! The images that are read.

use crate::request::Request;
use alloc::vec::Vec;
use instar_guest_ops::Context;
use instar_layers::FileOf;
use op_chain::{Layers, Reported, Unlock, fail, open_layers_of};

/// Opens all sources, each with its backing chain.
///
/// # Errors
/// The record that says why has been sent.
pub fn open(ctx: &mut Context, request: &Request<'_>) -> Result<Vec<Layers>, Reported> {
    let count = u16::try_from(request.config.sources.get()).map_err(|_| Reported)?;
    // Of several sources the host refuses snapshots itself, once all are open.
    let snapshot = request.snapshot.filter(|_| count == 1);
    let mut sources = Vec::new();
    for slot in 0..count {
        let disk = ctx.disk(slot).map_err(|_| Reported)?;
        let layers = open_layers_of(
            ctx,
            disk,
            request.source_format,
            snapshot,
            Unlock::of(request.keys, slot),
        )?;
        for layer in layers.chain.layers() {
            let image = layer.store(FileOf::Image);
            layer
                .detect_preallocation(image.allocated_bytes())
                .map_err(|e| fail(ctx, image.slot(), format_args!("{e}")))?;
        }
        sources.push(layers);
    }
    Ok(sources)
}
