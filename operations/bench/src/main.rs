//! The bench operation: a stream of requests to an image, through its backing chain.
#![no_std]
#![no_main]

extern crate alloc;

mod qcow2;

use alloc::vec::Vec;
use instar_codec::Decoder;
use instar_guest_ops::{Context, Disk, DiskSet};
use instar_layers::FileOf;
use instar_plan_bench::{
    BenchError, Cancelled, Image, Monitor, RawWriter, Reader, Settings, Writes, run as send,
};
use instar_plan_convert::Chains;
use instar_shared::bench::{BENCH_DRAIN, BENCH_WRITE, BenchConfig, BenchResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{FailureKind, Progress, RecordKind};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;
use instar_storage::Storage;
use op_chain::{NO_KEYS, NamedBy, Reported, fail, format_of, open_layers};
use op_edit::open_written;

instar_guest_ops::entry!(run);

/// Bytes of a sector, the unit of a disk's size.
const SECTOR_BYTES: u64 = 512;

fn run(ctx: &mut Context) {
    let config: BenchConfig = ctx.config();
    let mut result = BenchResult::zeroed();
    let outcome = match settings(&config) {
        Some(settings) => bench(ctx, &config, &settings, &mut result),
        None => Err(Reported),
    };
    let failed = if ctx.cancelled() {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    result.outcome.set(outcome.unwrap_or(failed).raw());
    ctx.set_result(&result);
}

fn settings(config: &BenchConfig) -> Option<Settings> {
    let has = |flag: u32| config.flags.get() & flag != 0;
    let writes = Writes {
        pattern: u8::try_from(config.pattern.get()).ok()?,
        flush_interval: config.flush_interval.get(),
        drain: has(BENCH_DRAIN),
    };
    Some(Settings {
        count: config.count.get(),
        depth: config.depth.get().max(1),
        len: config.len.get().max(1),
        step: config.step.get(),
        start: config.start.get(),
        write: has(BENCH_WRITE).then_some(writes),
    })
}

fn bench(
    ctx: &mut Context,
    config: &BenchConfig,
    settings: &Settings,
    result: &mut BenchResult,
) -> Result<Outcome, Reported> {
    let buffers = u64::from(settings.depth.min(settings.count)).saturating_add(1);
    if settings.write.is_some() {
        return write(ctx, config, settings, buffers, result);
    }
    let told = ImageFormat::try_from(config.format.get()).map_err(|_| Reported)?;
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let layers = open_layers(ctx, disk, told)?;
    result.format.set(layers.format.raw());
    // What is not granted is missed where it is needed.
    let _ = ctx.grant(buffers.saturating_mul(u64::from(settings.len)));
    let chains = Chains::new([&layers.chain], None, Disk::slot, Decoder::new());
    let disks = layers.chain.layers().iter();
    let disks = disks.flat_map(|l| [l.store(FileOf::Image), l.store(FileOf::DataFile)]);
    let set = set(disks).ok_or(Reported)?;
    time(ctx, &set, &mut Reader(chains), settings, result)
}

/// Requests that write.
fn write(
    ctx: &mut Context,
    config: &BenchConfig,
    settings: &Settings,
    buffers: u64,
    result: &mut BenchResult,
) -> Result<Outcome, Reported> {
    let told = ImageFormat::try_from(config.format.get()).map_err(|_| Reported)?;
    let disk = &ctx.disk(0).map_err(|_| Reported)?;
    let format = format_of(ctx, disk, told, NamedBy::User)?;
    result.format.set(format.raw());
    let _ = ctx.grant(buffers.saturating_mul(u64::from(settings.len)));
    if format != ImageFormat::Qcow2 {
        let len = disk.len_bytes();
        let mut image = RawWriter {
            file: disk.slot(),
            len_bytes: len.checked_next_multiple_of(SECTOR_BYTES).unwrap_or(len),
        };
        let set = set([disk]).ok_or(Reported)?;
        return time(ctx, &set, &mut image, settings, result);
    }
    let (written, below) = open_written(ctx, disk, NO_KEYS)?;
    let files = [Some(disk), written.data.as_ref()];
    let set = set(files.into_iter().flatten()).ok_or(Reported)?;
    let image = written.begin(ctx, below);
    let image = image.map_err(|e| fail(ctx, 0, format_args!("{e}")))?;
    let mut image = qcow2::Writer::new(image, written.slots());
    let sent = time(ctx, &set, &mut image, settings, result);
    // What is written is in the image whatever came after it.
    let kept = image.finish();
    match (sent, kept) {
        (Ok(_), Err(error)) => {
            let records = ctx.records();
            records.failure(FailureKind::Operation, 0, format_args!("{error}"));
            Err(Reported)
        }
        (sent, _) => sent,
    }
}

/// All files that take requests.
fn set<'a>(disks: impl IntoIterator<Item = &'a Disk>) -> Option<DiskSet<'a>> {
    let mut disks: Vec<&Disk> = disks.into_iter().collect();
    disks.sort_by_key(|disk| disk.slot());
    disks.dedup_by_key(|disk| disk.slot());
    DiskSet::new(disks)
}

/// Sends the requests and takes the time.
fn time<I: Image>(
    ctx: &mut Context,
    set: &DiskSet<'_>,
    image: &mut I,
    settings: &Settings,
    result: &mut BenchResult,
) -> Result<Outcome, Reported> {
    begun(ctx, u64::from(settings.count));
    let start = ctx.ticks();
    let sent = send(set, image, settings, &mut Watch(ctx));
    let ticks = ctx.ticks().wrapping_sub(start);
    result.elapsed_ns.set(nanoseconds(ticks, ctx));
    let error = match sent {
        Ok(()) => return Ok(Outcome::Done),
        Err(error) => error,
    };
    let kind = match error {
        BenchError::Request { .. } => FailureKind::Operation,
        BenchError::Cancelled => FailureKind::Cancelled,
        BenchError::OutOfMemory => FailureKind::Memory,
    };
    ctx.records().failure(kind, 0, format_args!("{error}"));
    Err(Reported)
}

/// Has the host say at once what is about to be sent.
fn begun(ctx: &mut Context, total: u64) {
    let progress = Progress {
        done: U64::new(0),
        total: U64::new(total),
    };
    let records = ctx.records();
    let _ = records.record(RecordKind::Progress, &[progress.as_bytes()]);
    records.drain();
}

fn nanoseconds(ticks: u64, ctx: &Context) -> u64 {
    let per_second = u128::from(ctx.boot().tsc_hz.get().max(1));
    let ns = u128::from(ticks).saturating_mul(1_000_000_000);
    let ns = ns.checked_div(per_second).unwrap_or(0);
    u64::try_from(ns).unwrap_or(u64::MAX)
}

/// A [`Monitor`] over the operation's context.
struct Watch<'a>(&'a mut Context);

impl Monitor for Watch<'_> {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        self.0.records().progress(done, total);
        if self.0.cancelled() {
            Err(Cancelled)
        } else {
            Ok(())
        }
    }
}
