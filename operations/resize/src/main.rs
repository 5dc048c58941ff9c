//! The resize operation: a qcow2 or raw image gets another size.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk};
use instar_plan_resize::{
    Image, Layer, NewSize, Preallocation, Request, ResizeError, Resized, resize_qcow2, resize_raw,
};
use instar_qcow2::Header;
use instar_shared::edit::{
    EditResult, Preallocation as GivenPreallocation, RESIZE_SHRINK, ResizeConfig, SizeForm,
};
use instar_shared::op::Outcome;
use op_chain::{Reported, Stopped, stopped};
use op_edit::{Below, Chain, Opened, Progress, open_below, open_for_change};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    let config: ResizeConfig = ctx.config();
    let mut result = EditResult::zeroed();
    let outcome = match request(&config) {
        Some(request) => resize(ctx, &config, &request, &mut result),
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
    config: &ResizeConfig,
    request: &Request,
    result: &mut EditResult,
) -> Result<Outcome, Reported> {
    let opened = open_for_change(ctx, 0, config.format.get(), Chain::Ignored)?;
    result.format.set(opened.format.raw());
    let done = match &opened.header {
        Some(header) => {
            result.old_size.set(header.whole_sectors_size());
            // What the image hides of them, and what is in the cluster where the old disk ends, decides about
            // the new part.
            let below = open_below(ctx, opened.disk.slot(), header)?;
            resize_image(ctx, &opened, header, &below, request)
        }
        None => resize_raw(&opened.disk, request, &mut Progress(ctx)),
    };
    match done {
        Ok(Resized { old_size, new_size }) => {
            result.old_size.set(old_size);
            result.size.set(new_size);
            Ok(Outcome::Done)
        }
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

fn resize_image(
    ctx: &mut Context,
    opened: &Opened,
    header: &Header,
    below: &[Below],
    request: &Request,
) -> Result<Resized, ResizeError> {
    let image = Image {
        storage: &opened.disk,
        data: opened.data.as_ref(),
        header,
        cipher: None,
    };
    let layers: Vec<Layer<'_, Disk>> = below
        .iter()
        .map(|below| Layer {
            storage: &below.disk,
            data: below.data.as_ref(),
            header: below.header.as_ref(),
            cipher: None,
        })
        .collect();
    resize_qcow2(image, &layers, request, &mut Progress(ctx))
}
