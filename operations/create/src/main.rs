//! The create operation without ciphers.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_output::Plain;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_new::run(ctx, &Plain);
}
