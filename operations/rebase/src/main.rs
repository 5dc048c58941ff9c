//! The rebase operation: an image gets another backing file.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_chain::NoKeys;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_rebase::run(ctx, &NoKeys);
}
