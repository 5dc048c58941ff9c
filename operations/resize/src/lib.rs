//! The resize operation: a qcow2 or raw image gets another size.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use instar_guest_ops::{Context, Disk};
use instar_plan_resize::{
    Image, Layer, NewSize, Preallocation, Request, ResizeError, Resized, resize_qcow2,
    resize_qcow2_unpacked, resize_raw,
};
use instar_shared::edit::{
    EditResult, Preallocation as GivenPreallocation, RESIZE_SHRINK, ResizeConfig, SizeForm,
};
use instar_shared::op::Outcome;
use op_chain::{Open, Reported, Stopped, ask_for_fuller, open_qcow2, open_unencrypted, stopped};
use op_edit::{Chain, Progress, layers, open_below, open_for_change_by};

/// What a program is linked with.
#[derive(Clone, Copy, Debug)]
pub struct Parts {
    /// How it opens qcow2 images.
    pub open: Open,
    /// How it resizes them.
    pub resize: Resize,
}

/// Resizes a qcow2 image with this backing chain.
pub type Resize = fn(
    Image<'_, Disk>,
    &[Layer<'_, Disk>],
    &Request,
    &mut Progress<'_>,
) -> Result<Resized, ResizeError>;

/// Neither LUKS headers nor decompressors: few runs meet an encrypted image, or a disk that ends within a compressed
/// cluster that is to be filled up.
pub const FEW: Parts = Parts {
    open: open_unencrypted,
    resize: |image, below, request, progress| {
        resize_qcow2_unpacked(image, below, request, progress)
    },
};

/// All that there is.
pub const ALL: Parts = Parts {
    open: open_qcow2,
    resize: |image, below, request, progress| resize_qcow2(image, below, request, progress),
};

/// Does what the host's [`ResizeConfig`] says, and tells the host how it went.
pub fn run(ctx: &mut Context, parts: Parts) {
    let config: ResizeConfig = ctx.config();
    let mut result = EditResult::zeroed();
    let outcome = match request(&config) {
        Some(request) => resize(ctx, parts, (&config, &request), &mut result),
        None => Err(Reported),
    };
    result.outcome.set(outcome.unwrap_or(Outcome::Failed).raw());
    ctx.set_result(&result);
}

fn request(config: &ResizeConfig) -> Option<Request> {
    let size = config.size.get();
    let size = match SizeForm::try_from(config.form.get()).ok()? {
        SizeForm::Absolute => NewSize::Absolute(size),
        SizeForm::Grow => NewSize::Grow(size),
        SizeForm::Shrink => NewSize::Shrink(size),
    };
    let preallocation = match GivenPreallocation::try_from(config.preallocation.get()).ok()? {
        GivenPreallocation::Off => Preallocation::Off,
        GivenPreallocation::Metadata => Preallocation::Metadata,
        GivenPreallocation::Falloc => Preallocation::Falloc,
        GivenPreallocation::Full => Preallocation::Full,
    };
    Some(Request {
        size,
        preallocation,
        shrink: config.flags.get() & RESIZE_SHRINK != 0,
    })
}

fn resize(
    ctx: &mut Context,
    parts: Parts,
    (config, request): (&ResizeConfig, &Request),
    result: &mut EditResult,
) -> Result<Outcome, Reported> {
    let opened = open_for_change_by(parts.open, ctx, 0, config.format.get(), Chain::Ignored)?;
    result.format.set(opened.format.raw());
    let done = match &opened.header {
        Some(header) => {
            result.old_size.set(header.whole_sectors_size());
            // What the image hides of them, and what is in the cluster where the old disk ends, decides about
            // the new part.
            let below = open_below(parts.open, ctx, opened.disk.slot(), header)?;
            let image = Image {
                storage: &opened.disk,
                data: opened.data.as_ref(),
                header,
                cipher: None,
            };
            (parts.resize)(image, &layers(&below), request, &mut Progress(ctx))
        }
        None => resize_raw(&opened.disk, request, &mut Progress(ctx)),
    };
    match done {
        Ok(Resized { old_size, new_size }) => {
            result.old_size.set(old_size);
            result.size.set(new_size);
            Ok(Outcome::Done)
        }
        Err(ResizeError::Compressed) => Err(ask_for_fuller(ctx)),
        Err(e) => {
            let why = match &e {
                ResizeError::Cancelled => Stopped::Cancelled,
                ResizeError::OutOfMemory => Stopped::OutOfMemory,
                e => Stopped::Failed(e),
            };
            Ok(stopped(ctx, "resize", &why))
        }
    }
}
