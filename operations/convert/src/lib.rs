//! What the operations that copy images into another one have in common: the sources, the copy, and what is said.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod bitmaps;
mod copy;
mod files;
mod request;
pub mod say;
mod sources;

pub use copy::{Files, Job, Sources};
pub use request::Request;

use alloc::vec::Vec;
use instar_guest_ops::Context;
use instar_shared::convert::{
    CONVERT_BITMAPS, CONVERT_LOOK_ONLY, CONVERT_NO_CREATE, ConvertConfig, ConvertResult,
};
use instar_shared::op::{ImageFormat, Outcome};
use op_chain::{Keys, Reported};
use op_output::Encrypt;

/// Does what the host's [`ConvertConfig`] says, and tells the host how it went. `fill` makes the target, or fills it.
/// `keys` are those of encrypted images.
pub fn convert(
    ctx: &mut Context,
    keys: &dyn Keys,
    fill: impl FnOnce(&Job<'_, Sources<'_>>, &mut Context) -> Result<(), Reported>,
) {
    let config: ConvertConfig = ctx.config();
    let mut result = ConvertResult::zeroed();
    let outcome = Request::new(&config, keys)
        .ok_or(Reported)
        .and_then(|request| convert_as(ctx, &request, &mut result, fill));
    let failed = if ctx.cancelled() {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    result.outcome.set(outcome.unwrap_or(failed).raw());
    ctx.set_result(&result);
}

/// Makes the target that the host asks for, which `encrypt` encrypts if it is to be, or fills a raw one that is there.
///
/// # Errors
/// The record that says why has been sent.
pub fn make(
    job: &Job<'_, Sources<'_>>,
    ctx: &mut Context,
    encrypt: &impl Encrypt,
) -> Result<(), Reported> {
    let request = job.request;
    match (request.target_format, request.has(CONVERT_NO_CREATE)) {
        (ImageFormat::Raw, true) => job.fill_raw(ctx),
        (ImageFormat::Raw, false) => job.to_raw(ctx),
        _ => job.to_qcow2(ctx, encrypt),
    }
}

fn convert_as(
    ctx: &mut Context,
    request: &Request<'_>,
    result: &mut ConvertResult,
    fill: impl FnOnce(&Job<'_, Sources<'_>>, &mut Context) -> Result<(), Reported>,
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
    let size = copy::copy(ctx, request, &sources, &bitmaps, fill)?;
    result.size.set(size);
    Ok(Outcome::Done)
}
