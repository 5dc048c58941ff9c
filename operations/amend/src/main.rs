//! The amend operation without ciphers.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_change::NoKeySlots;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_change::run(ctx, &NoKeySlots);
}
