//! The rebase operation: an image gets another backing file.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod paths;

use alloc::string::String;
use instar_guest_ops::{Context, Disk, DiskSet};
use instar_layers::{Chain, DataError, FileOf};
use instar_plan_rebase::{
    BUFFER_BYTES, Backing, Chains, Image, Io, RebaseError, Refusal, copy_differences, mark_corrupt,
    set_backing,
};
use instar_qcow2::{Header, OpenMode};
use instar_shared::control::FileAccess;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::rebase::{
    REBASE_COMPRESS, REBASE_FORMAT, REBASE_NEW, REBASE_UNKNOWN_FORMAT, REBASE_UNSAFE, RebaseConfig,
    RebaseResult,
};
use instar_shared::zerocopy::little_endian::U32;
use instar_storage::Cipher;
use op_chain::{
    Image as Opening, Keys, Reported, Stopped, Unlock, notice, open_backing, open_layers_with,
    stopped,
};
use op_edit::{Opened, Progress, open_for_change};

/// Memory besides that of buffers: the tables of the image and of the chains.
const TABLE_BYTES: u64 = 24 << 20;

/// Does what the host's config says, and tells the host how it went. `keys` are those of encrypted images.
pub fn run(ctx: &mut Context, keys: &dyn Keys) {
    let config: RebaseConfig = ctx.config();
    let mut result = RebaseResult::zeroed();
    let outcome = rebase(ctx, &config, keys, &mut result);
    result.outcome.set(outcome.unwrap_or(Outcome::Failed).raw());
    ctx.set_result(&result);
}

fn rebase(
    ctx: &mut Context,
    config: &RebaseConfig,
    keys: &dyn Keys,
    result: &mut RebaseResult,
) -> Result<Outcome, Reported> {
    let has = |flag: u32| config.flags.get() & flag != 0;
    let opened = open_for_change(ctx, 0, config.format.get(), op_edit::Chain::Ignored)?;
    result.format.set(opened.format.raw());
    let header = opened.header.as_ref();
    let mut unlock = Unlock::of(keys, 0);
    let cipher = match header {
        Some(header) => {
            let disk = &opened.disk;
            unlock.cipher(ctx, &Opening { disk, header })?
        }
        None => None,
    };
    unlock.descend();
    let backing = Backing {
        name: start(&config.name, config.name_len),
        format: has(REBASE_FORMAT).then(|| start(&config.format_name, config.format_name_len)),
    };
    let old = match header {
        Some(header) if !has(REBASE_UNSAFE) => open_old(ctx, &opened.disk, header, unlock)?,
        _ => None,
    };
    if has(REBASE_UNKNOWN_FORMAT) {
        let name = String::from_utf8_lossy(backing.format.unwrap_or_default());
        return Ok(op_edit::failed(
            ctx,
            &format_args!("Invalid format name: '{name}'"),
        ));
    }
    let done = if has(REBASE_UNSAFE) {
        rename(&opened, &backing)
    } else {
        let new = if has(REBASE_NEW) {
            Some(open_new(ctx, config.new_format.get(), Unlock::of(keys, 1))?)
        } else {
            None
        };
        let below = [old, new];
        let judged = backing.judge(header);
        let done = judged.and_then(|()| copy(ctx, (&opened, cipher), &below, config, result));
        done.and_then(|()| rename(&opened, &backing))
    };
    Ok(match done {
        Ok(()) => Outcome::Done,
        Err(error) => failed(ctx, &opened, &error),
    })
}

/// Changes the names; what was copied is durable.
fn rename(opened: &Opened, backing: &Backing<'_>) -> Result<(), RebaseError> {
    backing.judge(opened.header.as_ref())?;
    // As it is now: the copy may have moved the refcount table.
    let header = Header::read(&opened.disk, OpenMode::Change);
    let header = header.map_err(|_| backing.refused(Refusal::Invalid))?;
    set_backing(&opened.disk, &header, backing).map(drop)
}

