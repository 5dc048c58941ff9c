//! The amend operation with ciphers: the host starts it where there is a password, or key slots are to change.
#![no_std]
#![no_main]

extern crate alloc;

mod slots;

use instar_guest_ops::Context;
use slots::Slots;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_change::run(ctx, op_change::ALL, &Slots);
}
