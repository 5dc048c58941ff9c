//! `-l`: the snapshot table as records.

use instar_guest_ops::shared::zerocopy::IntoBytes;
use instar_guest_ops::{Context, Disk};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenError, OpenMode};
use instar_shared::control::FileAccess;
use instar_shared::edit::EditResult;
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::RecordKind;
use op_chain::{NamedBy, Reported, fail, format_of, open_chain_below, open_qcow2, snapshot_record};

/// Sends a record for each snapshot, in the table's order. A raw image has none.
///
/// # Errors
/// The image, or one that it needs, cannot be opened.
pub fn list(ctx: &mut Context, told: u32, result: &mut EditResult) -> Result<Outcome, Reported> {
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let told = ImageFormat::try_from(told).map_err(|_| Reported)?;
    let format = format_of(ctx, &disk, told, NamedBy::User)?;
    result.format.set(format.raw());
    if format != ImageFormat::Qcow2 {
        return Ok(Outcome::Done);
    }
    let (header, data) = open_qcow2(ctx, &disk, OpenMode::Info, FileAccess::Read)?;
    open_chain_below(ctx, disk.slot(), &header)?;
    // Snapshots do not hold what is in an external data file, so `qemu-img` shows none.
    if data.is_none() {
        send_all(ctx, &disk, &header)?;
    }
    Ok(Outcome::Done)
}

fn send_all(ctx: &mut Context, disk: &Disk, header: &Header) -> Result<(), Reported> {
    for snapshot in SnapshotTable::new(disk, header) {
        let snapshot =
            snapshot.map_err(|e| fail(ctx, disk.slot(), format_args!("{}", OpenError::from(e))))?;
        let fixed = snapshot_record(&snapshot);
        let parts = [fixed.as_bytes(), snapshot.shown_id(), snapshot.shown_name()];
        let sent = ctx.records().record(RecordKind::Snapshot, &parts);
        sent.map_err(|_| {
            let text = format_args!("A name in it is too long to show");
            fail(ctx, disk.slot(), text)
        })?;
    }
    Ok(())
}
