//! The map operation: where the parts of a disk lie, through its whole backing chain.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_chain::NoKeys;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_map::run(ctx, &NoKeys);
}
