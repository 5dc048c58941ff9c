//! The bench operation: a stream of requests to an image. Those that read and those that write are programs of their own,
//! as most of what the latter need is of no use to the former.
#![cfg_attr(not(test), no_std)]

use instar_guest_ops::{Context, DiskSet};
use instar_plan_bench::{BenchError, Cancelled, Image, Monitor, Settings, Writes, run as send};
use instar_shared::bench::{BENCH_DRAIN, BENCH_WRITE, BenchConfig, BenchResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{FailureKind, Progress, RecordKind};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U64;
use op_chain::Reported;

/// Nanoseconds of a second.
const NS_PER_SECOND: u64 = 1_000_000_000;

/// What is asked of a program.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The format of the image in slot 0, as the user named it.
    pub told: ImageFormat,
    /// Which requests are sent.
    pub settings: Settings,
}

/// Does what the host's config says, and tells the host how it went. `work` opens the image and sends the requests.
pub fn run(
    ctx: &mut Context,
    work: impl FnOnce(&mut Context, &Asked, &mut BenchResult) -> Result<Outcome, Reported>,
) {
    let config: BenchConfig = ctx.config();
    let mut result = BenchResult::zeroed();
    let outcome = match asked(&config) {
        Some(asked) => {
            let buffers = asked.settings.depth.min(asked.settings.count);
            let buffers = u64::from(buffers).saturating_add(1);
            // What is not granted is missed where it is needed.
            let _ = ctx.grant(buffers.saturating_mul(u64::from(asked.settings.len)));
            work(ctx, &asked, &mut result)
        }
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

fn asked(config: &BenchConfig) -> Option<Asked> {
    let has = |flag: u32| config.flags.get() & flag != 0;
    let writes = Writes {
        pattern: u8::try_from(config.pattern.get()).ok()?,
        flush_interval: config.flush_interval.get(),
        drain: has(BENCH_DRAIN),
    };
    let settings = Settings {
        count: config.count.get(),
        depth: config.depth.get().max(1),
        len: config.len.get().max(1),
        step: config.step.get(),
        start: config.start.get(),
        write: has(BENCH_WRITE).then_some(writes),
    };
    let told = ImageFormat::try_from(config.format.get()).ok()?;
    Some(Asked { told, settings })
}

/// Sends the requests and takes the time.
///
/// # Errors
/// The record that says why has been sent.
pub fn time(
    ctx: &mut Context,
    set: &DiskSet<'_>,
    image: &mut dyn Image,
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
    let per_second = ctx.boot().tsc_hz.get().max(1);
    // Whole seconds apart from the rest, which times a billion is below 2^64 up to 18 GHz.
    let seconds = ticks.checked_div(per_second).unwrap_or(0);
    let rest = ticks.wrapping_sub(seconds.wrapping_mul(per_second));
    let rest = rest
        .saturating_mul(NS_PER_SECOND)
        .checked_div(per_second)
        .unwrap_or(0);
    seconds.saturating_mul(NS_PER_SECOND).saturating_add(rest)
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
