//! The amend operation without what few runs need.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_change::{FEW, NoKeySlots};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_change::run(ctx, FEW, &NoKeySlots);
}
