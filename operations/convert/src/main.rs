//! The convert operation: images, each with its backing chain, become another image, or fill a raw one.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_chain::NoKeys;
use op_copy::{convert, make};
use op_output::Plain;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    convert(ctx, &NoKeys, |job, ctx| make(job, ctx, &Plain));
}
