//! The convert operation: images, each with its backing chain, become another image, or fill a raw one.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use instar_shared::convert::CONVERT_NO_CREATE;
use instar_shared::op::ImageFormat;
use op_chain::NoKeys;
use op_copy::convert;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    convert(ctx, &NoKeys, |job, ctx| {
        match (
            job.request.target_format,
            job.request.has(CONVERT_NO_CREATE),
        ) {
            (ImageFormat::Raw, true) => job.fill_raw(ctx),
            (ImageFormat::Raw, false) => job.to_raw(ctx),
            _ => job.to_qcow2(ctx),
        }
    });
}
