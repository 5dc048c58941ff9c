//! The convert operation: images, each with its backing chain, become another image.
#![no_std]
#![no_main]

extern crate alloc;

mod bitmaps;
mod copy;
mod files;
mod request;
mod say;
mod sources;

use alloc::vec::Vec;
use instar_guest_ops::Context;
use instar_shared::convert::{CONVERT_BITMAPS, CONVERT_LOOK_ONLY, ConvertConfig, ConvertResult};
use instar_shared::op::Outcome;
use op_chain::Reported;
use request::Request;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    let config: ConvertConfig = ctx.config();
    let mut result = ConvertResult::zeroed();
    let outcome = Request::new(&config)
        .ok_or(Reported)
        .and_then(|request| convert(ctx, &request, &mut result));
    let failed = if ctx.cancelled() {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    result.outcome.set(outcome.unwrap_or(failed).raw());
    ctx.set_result(&result);
}

fn convert(
    ctx: &mut Context,
    request: &Request<'_>,
    result: &mut ConvertResult,
) -> Result<Outcome, Reported> {
    let sources = sources::open(ctx, request)?;
    if let Some(first) = sources.first() {
        result.source_format.set(first.format.raw());
    }
    let bitmaps = if request.has(CONVERT_BITMAPS) {
        bitmaps::find(ctx, request, &sources)?
    } else {
        Vec::new()
    };
    if request.has(CONVERT_LOOK_ONLY) {
        return Ok(Outcome::Done);
    }
    let size = copy::copy(ctx, request, &sources, &bitmaps)?;
    result.size.set(size);
    Ok(Outcome::Done)
}
