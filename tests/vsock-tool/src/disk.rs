//! Requests of 4 KiB to a disk at random places, past the page cache, by several threads at once.

use anyhow::{Context, Result, bail};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::time::Instant;

/// Bytes of a request, and what its memory is aligned to.
const PAGE: usize = 4096;
/// Pages in a mebibyte.
const PAGES_PER_MIB: u64 = (1 << 20) / PAGE as u64;

#[repr(align(4096))]
struct Page([u8; PAGE]);

/// What is done where.
pub struct Load<'a> {
    /// The disk.
    pub path: &'a str,
    /// `read` or `write`.
    pub what: &'a str,
    /// First mebibyte of the disk, and how many.
    pub at_mib: u64,
    pub span_mib: u64,
    /// Requests of all threads together.
    pub count: u64,
    /// Threads, each with one request on its way.
    pub threads: u64,
}

/// Does it, and says how fast it was.
pub fn run(load: &Load<'_>) -> Result<()> {
    let writes = match load.what {
        "read" => false,
        "write" => true,
        other => bail!("'{other}' is neither read nor write"),
    };
    let disk = OpenOptions::new()
        .read(true)
        .write(writes)
        .custom_flags(libc::O_DIRECT)
        .open(load.path)
        .context("the disk")?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..load.threads)
            .map(|number| {
                let disk = &disk;
                scope.spawn(move || requests(disk, load, number, writes))
            })
            .collect();
        let mut ended = threads.into_iter();
        ended.try_for_each(|thread| thread.join().ok().context("a thread has panicked")?)
    })?;
    crate::tell(usize::try_from(load.count)?.saturating_mul(PAGE), began);
    Ok(())
}

/// One thread's part.
fn requests(disk: &File, load: &Load<'_>, number: u64, writes: bool) -> Result<()> {
    let mut page = Page([0x5a; PAGE]);
    // Knuth's generator for MMIX: the same places on each run.
    let mut seed = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for _ in 0..load.count / load.threads.max(1) {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let pages = load.span_mib.saturating_mul(PAGES_PER_MIB).max(1);
        let place = load.at_mib.saturating_mul(PAGES_PER_MIB) + (seed >> 33) % pages;
        let at = place.saturating_mul(PAGE as u64);
        if writes {
            disk.write_all_at(&page.0, at)?;
        } else {
            disk.read_exact_at(&mut page.0, at)?;
        }
    }
    Ok(())
}
