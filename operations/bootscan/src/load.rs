//! The kernel of the chosen entry: what it is, and its bytes for the host.

use crate::{say, sentence};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use instar_filesystem::{File, Files, FsError};
use instar_guest_ops::{AnnounceError, Context};
use instar_plan_bootscan::kernel::{self, Format, Kernel};
use instar_plan_bootscan::{Disk, Entry, Place};
use instar_shared::bootscan::{
    BootPlan, BootSegment, BootscanConfig, INITRD_ALIGN, KernelFormat, MAX_INITRD, MAX_INITRDS,
    MAX_KERNEL,
};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::IntoBytes;
use instar_storage::{Errno, StorageMut};
use op_chain::Reported;

const _: () = assert!(kernel::MAX_KERNEL == MAX_KERNEL);
const _: () = assert!(instar_plan_bootscan::MAX_INITRDS == MAX_INITRDS as usize);

/// Bytes that are copied at once.
const CHUNK: usize = 1 << 20;

/// A file of the disk that is open.
struct Open<'d> {
    files: &'d Files,
    file: File,
}

/// Sends the plan of the entry's kernel, and copies it and the initial RAM disks into the host's files if it gives any.
///
/// # Errors
/// The record that says why has been sent.
pub fn load(
    ctx: &mut Context,
    config: &BootscanConfig,
    disk: &Disk,
    entry: &Entry,
) -> Result<(), Reported> {
    let copies = config.kernel_slot.get() != 0 || config.initrd_slot.get() != 0;
    let Some(place) = entry.kernel.as_ref().filter(|_| entry.problem.is_none()) else {
        if copies {
            let problem = entry.problem.as_deref().unwrap_or("it names no kernel");
            return Err(sentence(
                ctx,
                format_args!("The entry cannot be booted: {problem}"),
            ));
        }
        return Ok(());
    };
    let kernel = open(ctx, disk, place)?;
    let initrds = entry.initrds.iter().map(|place| open(ctx, disk, place));
    let initrds = initrds.collect::<Result<Vec<_>, _>>()?;
    let initrd_len = initrds_len(&initrds);
    if kernel.file.len > MAX_KERNEL || initrd_len > MAX_INITRD {
        let text = format_args!(
            "Its kernel has more than 256 MiB, or its initial RAM disk more than 1 GiB"
        );
        return Err(sentence(ctx, text));
    }
    match kernel::parse(kernel.file.len, &|at, buf| kernel.read_exact(at, buf)) {
        Ok(parsed) => send(ctx, &parsed, kernel.file.len, initrd_len),
        Err(error) => {
            let path = String::from_utf8_lossy(&place.path);
            say::note(
                ctx,
                &format!("The kernel '{path}' cannot be loaded: {error}"),
            );
        }
    }
    // Nothing is written before all sizes are known.
    let targets = [
        (
            config.kernel_slot.get(),
            core::slice::from_ref(&kernel),
            kernel.file.len,
        ),
        (config.initrd_slot.get(), &initrds, initrd_len),
    ];
    for (slot, _, len) in targets.iter().filter(|target| target.0 != 0) {
        announce(ctx, *slot, *len)?;
    }
    for (slot, files, len) in targets.iter().filter(|target| target.0 != 0) {
        copy(ctx, *slot, files, *len)?;
    }
    Ok(())
}

impl Open<'_> {
    /// Fills all of `buf`.
    fn read_exact(&self, at: u64, buf: &mut [u8]) -> Result<(), FsError> {
        let done = self.files.read(&self.file, at, buf)?;
        if done == buf.len() {
            return Ok(());
        }
        Err(FsError::Broken {
            name: self.files.fs().name(),
            reason: format!("a file ends at byte {}", at.saturating_add(done as u64)),
        })
    }
}

fn open<'d>(ctx: &mut Context, disk: &'d Disk, place: &Place) -> Result<Open<'d>, Reported> {
    let opened = match disk.files_of(place.volume) {
        Some(files) => files.open(&place.path).map(|file| Open { files, file }),
        None => Err(FsError::NotFound),
    };
    opened.map_err(|error| {
        let path = String::from_utf8_lossy(&place.path);
        sentence(ctx, format_args!("Could not read '{path}': {error}"))
    })
}

/// Length of all initial RAM disks, each but the last padded.
fn initrds_len(initrds: &[Open<'_>]) -> u64 {
    initrds.iter().fold(0, |sum: u64, initrd| {
        let start = sum
            .checked_next_multiple_of(INITRD_ALIGN)
            .unwrap_or(u64::MAX);
        start.saturating_add(initrd.file.len)
    })
}

fn send(ctx: &mut Context, kernel: &Kernel, kernel_len: u64, initrd_len: u64) {
    let mut plan = BootPlan::zeroed();
    let format = match kernel.format {
        Format::BzImage => KernelFormat::BzImage,
        Format::Pvh => KernelFormat::Pvh,
    };
    plan.format.set(format.raw());
    plan.segments
        .set(u32::try_from(kernel.segments.len()).unwrap_or(0));
    plan.entry_gpa.set(kernel.entry_gpa);
    plan.kernel_len.set(kernel_len);
    plan.initrd_len.set(initrd_len);
    plan.initrd_max.set(kernel.initrd_max);
    let header = &kernel.setup_header;
    plan.setup_header_len
        .set(u32::try_from(header.len()).unwrap_or(0));
    for (to, from) in plan.setup_header.iter_mut().zip(header) {
        *to = *from;
    }
    for (to, from) in plan.segment.iter_mut().zip(&kernel.segments) {
        *to = BootSegment {
            gpa: from.gpa.into(),
            file_offset: from.file_offset.into(),
            file_len: from.file_len.into(),
            mem_len: from.mem_len.into(),
        };
    }
    let _ = ctx
        .records()
        .record(RecordKind::BootPlan, &[plan.as_bytes()]);
}

fn announce(ctx: &mut Context, slot: u16, bytes: u64) -> Result<(), Reported> {
    ctx.announce_size(slot, bytes).map_err(|error| match error {
        AnnounceError::Host(errno) => cannot_write(ctx, Errno(errno)),
        AnnounceError::Invalid => cannot_write(ctx, Errno(22)),
    })
}

fn cannot_write(ctx: &mut Context, errno: Errno) -> Reported {
    sentence(ctx, format_args!("Could not write the file: {errno}"))
}

/// Copies files one after the other, each to a multiple of [`INITRD_ALIGN`].
fn copy(ctx: &mut Context, slot: u16, files: &[Open<'_>], total: u64) -> Result<(), Reported> {
    let target = ctx.disk(slot).map_err(|_| Reported)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0_u64;
    for open in files {
        at = at.checked_next_multiple_of(INITRD_ALIGN).unwrap_or(at);
        let mut done = 0_u64;
        while done < open.file.len {
            if ctx.cancelled() {
                return Err(Reported);
            }
            let left = usize::try_from(open.file.len.saturating_sub(done)).unwrap_or(CHUNK);
            let (chunk, _) = buffer.split_at_mut(left.min(CHUNK));
            let read = open.read_exact(done, chunk);
            read.map_err(|error| sentence(ctx, format_args!("{error}")))?;
            let place = at.saturating_add(done);
            let written = target.write_at(place, chunk);
            written.map_err(|error| cannot_write(ctx, Errno(error.errno)))?;
            done = done.saturating_add(chunk.len() as u64);
            ctx.records().progress(at.saturating_add(done), total);
        }
        at = at.saturating_add(open.file.len);
    }
    let flushed = target.flush();
    flushed.map_err(|error| cannot_write(ctx, Errno(error.errno)))
}
