//! The snapshot operation: internal snapshots of a qcow2 image listed, created, applied and deleted.
#![no_std]
#![no_main]

extern crate alloc;

mod list;

use alloc::string::{String, ToString};
use instar_guest_ops::Context;
use instar_plan_snapshot::{
    ApplyError, CreateError, DeleteError, NewSnapshot, apply, create, delete,
};
use instar_plan_txn::TxnError;
use instar_qcow2::Header;
use instar_qcow2::header::Lossy;
use instar_shared::edit::{EditResult, SnapshotAction, SnapshotConfig};
use instar_shared::op::Outcome;
use op_chain::Reported;
use op_edit::{Chain, Opened, Progress, failed, open_for_change};

instar_guest_ops::entry!(run);

const NS_PER_SECOND: u64 = 1_000_000_000;

fn run(ctx: &mut Context) {
    let config: SnapshotConfig = ctx.config();
    let mut result = EditResult::zeroed();
    let outcome = match SnapshotAction::try_from(config.action.get()) {
        Ok(SnapshotAction::List) => list::list(ctx, config.format.get(), &mut result),
        Ok(action) => change(ctx, &config, action, &mut result),
        Err(_) => Err(Reported),
    };
    result.outcome.set(outcome.unwrap_or(Outcome::Failed).raw());
    ctx.set_result(&result);
}

/// Why an action was not done.
struct Refusal {
    /// `None`: the user wanted the end.
    sentence: Option<String>,
    /// A line before it.
    note: Option<String>,
}

fn change(
    ctx: &mut Context,
    config: &SnapshotConfig,
    action: SnapshotAction,
    result: &mut EditResult,
) -> Result<Outcome, Reported> {
    let opened = open_for_change(ctx, 0, config.format.get(), Chain::Whole)?;
    result.format.set(opened.format.raw());
    let len = usize::try_from(config.name_len.get()).unwrap_or(usize::MAX);
    let name = config.name.get(..len).unwrap_or(&config.name);
    let done = match &opened.header {
        Some(header) => {
            result.old_size.set(header.whole_sectors_size());
            act(ctx, &opened, header, action, name)
        }
        None => Err(refuse(unsupported(action), None, false)),
    };
    match done {
        Ok(header) => {
            result.size.set(header.whole_sectors_size());
            Ok(Outcome::Done)
        }
        Err(Refusal { sentence, note }) => {
            if let Some(note) = note {
                ctx.records().prefixed(format_args!("{note}"));
            }
            let Some(sentence) = sentence else {
                return Ok(Outcome::Cancelled);
            };
            let name = Lossy(name);
            let verb = verb(action);
            let text = format_args!("Could not {verb} snapshot '{name}': {sentence}");
            Ok(failed(ctx, &text))
        }
    }
}

fn act(
    ctx: &mut Context,
    opened: &Opened,
    header: &Header,
    action: SnapshotAction,
    name: &[u8],
) -> Result<Header, Refusal> {
    let now_ns = ctx.boot().wall_clock_ns.get();
    let part = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    let new = NewSnapshot {
        name,
        date_sec: part(now_ns / NS_PER_SECOND),
        date_nsec: part(now_ns % NS_PER_SECOND),
    };
    let mut progress = Progress(ctx);
    let cancelled = TxnError::Cancelled;
    match action {
        SnapshotAction::Create => create(&opened.disk, header, &new, &mut progress)
            .map_err(|e| refuse(e.to_string(), e.note(), e == CreateError::Change(cancelled))),
        SnapshotAction::Apply => apply(&opened.disk, header, name, &mut progress)
            .map_err(|e| refuse(e.to_string(), e.note(), e == ApplyError::Change(cancelled))),
        SnapshotAction::Delete | SnapshotAction::List => {
            delete(&opened.disk, header, name, &mut progress)
                .map_err(|e| refuse(e.to_string(), e.note(), e == DeleteError::Change(cancelled)))
        }
    }
}

fn refuse(sentence: String, note: Option<String>, cancelled: bool) -> Refusal {
    Refusal {
        sentence: Some(sentence).filter(|_| !cancelled),
        note,
    }
}

const fn verb(action: SnapshotAction) -> &'static str {
    match action {
        SnapshotAction::Create => "create",
        SnapshotAction::Apply => "apply",
        SnapshotAction::Delete | SnapshotAction::List => "delete",
    }
}

/// What `qemu-img` says of a raw image.
fn unsupported(action: SnapshotAction) -> String {
    match action {
        SnapshotAction::Create => "Operation not supported",
        SnapshotAction::Apply => "Block driver does not support snapshots",
        SnapshotAction::Delete | SnapshotAction::List => "snapshot not found",
    }
    .to_string()
}
