//! The create operation with ciphers: the host starts it for images that are to be encrypted.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_encrypt::Keyed;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_new::run(ctx, &Keyed);
}
