//! The end of `convert -n --bitmaps`: the bitmaps, after the copy.
#![no_std]
#![no_main]

use instar_guest_ops::Context;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_convert_into::add_bitmaps(ctx);
}
