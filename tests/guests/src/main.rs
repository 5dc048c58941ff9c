//! The guest that misbehaves; see the library for what it can do.
#![no_std]
#![no_main]
#![allow(clippy::cast_possible_truncation)] // 64-bit machines only, and small numbers

use instar_guest_ops::Context;
use instar_test_guests::{Case, DONE_MAGIC, GuestConfig, GuestResult};
use zerocopy::FromZeros;

extern crate alloc;

mod control;
mod cpu;
mod flow;
mod heap;
mod memory;
mod overlap;
mod ring;
mod ring_change;
mod secrets;

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    let config: GuestConfig = ctx.config();
    let Ok(case) = Case::try_from(config.case.get()) else {
        fail("no such case");
    };
    leave(ctx, case, 0);
    match case.raw() {
        0..10 => flow::run(ctx, case, config.argument.get()),
        10..60 => cpu::run(case),
        60..80 => memory::run(ctx, case),
        80..120 => control::run(ctx, case),
        120..140 => ring::run(ctx, case),
        140..150 => ring_change::run(ctx, case),
        160..165 => secrets::run(ctx, case),
        170..200 => overlap::run(ctx, case, config.argument.get()),
        _ => heap::run(ctx, case),
    }
}

/// Leaves the result.
fn leave(ctx: &mut Context, case: Case, answer: u64) {
    let mut result = GuestResult::new_zeroed();
    result.magic.set(DONE_MAGIC);
    result.case.set(case.raw());
    result.answer.set(answer);
    ctx.set_result(&result);
}

/// Ends the guest: the host did something that the case did not expect.
#[allow(clippy::panic)]
#[track_caller]
fn fail(why: &str) -> ! {
    panic!("unexpected: {why}")
}

/// Fails unless `holds`.
#[track_caller]
fn check(holds: bool, why: &str) {
    if !holds {
        fail(why);
    }
}
