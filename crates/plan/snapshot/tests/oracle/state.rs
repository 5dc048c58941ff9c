//! What a guest sees of an image and its snapshots, read by a reader of our own: for the many states of a power cut,
//! for which a process each would be too slow.

use instar_plan_check::{Cancelled, CheckSummary, MessageKind, Reporter, check};
use instar_plan_txn::{for_each_l2, read_l1};
use instar_qcow2::entries::{ALL_ZEROS, COPIED, L2Entry};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::Storage;
use std::collections::BTreeMap;

/// The disk or a snapshot: its size, and by L2 entry its flags and the bytes it names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Disk {
    size: u64,
    entries: BTreeMap<(usize, usize), (u64, u64, Vec<u8>)>,
}

/// The disk, and by ID and name each snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    disk: Disk,
    snapshots: Vec<(Vec<u8>, Vec<u8>, Disk)>,
}

struct Lines(Vec<String>);

impl Reporter for Lines {
    fn message(&mut self, _: MessageKind, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// The check's totals and lines.
pub fn checked<S: Storage>(store: &S) -> Result<(CheckSummary, Vec<String>), String> {
    let header = Header::read(store, OpenMode::CheckWithKey).map_err(|e| e.to_string())?;
    let mut lines = Lines(Vec::new());
    let summary = check(store, &header, &mut lines).map_err(|e| e.to_string())?;
    Ok((summary, lines.0))
}

/// # Errors
/// What the check finds.
pub fn sound<S: Storage>(store: &S) -> Result<(), String> {
    let (summary, lines) = checked(store)?;
    if (summary.corruptions, summary.leaks, summary.check_errors) == (0, 0, 0) {
        Ok(())
    } else {
        Err(lines.join("\n"))
    }
}

fn disk<S: Storage>(store: &S, header: &Header, l1: &[u64], size: u64) -> Disk {
    let mut entries = BTreeMap::new();
    let stride = header.l2_entry_bytes() as usize;
    for_each_l2(store, header, l1, &mut |index, l2| {
        for (at, raw) in l2.chunks_exact(stride).enumerate() {
            let word = L2Entry(u64::from_be_bytes(raw[..8].try_into().unwrap()));
            let bitmap = raw
                .get(8..16)
                .map_or(0, |b| u64::from_be_bytes(b.try_into().unwrap()));
            if word.0 & !COPIED == 0 && bitmap == 0 {
                continue;
            }
            let (flags, offset, len) = match word.compressed(header.cluster_bits) {
                Some(data) => (word.0, data.offset.get(), data.size_bytes()),
                None => {
                    let offset = word.host_offset().get();
                    let len = if offset == 0 {
                        0
                    } else {
                        header.cluster_bits.size_bytes()
                    };
                    (word.0 & ALL_ZEROS, offset, len)
                }
            };
            // A hole is no bytes.
            let hole = store
                .extent_at(offset)
                .unwrap()
                .is_none_or(|extent| !extent.data && extent.len >= len);
            let mut bytes = vec![0; if hole { 0 } else { len as usize }];
            store.read_at(offset, &mut bytes).unwrap();
            // Where a compressed cluster is, is part of its entry; nothing moves it.
            entries.insert((index, at), (flags, bitmap, bytes));
        }
        Ok(())
    })
    .unwrap();
    Disk { size, entries }
}

/// Everything that is seen of a sound image.
pub fn seen<S: Storage>(store: &S) -> Seen {
    let header = Header::read(store, OpenMode::Change).unwrap();
    let l1 = read_l1(store, &header, header.l1_table_offset, header.l1_size).unwrap();
    let mut snapshots = Vec::new();
    for entry in SnapshotTable::new(store, &header) {
        let entry = entry.unwrap();
        let l1 = read_l1(store, &header, entry.l1_table_offset, entry.l1_size).unwrap();
        let size = entry.disk_size.unwrap_or(header.virtual_size);
        snapshots.push((entry.id, entry.name, disk(store, &header, &l1, size)));
    }
    Seen {
        disk: disk(store, &header, &l1, header.virtual_size),
        snapshots,
    }
}
