//! The convert operation into a qcow2 image that is there: `convert -n`, with keys of encrypted images.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_keys::SecretKeys;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_convert_into::run(ctx, &SecretKeys);
}
