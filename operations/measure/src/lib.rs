//! The measure operation: how long the file of a new image becomes.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk};
use instar_layers::{Chain, DataError, FileOf, RunKind};
use instar_plan_create::{
    Content, Encryption, Measured, Options, measure, measure_bitmaps, measure_raw,
};
use instar_qcow2::ClusterBits;
use instar_qcow2::bitmaps::BitmapDirectory;
use instar_shared::convert::SnapshotChoice;
use instar_shared::create::{MEASURE_IMAGE, MEASURED_BITMAPS, MeasureConfig, MeasureResult};
use instar_shared::encrypt::ENCRYPT_HAS_SECRET;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::FailureKind;
use op_chain::{Keys, Layers, Reported, SnapshotName, Unlock, notice, open_layers_of};
use op_encrypt::{check, encryption, no_secret};

/// Bytes of the disk between two looks at whether the user wants the end.
const PIECE_BYTES: u64 = 1 << 36;

/// Does what the host's config says, and tells the host how it went. `keys` are those of encrypted images.
pub fn run(ctx: &mut Context, keys: &dyn Keys) {
    let config: MeasureConfig = ctx.config();
    let mut result = MeasureResult::zeroed();
    let outcome = work(ctx, &config, keys, &mut result).unwrap_or(Outcome::Failed);
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn work(
    ctx: &mut Context,
    config: &MeasureConfig,
    keys: &dyn Keys,
    result: &mut MeasureResult,
) -> Result<Outcome, Reported> {
    let source = if config.flags.get() & MEASURE_IMAGE == 0 {
        None
    } else {
        Some(open(ctx, config, keys)?)
    };
    let size = source
        .as_ref()
        .map_or(config.size.get(), |source| source.chain.len_bytes());
    let measured = match ImageFormat::try_from(config.target_format.get()) {
        Ok(ImageFormat::Raw) => measure_raw(size),
        Ok(ImageFormat::Qcow2) => match qcow2(ctx, config, source.as_ref(), size, result)? {
            Some(measured) => measured,
            None => return Ok(Outcome::Cancelled),
        },
        // It only mattered whether the image opens.
        _ => return Ok(Outcome::Done),
    };
    result.required.set(measured.required);
    result.fully_allocated.set(measured.fully_allocated);
    Ok(Outcome::Done)
}

/// Opens the image in slot 0 and everything below it.
fn open(ctx: &mut Context, config: &MeasureConfig, keys: &dyn Keys) -> Result<Layers, Reported> {
    let told = ImageFormat::try_from(config.source_format.get()).map_err(|_| Reported)?;
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let snapshot = snapshot(config).ok_or(Reported)?;
    open_layers_of(ctx, disk, told, snapshot, Unlock::of(keys, 0))
}

/// Which state is measured; `None` if the config makes no sense.
fn snapshot(config: &MeasureConfig) -> Option<Option<SnapshotName<'_>>> {
    let id = text(&config.snapshot_id, config.snapshot_id_len.get())?;
    let name = text(&config.snapshot_name, config.snapshot_name_len.get())?;
    let both = |id, name| Some(SnapshotName::Both { id, name });
    Some(
        match SnapshotChoice::try_from(config.snapshot.get()).ok()? {
            SnapshotChoice::None => None,
            SnapshotChoice::IdOrName => Some(SnapshotName::IdOrName(name)),
            SnapshotChoice::Id => both(Some(id), None),
            SnapshotChoice::Name => both(None, Some(name)),
            SnapshotChoice::IdAndName => both(Some(id), Some(name)),
        },
    )
}

fn text(bytes: &[u8], len: u32) -> Option<&[u8]> {
    bytes.get(..usize::try_from(len).ok()?)
}

/// Measures a qcow2 image; nothing if the user wants the end.
fn qcow2(
    ctx: &mut Context,
    config: &MeasureConfig,
    source: Option<&Layers>,
    size: u64,
    result: &mut MeasureResult,
) -> Result<Option<Measured>, Reported> {
    let options = options(ctx, config, size)?;
    let empty = measure(&options, None).map_err(|e| refused(ctx, &e))?;
    let Some(source) = source else {
        return Ok(Some(empty));
    };
    let bits = options.cluster_bytes.trailing_zeros();
    let bits = ClusterBits::new(bits).ok_or(Reported)?;
    let mut content = Content::new(bits);
    if options.backing_file.is_some() {
        // What the backing file will not hold is not known.
        content.add(0, size);
    } else if !count(ctx, &source.chain, &mut content)? {
        return Ok(None);
    }
    // Version 2 has no bitmaps, neither there nor here.
    if options.version > 2
        && let Some(bytes) = bitmaps(ctx, source, bits)?
    {
        result.flags.set(MEASURED_BITMAPS);
        result.bitmaps.set(bytes);
    }
    let measured = measure(&options, Some(&content)).map_err(|e| refused(ctx, &e))?;
    Ok(Some(measured))
}

