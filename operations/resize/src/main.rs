//! The resize operation without what few runs need.
#![no_std]
#![no_main]

use instar_guest_ops::Context;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_size::run(ctx, op_size::FEW);
}
