//! Which snapshot a name means, and the ID of the next one. All as `qemu-img` 10.0 was seen to do it.

use instar_plan_txn::TxnError;
use instar_qcow2::Header;
use instar_qcow2::snapshot::{Snapshot, SnapshotError, SnapshotTable};
use instar_storage::Storage;

fn readable(entry: Result<Snapshot, SnapshotError>) -> Result<Snapshot, TxnError> {
    entry.map_err(|e| match e {
        SnapshotError::Storage(e) => TxnError::Storage(e),
        SnapshotError::OutOfMemory => TxnError::OutOfMemory,
        SnapshotError::TooMuchExtraData { .. } | SnapshotError::TableTooBig { .. } => {
            TxnError::Corrupt {
                what: "snapshot table",
            }
        }
    })
}

/// What `-a` means: the first snapshot with this ID, else the first with this name.
pub(crate) fn by_id_or_name<S: Storage>(
    storage: &S,
    header: &Header,
    text: &[u8],
) -> Result<Option<Snapshot>, TxnError> {
    let mut named = None;
    for snapshot in SnapshotTable::new(storage, header) {
        let snapshot = readable(snapshot)?;
        if snapshot.id == text {
            return Ok(Some(snapshot));
        }
        if named.is_none() && snapshot.name == text {
            named = Some(snapshot);
        }
    }
    Ok(named)
}

/// What `-d` means.
pub(crate) enum ToDelete {
    /// No snapshot is shown by this name.
    NotFound,
    /// One is, but none has the ID and name that are shown of it.
    Lost,
    /// This one.
    Found(Snapshot),
}

/// What `-d` means: of the first snapshot shown by this name, ID and name as they are shown; of those the first.
pub(crate) fn to_delete<S: Storage>(
    storage: &S,
    header: &Header,
    text: &[u8],
) -> Result<ToDelete, TxnError> {
    let mut shown: Option<Snapshot> = None;
    for snapshot in SnapshotTable::new(storage, header) {
        let snapshot = readable(snapshot)?;
        if snapshot.shown_name() == text {
            shown = Some(snapshot);
            break;
        }
    }
    let Some(shown) = shown else {
        return Ok(ToDelete::NotFound);
    };
    for snapshot in SnapshotTable::new(storage, header) {
        let snapshot = readable(snapshot)?;
        if snapshot.id == shown.shown_id() && snapshot.name == shown.shown_name() {
            return Ok(ToDelete::Found(snapshot));
        }
    }
    Ok(ToDelete::Lost)
}

/// The number of a new snapshot's ID where these are the IDs so far: one more than the largest, modulo 2^64.
///
/// An ID counts as the number that it begins with, read as C's `strtoul` reads it.
pub fn next_id<'a>(ids: impl Iterator<Item = &'a [u8]>) -> u64 {
    ids.map(leading_number).max().unwrap_or(0).wrapping_add(1)
}

fn leading_number(id: &[u8]) -> u64 {
    let blank = |b: &&u8| matches!(b, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r');
    let mut rest = id.iter().skip_while(blank).peekable();
    let negative = rest.next_if(|b| matches!(b, b'+' | b'-')) == Some(&b'-');
    let mut number = Some(0_u64);
    while let Some(digit) = rest.next_if(|b| b.is_ascii_digit()) {
        let digit = u64::from(digit.wrapping_sub(b'0'));
        number = number
            .and_then(|n| n.checked_mul(10))
            .and_then(|n| n.checked_add(digit));
    }
    match number {
        Some(number) if negative => number.wrapping_neg(),
        Some(number) => number,
        None => u64::MAX,
    }
}
