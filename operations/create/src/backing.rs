//! The image below the one that is made: it has to open, and may say how large the new one is.

use crate::failed;
use alloc::string::String;
use instar_guest_ops::{Context, Disk};
use instar_qcow2::{Header, OpenMode};
use instar_raw::ImageFormat as Probed;
use instar_shared::control::FileAccess;
use instar_shared::create::{CREATE_BACKING_STATED, CreateConfig};
use instar_shared::op::ImageFormat;
use instar_storage::Storage;
use op_chain::{NamedBy, Reported, fail, format_of, open_backing};

/// The sector, in bytes: sizes are multiples of it.
const SECTOR: u64 = 512;

/// Opens the image in slot 0 and everything below it; gives its virtual size in bytes.
///
/// # Errors
/// One does not open, or the format was not stated: the record that says so has been sent.
pub fn open(ctx: &mut Context, config: &CreateConfig) -> Result<u64, Reported> {
    let told = ImageFormat::try_from(config.backing_format.get()).map_err(|_| Reported)?;
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    if config.flags.get() & CREATE_BACKING_STATED == 0 {
        return Err(unstated(ctx, disk, told));
    }
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    open_chain(ctx, disk, format)
}

/// Says what the format seems to be, or is by the options in the name: nobody has said it for the new image.
fn unstated(ctx: &mut Context, disk: Disk, told: ImageFormat) -> Reported {
    let len = usize::try_from(disk.len_bytes())
        .unwrap_or(usize::MAX)
        .min(instar_raw::PROBE_BYTES);
    let mut head = alloc::vec![0; len];
    if let Err(e) = disk.read_at(0, &mut head) {
        return fail(ctx, 0, format_args!("Could not read its first bytes: {e}"));
    }
    let format = match told {
        ImageFormat::Raw => Probed::Raw,
        ImageFormat::Qcow2 => Probed::Qcow2,
        _ => instar_raw::probe(&head, disk.len_bytes()),
    };
    if format == Probed::Qcow2 {
        // What does not open has no format worth telling.
        if let Err(reported) = open_chain(ctx, disk, ImageFormat::Qcow2) {
            return reported;
        }
    }
    let name = String::from(format.name());
    failed(
        ctx,
        format_args!("Backing file specified without backing format\nDetected format of {name}."),
    )
}

fn open_chain(ctx: &mut Context, top: Disk, format: ImageFormat) -> Result<u64, Reported> {
    let mut size = None;
    let mut next = Some((top, format));
    while let Some((disk, format)) = next.take() {
        if format != ImageFormat::Qcow2 {
            let len = disk.len_bytes();
            size.get_or_insert(len.checked_next_multiple_of(SECTOR).unwrap_or(len));
            break;
        }
        let header = Header::read(&disk, OpenMode::Info)
            .map_err(|e| fail(ctx, disk.slot(), format_args!("{e}")))?;
        if let Some(warning) = &header.extensions.bitmaps_ignored {
            ctx.records().prefixed(format_args!("warning: {warning}"));
        }
        size.get_or_insert(header.whole_sectors_size());
        next = open_backing(ctx, disk.slot(), &header, FileAccess::Read)?;
    }
    Ok(size.unwrap_or(0))
}
