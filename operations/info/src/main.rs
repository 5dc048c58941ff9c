//! The info operation: what images are, as one record each, down the chain if asked.
#![no_std]
#![no_main]

mod records;

use instar_guest_ops::{Context, Disk};
use instar_qcow2::OpenError;
use instar_qcow2::bitmaps::BitmapError;
use instar_qcow2::info::ImageInfo;
use instar_shared::control::FileAccess;
use instar_shared::info::{INFO_BACKING_CHAIN, InfoConfig, InfoResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use op_chain::{NamedBy, Reported, fail, format_of, judge_encryption, open_backing_as};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    let config: InfoConfig = ctx.config();
    let mut result = InfoResult::zeroed();
    let outcome = match ImageFormat::try_from(config.format.get()) {
        Ok(told) => describe_chain(
            ctx,
            told,
            config.flags.get() & INFO_BACKING_CHAIN != 0,
            &mut result,
        ),
        Err(_) => Err(Reported),
    };
    result.outcome.set(outcome.unwrap_or(Outcome::Failed).raw());
    ctx.set_result(&result);
}

fn describe_chain(
    ctx: &mut Context,
    told: ImageFormat,
    whole: bool,
    result: &mut InfoResult,
) -> Result<Outcome, Reported> {
    let Ok(mut disk) = ctx.disk(0) else {
        return Ok(Outcome::Failed);
    };
    let mut format = format_of(ctx, &disk, told, NamedBy::User)?;
    loop {
        let below = describe(ctx, &disk, format)?;
        result.images.set(result.images.get().saturating_add(1));
        let Some(info) = below.filter(|_| whole) else {
            return Ok(Outcome::Done);
        };
        let Some(name) = info.backing_file() else {
            return Ok(Outcome::Done);
        };
        if ctx.cancelled() {
            return Ok(Outcome::Cancelled);
        }
        let named = (name, info.backing_format(), NamedBy::Image);
        (disk, format) = open_backing_as(ctx, disk.slot(), named, FileAccess::Read)?;
    }
}

/// Sends the records of one image; what is known of a qcow2 image comes back.
fn describe(
    ctx: &mut Context,
    disk: &Disk,
    format: ImageFormat,
) -> Result<Option<ImageInfo>, Reported> {
    if format != ImageFormat::Qcow2 {
        send(
            ctx,
            disk,
            RecordKind::Image,
            &[records::raw_image(disk).as_slice()],
        )?;
        return Ok(None);
    }
    let info = ImageInfo::read(disk).map_err(|e| refuse(ctx, disk, &e))?;
    let said = judge_encryption(disk.said_encryption(), info.crypt_method());
    said.map_err(|error| fail(ctx, disk.slot(), format_args!("{error}")))?;
    if let Some(warning) = info.warning() {
        ctx.records().prefixed(format_args!("warning: {warning}"));
    }
    // Everything is read before anything is said: an image that is refused shows nothing.
    let image = records::qcow2_image(disk, &info);
    send(ctx, disk, RecordKind::Image, &image.parts(&info))?;
    if let Some(luks) = records::luks(&info) {
        send(ctx, disk, RecordKind::Luks, &[luks.as_slice()])?;
    }
    let snapshots = info.has_snapshots().then(|| info.snapshots(disk));
    for snapshot in snapshots.into_iter().flatten() {
        let snapshot = snapshot.map_err(|e| refuse(ctx, disk, &OpenError::from(e)))?;
        let record = records::snapshot(&snapshot);
        send(
            ctx,
            disk,
            RecordKind::Snapshot,
            &[
                record.as_slice(),
                snapshot.shown_id(),
                snapshot.shown_name(),
            ],
        )?;
    }
    let bitmaps = info.bitmaps(disk).into_iter().flatten();
    for bitmap in bitmaps {
        let bitmap = bitmap.map_err(|e: BitmapError| refuse(ctx, disk, &OpenError::from(e)))?;
        let record = records::bitmap(&bitmap);
        send(
            ctx,
            disk,
            RecordKind::Bitmap,
            &[record.as_slice(), &bitmap.name],
        )?;
    }
    Ok(Some(info))
}

fn refuse(ctx: &mut Context, disk: &Disk, error: &OpenError) -> Reported {
    fail(ctx, disk.slot(), format_args!("{error}"))
}

/// Sends one record; names are bounded by the format far below a record's size.
fn send(ctx: &mut Context, disk: &Disk, kind: RecordKind, parts: &[&[u8]]) -> Result<(), Reported> {
    let sent = ctx.records().record(kind, parts);
    sent.map_err(|_| {
        fail(
            ctx,
            disk.slot(),
            format_args!("A name in it is too long to show"),
        )
    })
}
