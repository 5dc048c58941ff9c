//! The amend operation whole, without ciphers.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_change::{ALL, NoKeySlots};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_change::run(ctx, ALL, &NoKeySlots);
}
