//! The measure operation: how long the file of a new image becomes.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_chain::NoKeys;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_measure::run(ctx, &NoKeys);
}