/// The new image's options. QEMU looks at its encryption before it finds out whether the size is too large.
fn options<'c>(
    ctx: &mut Context,
    config: &'c MeasureConfig,
    size: u64,
) -> Result<Options<'c>, Reported> {
    let given = &config.options.encryption;
    let options = Options {
        encryption: encryption(given),
        ..op_output::options(&config.options, size).ok_or(Reported)?
    };
    if let Encryption::Luks { .. } = options.encryption {
        let sizeless = Options { size: 0, ..options };
        measure(&sizeless, None).map_err(|e| refused(ctx, &e))?;
        let checked = match given.flags.get() & ENCRYPT_HAS_SECRET {
            0 => Err(no_secret()),
            _ => check(given),
        };
        checked.map_err(|e| refused(ctx, &e))?;
    }
    Ok(options)
}

fn refused(ctx: &mut Context, error: &dyn core::fmt::Display) -> Reported {
    let sentence = format_args!("{error}");
    ctx.records().failure(FailureKind::Operation, 0, sentence);
    Reported
}

/// Counts the clusters that hold data; false if the user wants the end.
fn count(ctx: &mut Context, chain: &Chain<Disk>, content: &mut Content) -> Result<bool, Reported> {
    for layer in chain.layers() {
        let image = layer.store(FileOf::Image);
        layer
            .detect_preallocation(image.allocated_bytes())
            .map_err(|e| op_chain::fail(ctx, image.slot(), format_args!("{e}")))?;
    }
    let end = chain.len_bytes();
    let (mut at, mut next_look) = (0, PIECE_BYTES);
    while at < end {
        let (data, len) = state_at(chain, at, end.saturating_sub(at)).map_err(|e| {
            notice(ctx, &e);
            let sentence = format_args!("Unable to get block status: {e}");
            ctx.records().failure(FailureKind::Operation, 0, sentence);
            Reported
        })?;
        if data {
            content.add(at, len);
        }
        at = at.saturating_add(len);
        if at >= next_look {
            next_look = at.saturating_add(PIECE_BYTES);
            if ctx.cancelled() {
                return Ok(false);
            }
        }
    }
    Ok(true)
}

/// Whether there is data at `at`, and for how many bytes that is the answer.
fn state_at(chain: &Chain<Disk>, at: u64, most: u64) -> Result<(bool, u64), DataError> {
    let run = chain.run_at(at, most)?;
    match run.kind {
        RunKind::Compressed { .. } => Ok((true, run.len)),
        RunKind::Data { file, host_offset } => {
            let layer = chain.layers().get(run.depth);
            let hole = layer.map(|layer| layer.hole_at(file, host_offset, run.len));
            match hole.transpose()?.flatten() {
                Some((hole, len)) => Ok((!hole, len)),
                None => Ok((true, run.len)),
            }
        }
        RunKind::Zero { .. } | RunKind::Unallocated => Ok((false, run.len)),
    }
}

/// Bytes that the image's bitmaps take in the new one, inconsistent ones too; nothing if it is of a kind that has none.
fn bitmaps(ctx: &mut Context, source: &Layers, bits: ClusterBits) -> Result<Option<u64>, Reported> {
    let top = source.chain.layers().first();
    let Some((top, header)) = top.and_then(|top| Some((top, top.header()?))) else {
        return Ok(None);
    };
    if header.version < 3 {
        return Ok(None);
    }
    let mut found: Vec<(u64, u8)> = Vec::new();
    if let Some(extension) = header.extensions.bitmaps {
        let image = top.store(FileOf::Image);
        for bitmap in BitmapDirectory::new(image, extension) {
            let bitmap =
                bitmap.map_err(|e| op_chain::fail(ctx, image.slot(), format_args!("{e}")))?;
            found.push((bitmap.name_size.into(), bitmap.granularity_bits));
        }
    }
    let size = header.virtual_size;
    Ok(Some(measure_bitmaps(size, bits, found.into_iter())))
}
