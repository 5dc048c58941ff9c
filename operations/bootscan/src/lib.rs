//! The bootscan operation: what a disk boots, and the parts of its kernel.
//!
//! - `store`: the disk as a store; `say`: records; `load`: the kernel, and its way into the host's files.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod load;
mod say;
mod store;

use alloc::rc::Rc;
use instar_filesystem::Cached;
use instar_guest_ops::Context;
use instar_plan_bootscan::{Disk, Entry, Scan, find, scan};
use instar_shared::bootscan::{
    BOOTSCAN_WANTED, BootscanConfig, BootscanResult, MAX_BOOT_RECORDS, NO_INDEX,
};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::FailureKind;
use op_chain::{Layers, Reported, open_layers};
use store::ChainStore;

/// Memory that readers of file systems may take beside what every operation has.
const MEMORY: u64 = 64 << 20;

/// Does what the host's config says, and tells the host how it went.
pub fn run(ctx: &mut Context) {
    let config: BootscanConfig = ctx.config();
    let mut result = BootscanResult::zeroed();
    result.chosen.set(NO_INDEX);
    result.default.set(NO_INDEX);
    let outcome = boot_scan(ctx, &config, &mut result);
    let failed = if ctx.cancelled() {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    result
        .outcome
        .set(outcome.map_or(failed, |()| Outcome::Done).raw());
    ctx.set_result(&result);
}

/// Sends a sentence that ends the operation.
fn sentence(ctx: &mut Context, text: core::fmt::Arguments<'_>) -> Reported {
    ctx.records().failure(FailureKind::Operation, 0, text);
    Reported
}

fn boot_scan(
    ctx: &mut Context,
    config: &BootscanConfig,
    result: &mut BootscanResult,
) -> Result<(), Reported> {
    let told = ImageFormat::try_from(config.format.get()).map_err(|_| Reported)?;
    let image = ctx.disk(0).map_err(|_| Reported)?;
    let Layers { chain, .. } = open_layers(ctx, image, told)?;
    // What is not granted is missed where it is needed.
    let _ = ctx.grant(MEMORY);
    let store = Rc::new(Cached::new(ChainStore::new(chain)));
    let disk = Disk::open(store.clone());
    let disk = disk.map_err(|error| match store.inner().first_error() {
        Some(damage) => sentence(ctx, format_args!("The disk cannot be read: {damage}")),
        None => sentence(ctx, format_args!("{error}")),
    })?;
    let found = scan(&disk);
    result.scheme.set(say::scheme(disk.scheme).raw());
    result.volumes.set(say::volumes(ctx, &disk));
    for note in &found.notes {
        say::note(ctx, note);
    }
    if let Some(damage) = store.inner().first_error() {
        say::note(
            ctx,
            &alloc::format!("A part of the disk cannot be read: {damage}"),
        );
    }
    if let Some(source) = &found.source {
        say::source(ctx, source);
    }
    for entry in &found.entries {
        say::entry(ctx, entry);
    }
    let number = |index: usize| u32::try_from(index).unwrap_or(MAX_BOOT_RECORDS);
    result.entries.set(number(found.entries.len()));
    result.default.set(found.default.map_or(NO_INDEX, number));
    let (index, entry) = choose(ctx, config, &found)?;
    result.chosen.set(number(index));
    load::load(ctx, config, &disk, entry)
}

/// The entry that is booted.
fn choose<'s>(
    ctx: &mut Context,
    config: &BootscanConfig,
    found: &'s Scan,
) -> Result<(usize, &'s Entry), Reported> {
    let wanted = usize::try_from(config.wanted_len.get()).unwrap_or(usize::MAX);
    let wanted = config.wanted.get(..wanted).unwrap_or(&config.wanted);
    let index = if config.flags.get() & BOOTSCAN_WANTED == 0 {
        found.default
    } else {
        find(&found.entries, wanted)
    };
    let chosen = index.and_then(|index| Some((index, found.entries.get(index)?)));
    chosen.ok_or_else(|| {
        if found.entries.is_empty() {
            return sentence(ctx, format_args!("Nothing on this disk can be booted"));
        }
        let wanted = alloc::string::String::from_utf8_lossy(wanted);
        sentence(ctx, format_args!("There is no boot entry '{wanted}'"))
    })
}
