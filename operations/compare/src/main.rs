//! The compare operation: whether two disks, each with its backing chain, have the same content.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_chain::NoKeys;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_compare::run(ctx, &NoKeys);
}
