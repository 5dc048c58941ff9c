//! The compare operation: whether two disks, each with its backing chain, have the same content.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::vec::Vec;
use instar_codec::Decoder;
use instar_guest_ops::{Context, Disk, DiskSet};
use instar_layers::{Chain, FileOf};
use instar_plan_compare::{
    Cancelled, CompareError, Disks, Failed, Monitor, Verdict as Found, compare,
};
use instar_shared::compare::{COMPARE_STRICT, CompareConfig, CompareResult, Verdict};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::FailureKind;
use op_chain::{Keys, Reported, Unlock, fail, notice, open_layers_with};

/// Does what the host's config says, and tells the host how it went. `keys` are those of encrypted images.
pub fn run(ctx: &mut Context, keys: &dyn Keys) {
    let config: CompareConfig = ctx.config();
    let mut result = CompareResult::zeroed();
    let outcome = compare_disks(ctx, &config, keys, &mut result).unwrap_or(Outcome::Failed);
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn compare_disks(
    ctx: &mut Context,
    config: &CompareConfig,
    keys: &dyn Keys,
    result: &mut CompareResult,
) -> Result<Outcome, Reported> {
    let [one, two] = config.formats;
    let one = open(ctx, Unlock::of(keys, 0), one.get())?;
    let two = open(ctx, Unlock::of(keys, 1), two.get())?;
    let strict = config.flags.get() & COMPARE_STRICT != 0;
    let mut codec = Decoder::new();
    let mut files = Vec::new();
    for layer in one.layers().iter().chain(two.layers()) {
        files.push(layer.store(FileOf::Image));
        if layer.data_file_of() == FileOf::DataFile {
            files.push(layer.store(FileOf::DataFile));
        }
    }
    let overlap = DiskSet::new(files).ok_or(Reported)?;
    let disks = Disks {
        chains: [&one, &two],
        overlap: &overlap,
        number: Disk::slot,
    };
    match compare(&disks, strict, &mut codec, &mut Progress(ctx)) {
        Ok(found) => {
            result.longer.set(found.longer.into());
            let (verdict, offset) = match found.verdict {
                Found::Identical => (Verdict::Identical, 0),
                Found::Content(offset) => (Verdict::Content, offset),
                Found::Allocation(offset) => (Verdict::Allocation, offset),
                Found::Size => (Verdict::Size, 0),
            };
            result.verdict.set(verdict.raw());
            result.offset.set(offset);
        }
        Err(CompareError::State(failed)) => fill(ctx, result, Verdict::MapFailed, &failed),
        Err(CompareError::Data(failed)) => fill(ctx, result, Verdict::ReadFailed, &failed),
        Err(CompareError::Cancelled) => return Ok(Outcome::Cancelled),
        Err(CompareError::OutOfMemory) => {
            let text = format_args!("It needs more memory; raise --memory");
            ctx.records().failure(FailureKind::Memory, 0, text);
            return Ok(Outcome::Failed);
        }
    }
    Ok(Outcome::Done)
}

fn fill(ctx: &mut Context, result: &mut CompareResult, verdict: Verdict, failed: &Failed) {
    notice(ctx, &failed.source);
    result.verdict.set(verdict.raw());
    result.offset.set(failed.offset);
    result.slot.set(u32::from(failed.disk != 0));
    result.errno.set(failed.source.errno());
    result.longer.set(failed.longer.into());
}

fn open(ctx: &mut Context, unlock: Unlock<'_>, told: u32) -> Result<Chain<Disk>, Reported> {
    let told = ImageFormat::try_from(told).map_err(|_| Reported)?;
    let disk = ctx.disk(unlock.input()).map_err(|_| Reported)?;
    let chain = open_layers_with(ctx, disk, told, unlock)?.chain;
    for layer in chain.layers() {
        let image = layer.store(FileOf::Image);
        layer
            .detect_preallocation(image.allocated_bytes())
            .map_err(|e| fail(ctx, image.slot(), format_args!("{e}")))?;
    }
    Ok(chain)
}

/// A [`Monitor`] over the operation's context.
struct Progress<'a>(&'a mut Context);

impl Monitor for Progress<'_> {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        if done < total {
            self.0.records().progress(done, total);
        }
        if self.0.cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}
