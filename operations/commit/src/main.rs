//! The commit operation: what the images above a base hold becomes the base's.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_chain::NoKeys;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_commit::run(ctx, &NoKeys);
}