/// Makes the image's own what the old chain shows and the new one does not.
fn copy(
    ctx: &mut Context,
    (opened, cipher): (&Opened, Option<&'static dyn Cipher>),
    below: &[Option<Chain<Disk>>; 2],
    config: &RebaseConfig,
    result: &mut RebaseResult,
) -> Result<(), RebaseError> {
    let (Some(header), [old, new]) = (&opened.header, below) else {
        return Ok(());
    };
    let image = Image {
        storage: &opened.disk,
        data: opened.data.as_ref(),
        header,
        cipher,
    };
    let size = header.whole_sectors_size();
    result.size.set(size);
    // It may become as long as that and more; where the host does not let it, a write says so.
    for disk in [Some(image.storage), image.data].into_iter().flatten() {
        let _ = ctx.announce_size(disk.slot(), size);
    }
    let _ = ctx.grant(
        BUFFER_BYTES
            .saturating_add(header.table_bytes())
            .saturating_add(TABLE_BYTES),
    );
    let typed = start(&config.name, config.name_len);
    let shared = paths::Shared::new((image.storage, header), old.as_ref(), typed, new.as_ref());
    let layers = below.iter().flatten().flat_map(Chain::layers);
    let files = layers.flat_map(|layer| {
        let data = layer.data_file_of() == FileOf::DataFile;
        let data = data.then(|| layer.store(FileOf::DataFile));
        [Some(layer.store(FileOf::Image)), data]
    });
    let files = files.chain([Some(image.storage), image.data]);
    let overlap = DiskSet::new(files.flatten()).ok_or(RebaseError::OutOfMemory)?;
    let chains = Chains {
        old: old.as_ref(),
        new: new.as_ref(),
        shared: &|old, new| shared.is_one(old, new),
    };
    let io = Io {
        overlap: &overlap,
        number: Disk::slot,
    };
    let compress = config.flags.get() & REBASE_COMPRESS != 0;
    let compared = copy_differences(image, chains, compress, &io, &mut Progress(ctx))?;
    result.compared.set(compared);
    Ok(())
}

/// What lies below the image now.
fn open_old(
    ctx: &mut Context,
    disk: &Disk,
    header: &Header,
    unlock: Unlock<'_>,
) -> Result<Option<Chain<Disk>>, Reported> {
    let Some((below, format)) = open_backing(ctx, disk.slot(), header, FileAccess::Read)? else {
        return Ok(None);
    };
    Ok(Some(open_layers_with(ctx, below, format, unlock)?.chain))
}

/// What is to lie below it: the user has typed its name.
fn open_new(ctx: &mut Context, told: u32, unlock: Unlock<'_>) -> Result<Chain<Disk>, Reported> {
    let told = ImageFormat::try_from(told).map_err(|_| Reported)?;
    let disk = ctx.disk(unlock.input()).map_err(|_| Reported)?;
    Ok(open_layers_with(ctx, disk, told, unlock)?.chain)
}

fn failed(ctx: &mut Context, opened: &Opened, error: &RebaseError) -> Outcome {
    match (error, &opened.header) {
        (RebaseError::Metadata(DataError::Corrupt(what)), Some(header)) => {
            let text = "qcow2: Marking image as corrupt";
            let rest = "further corruption events will be suppressed";
            ctx.records()
                .diagnostic(format_args!("{text}: {what}; {rest}"));
            // The image is damaged with the mark and without it.
            let _ = Header::read(&opened.disk, OpenMode::Change)
                .map(|now| mark_corrupt(&opened.disk, &now))
                .unwrap_or_else(|_| mark_corrupt(&opened.disk, header));
        }
        _ => {
            if let Some(source) = error.source_of() {
                notice(ctx, source);
            }
        }
    }
    let why = match error {
        RebaseError::Cancelled => Stopped::Cancelled,
        RebaseError::OutOfMemory => Stopped::OutOfMemory,
        error => Stopped::Failed(error),
    };
    stopped(ctx, "rebase", &why)
}

/// The part of a field that is in use.
fn start(field: &[u8], len: U32) -> &[u8] {
    let len = usize::try_from(len.get()).unwrap_or(usize::MAX);
    field.get(..len).unwrap_or(field)
}
