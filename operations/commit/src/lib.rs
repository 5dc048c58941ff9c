//! The commit operation: what the images above a base hold becomes the base's.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod files;
mod say;

use alloc::boxed::Box;
use instar_codec::Decoder;
use instar_guest_ops::{AnnounceError, Context, Disk};
use instar_layers::{Chain, FileOf};
use instar_plan_commit::{Base, CommitError, Image, Job, copy, empty, grow};
use instar_plan_write::{Below, CACHE_BYTES, NothingBelow, WriteImage};
use instar_qcow2::OpenMode;
use instar_shared::commit::{COMMIT_KEEP, COMMIT_NAMED, COMMIT_PACED, CommitConfig, CommitResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_storage::Cipher;
use op_chain::{Keys, Reported, Unlock, read_header};
use op_edit::Progress;
use say::Watch;

/// Memory for what is unpacked and on its way, in bytes.
const BUFFER_BYTES: u64 = 16 << 20;

/// Does what the host's config says, and tells the host how it went. `keys` are those of encrypted images.
pub fn run(ctx: &mut Context, keys: &dyn Keys) {
    let config: CommitConfig = ctx.config();
    let mut result = CommitResult::zeroed();
    let outcome = commit(ctx, &config, keys, &mut result);
    let failed = if ctx.cancelled() {
        Outcome::Cancelled
    } else {
        Outcome::Failed
    };
    result.outcome.set(outcome.unwrap_or(failed).raw());
    ctx.set_result(&result);
}

fn commit(
    ctx: &mut Context,
    config: &CommitConfig,
    keys: &dyn Keys,
    result: &mut CommitResult,
) -> Result<Outcome, Reported> {
    let has = |flag: u32| config.flags.get() & flag != 0;
    let told = ImageFormat::try_from(config.format.get()).map_err(|_| Reported)?;
    let mut images = files::open(ctx, told, Unlock::of(keys, 0))?;
    let is_qcow2 = images.first().is_some_and(|top| top.image.header.is_some());
    let format = if is_qcow2 {
        ImageFormat::Qcow2
    } else {
        ImageFormat::Raw
    };
    result.format.set(format.raw());
    if let Some(top) = images.first() {
        refuse_dirty(ctx, &top.image, true)?;
    }
    let base = images.iter().skip(1).position(|image| image.writable);
    let Some(base) = base else {
        if has(COMMIT_NAMED) {
            // The host knows the names.
            result.not_found.set(1);
            return Ok(Outcome::Failed);
        }
        return Err(say::sentence(
            ctx,
            format_args!("Image does not have a backing file"),
        ));
    };
    let lower = images.split_off(base.saturating_add(2).min(images.len()));
    let base = images.pop().ok_or(Reported)?;
    result.base_slot.set(base.image.disk.slot().into());
    let above = files::chain(images);
    let below = files::chain(lower);
    let mut parts = Parts {
        above,
        base: *base.image,
        cipher: base.cipher,
        below,
    };
    let done = parts.commit(ctx, has(COMMIT_PACED), !has(COMMIT_KEEP));
    result.base_size.set(parts.base.len_bytes());
    done.map(|()| Outcome::Done)
}

/// The chain, taken apart.
struct Parts {
    above: Chain<Disk>,
    base: Image<Disk>,
    /// Of the base's data, if that is encrypted.
    cipher: Option<&'static dyn Cipher>,
    below: Chain<Disk>,
}

impl Parts {
    fn commit(&mut self, ctx: &mut Context, paced: bool, empties: bool) -> Result<(), Reported> {
        // Of this QEMU says nothing.
        refuse_dirty(ctx, &self.base, false)?;
        self.announce(ctx)?;
        let size = self.above.len_bytes();
        let (base, below) = (&self.base, &self.below);
        let grown = grow(base, self.cipher, below, size, &mut Progress(ctx));
        grown.map_err(|error| say::failed(ctx, &error))?;
        if let Some(header) = &mut self.base.header {
            *header = read_header(ctx, &self.base.disk, OpenMode::Change)?;
        }
        self.copy(ctx, paced)?;
        let top = self.above.layers().first().filter(|_| empties);
        let Some((top, header)) = top.and_then(|top| Some((top, top.header()?))) else {
            return Ok(());
        };
        let in_data_file = top.data_file_of() == FileOf::DataFile;
        let data = in_data_file.then(|| top.store(FileOf::DataFile));
        let emptied = empty(top.store(FileOf::Image), data, header, &mut Progress(ctx));
        emptied.map_err(|error| say::failed(ctx, &error))
    }

    /// Says how much the base may get.
    fn announce(&self, ctx: &mut Context) -> Result<(), Reported> {
        let size = self.above.len_bytes();
        for disk in [Some(&self.base.disk), self.base.data.as_ref()]
            .into_iter()
            .flatten()
        {
            ctx.announce_size(disk.slot(), size).map_err(|error| {
                let errno = match error {
                    AnnounceError::Host(errno) => errno,
                    AnnounceError::Invalid => 9,
                };
                say::failed(ctx, &CommitError::Failed { errno })
            })?;
        }
        Ok(())
    }

    fn copy(&mut self, ctx: &mut Context, paced: bool) -> Result<(), Reported> {
        let below = core::mem::replace(&mut self.below, Chain::new(alloc::vec![]));
        let set = files::set(&self.above, &self.base).ok_or(Reported)?;
        let mut base = match &self.base.header {
            None => Base::Raw(&self.base.disk),
            Some(header) => {
                let tables = header.table_bytes();
                // What is not granted is missed where it is needed.
                let _ = ctx.grant(tables.saturating_add(4 * CACHE_BYTES));
                let below: Box<dyn Below> = if below.layers().is_empty() {
                    Box::new(NothingBelow)
                } else {
                    Box::new((below, Decoder::new()))
                };
                let (disk, data) = (&self.base.disk, self.base.data.as_ref());
                let codec = Box::new(Decoder::new());
                let image = WriteImage::open_with(disk, data, header, below, codec, self.cipher);
                let mut image = image.map_err(|error| say::failed(ctx, &error.into()))?;
                image.punch();
                Base::Qcow2(Box::new(image))
            }
        };
        let _ = ctx.grant(BUFFER_BYTES);
        let job = Job {
            io: &set,
            above: &self.above,
            number: Disk::slot,
            codec: &mut Decoder::new(),
            base: files::numbers(&self.base),
        };
        let copied = copy(job, &mut base, &mut Watch { ctx, paced });
        copied.map_err(|error| say::failed(ctx, &error))
    }
}

fn refuse_dirty(ctx: &mut Context, image: &Image<Disk>, told: bool) -> Result<(), Reported> {
    match &image.header {
        None => Ok(()),
        Some(header) => op_edit::refuse_dirty(ctx, image.disk.slot(), header, told),
    }
}
