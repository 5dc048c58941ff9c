//! The resident operation that owns the metadata of a live disk: it says where the disk's bytes are, gives new ones a
//! place, and keeps the image's tables. Whoever uses the disk moves the data.
#![no_std]
#![no_main]

extern crate alloc;

mod serve;

use instar_codec::Decoder;
use instar_guest_ops::{Context, Disk};
use instar_plan_live::{Backing, LiveImage, Place};
use instar_shared::control::FileAccess;
use instar_shared::live::{BLOCKD_READ_ONLY, BlockdConfig, BlockdResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::FailureKind;
use op_chain::{NO_KEYS, NamedBy, Reported, fail, format_of, open_backing, open_layers};
use op_edit::open_image;
use serve::serve;

instar_guest_ops::entry!(run);

/// What refcounts and tables of an open image may take beside its tables of tables, in bytes.
const WORKING_BYTES: u64 = 4 << 20;

fn run(ctx: &mut Context) {
    let config: BlockdConfig = ctx.config();
    let mut result = BlockdResult::zeroed();
    let outcome = open(ctx, &config).unwrap_or(Outcome::Failed);
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn open(ctx: &mut Context, config: &BlockdConfig) -> Result<Outcome, Reported> {
    let told = ImageFormat::try_from(config.format.get()).map_err(|_| Reported)?;
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    if config.flags.get() & BLOCKD_READ_ONLY != 0 {
        let layers = open_layers(ctx, disk, format)?;
        let chain = Backing::new(layers.chain, Decoder::new(), Disk::slot);
        return Ok(serve(ctx, LiveImage::read_only(chain), format));
    }
    if format == ImageFormat::Raw {
        let image = LiveImage::<Disk, Decoder>::raw(&disk, disk.slot());
        return Ok(serve(ctx, image, format));
    }
    open_qcow2(ctx, &disk, format)
}

fn open_qcow2(ctx: &mut Context, disk: &Disk, format: ImageFormat) -> Result<Outcome, Reported> {
    let written = open_image(ctx, disk, &mut { NO_KEYS })?;
    let backing = open_backing(ctx, disk.slot(), &written.header, FileAccess::Read)?;
    let below = match backing {
        Some((below, format)) => {
            let layers = open_layers(ctx, below, format)?;
            Some(Backing::new(layers.chain, Decoder::new(), Disk::slot))
        }
        None => None,
    };
    written.refuse_dirty(ctx)?;
    // What is not granted is missed where it is needed.
    let _ = ctx.grant(written.header.table_bytes().saturating_add(WORKING_BYTES));
    let (image, data) = written.slots();
    let files = Place { image, data };
    for slot in [image, data] {
        // A file that may not grow takes no more than it has room for; the write that needs more says so.
        let _ = ctx.announce_size(slot, written.header.whole_sectors_size());
    }
    let opened = LiveImage::written(below, files, |below| written.open_over(below));
    match opened {
        Ok(image) => Ok(serve(ctx, image, format)),
        Err(error) => Err(fail(ctx, disk.slot(), format_args!("{error}"))),
    }
}

/// Tells the host why there are no more answers.
fn failed(ctx: &mut Context, why: core::fmt::Arguments<'_>) -> Outcome {
    ctx.records().failure(FailureKind::Operation, 0, why);
    Outcome::Failed
}
