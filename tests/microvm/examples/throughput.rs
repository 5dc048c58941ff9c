//! How fast bytes go through a guest: reads one file and writes another, with overlapped requests.
//!
//! `throughput SOURCE TARGET [BUFFER_MIB [IO_THREADS]]`. A `BUFFER_MIB` of 0 lets the host copy.

use anyhow::{Context, Result};
use instar_microvm_tests::{Guest, limits, operation_file, writable_file};
use instar_test_guests::Case;
use instar_vmm::operation::Limits;
use std::fs::File;
use std::time::Instant;

fn main() -> Result<()> {
    let mut words = std::env::args().skip(1);
    let source = File::open(words.next().context("no source")?)?;
    let target = File::create(words.next().context("no target")?)?;
    let mib: u64 = words.next().map_or(Ok(2), |word| word.parse())?;
    let threads: u8 = words.next().map_or(Ok(2), |word| word.parse())?;
    let case = if mib == 0 {
        Case::CopyRange
    } else {
        Case::CopyThrough
    };
    let len = source.metadata()?.len();
    let started = Instant::now();
    let (_, completed, _) = Guest::new(case)
        .argument(mib << 20)
        .file(operation_file(source)?)
        .file(writable_file(target, len)?)
        .limits(Limits {
            memory_bytes: 1 << 30,
            ..limits(60_000, 600_000)
        })
        .threads(threads, 0)
        .finish()?;
    let seconds = started.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = len as f64 / seconds / 1e9;
    println!(
        "{mib} MiB, {threads} threads: {seconds:.3} s, {rate:.2} GB/s, {} exits",
        completed.stats.exits
    );
    Ok(())
}
