//! The bitmap operation: actions on one bitmap of an image, in their order.
//!
//! Slot 0 is the image, slot 1 the one whose bitmaps are merged, if it is another. The images below them are
//! not opened.
#![no_std]
#![no_main]

extern crate alloc;

use alloc::boxed::Box;
use alloc::vec::Vec;
use instar_guest_ops::{Context, Disk};
use instar_plan_bitmap::{Action, ChangeError, Report, Request, SourceImage, change, refuse_raw};
use instar_plan_txn::TxnError;
use instar_qcow2::{Header, OpenMode};
use instar_shared::control::FileAccess;
use instar_shared::edit::{BitmapAction, BitmapActionHeader, BitmapConfig, EditResult};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::zerocopy::FromBytes;
use op_chain::{NamedBy, Reported, Stopped, format_of, open_qcow2, stopped};
use op_edit::{Chain, Opened, Progress, failed, open_for_change};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    let config: BitmapConfig = ctx.config();
    let mut result = EditResult::zeroed();
    let outcome = edit(ctx, &config, &mut result).unwrap_or(Outcome::Failed);
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn edit(
    ctx: &mut Context,
    config: &BitmapConfig,
    result: &mut EditResult,
) -> Result<Outcome, Reported> {
    let Some((name, actions)) = request(config) else {
        return Ok(Outcome::Failed);
    };
    let request = Request {
        name,
        actions: &actions,
    };
    let opened = open_for_change(ctx, 0, config.format.get(), Chain::Ignored)?;
    let Opened {
        disk,
        format,
        header,
        ..
    } = opened;
    result.format.set(format.raw());
    if let Some(header) = &header {
        result.old_size.set(header.virtual_size);
        result.size.set(header.virtual_size);
    }
    let source = open_source(ctx, config)?;
    let Some(header) = header else {
        return Ok(tell(ctx, Ok(refuse_raw(&request))));
    };
    let source = match &source {
        Source::Same => SourceImage::Same,
        Source::Raw => SourceImage::Raw,
        Source::Other(other) => {
            let (storage, header) = other.as_ref();
            SourceImage::Other { storage, header }
        }
    };
    let done = change(&disk, &header, &source, &request, &mut Progress(ctx));
    Ok(tell(ctx, done))
}

/// What the config asks for; `None` if it is malformed.
fn request(config: &BitmapConfig) -> Option<(&[u8], Vec<Action<'_>>)> {
    let length = |len: u32| usize::try_from(len).ok();
    let name = config.name.get(..length(config.name_len.get())?)?;
    let granularity = config.granularity.get();
    let mut rest = config.actions.get(..length(config.actions_len.get())?)?;
    let mut actions = Vec::new();
    while !rest.is_empty() {
        let (head, tail) = BitmapActionHeader::ref_from_prefix(rest).ok()?;
        let len = length(head.name_len.get())?;
        let source = tail.get(..len)?;
        rest = tail.get(len.checked_next_multiple_of(8)?..)?;
        actions.push(match BitmapAction::try_from(head.action.get()).ok()? {
            BitmapAction::Add => Action::Add { granularity },
            BitmapAction::Remove => Action::Remove,
            BitmapAction::Clear => Action::Clear,
            BitmapAction::Enable => Action::Enable,
            BitmapAction::Disable => Action::Disable,
            BitmapAction::Merge => Action::Merge { source },
        });
    }
    Some((name, actions))
}

/// The image whose bitmaps are merged.
enum Source {
    Same,
    Raw,
    Other(Box<(Disk, Header)>),
}

fn open_source(ctx: &mut Context, config: &BitmapConfig) -> Result<Source, Reported> {
    if config.has_source.get() == 0 {
        return Ok(Source::Same);
    }
    let disk = ctx.disk(1).map_err(|_| Reported)?;
    let told = ImageFormat::try_from(config.source_format.get()).map_err(|_| Reported)?;
    if format_of(ctx, &disk, told, NamedBy::User)? != ImageFormat::Qcow2 {
        return Ok(Source::Raw);
    }
    let (header, _data) = open_qcow2(ctx, &disk, OpenMode::Change, FileAccess::Read)?;
    Ok(Source::Other(Box::new((disk, header))))
}

/// Tells how it ended: the last sentence is the failure, the ones before it come with the program's name.
fn tell(ctx: &mut Context, done: Result<Report, ChangeError>) -> Outcome {
    match done {
        Ok(report) => {
            let mut sentences = report.sentences();
            let Some(last) = sentences.pop() else {
                return Outcome::Done;
            };
            for sentence in sentences {
                ctx.records().prefixed(format_args!("{sentence}"));
            }
            failed(ctx, &last)
        }
        Err(error) => {
            let why = match error.cause {
                TxnError::Cancelled => Stopped::Cancelled,
                TxnError::OutOfMemory => Stopped::OutOfMemory,
                _ => Stopped::Failed(&error),
            };
            stopped(ctx, "change", &why)
        }
    }
}
