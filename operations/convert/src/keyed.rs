//! The convert operation: images, each with its backing chain, become another image, or fill a raw one, with keys of encrypted
//! images.
#![no_std]
#![no_main]

use instar_guest_ops::Context;
use op_copy::{convert, make};
use op_encrypt::Keyed;
use op_keys::SecretKeys;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    convert(ctx, &SecretKeys, |job, ctx| make(job, ctx, &Keyed));
}
