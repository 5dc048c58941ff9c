//! What the guest sees: an own reader, of the active disk and of each snapshot.

use instar_qcow2::entries::{ALL_ZEROS, L1Entry, L2Entry, SubclusterBitmap};
use instar_qcow2::header::MAX_L1_BYTES;
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, Storage};
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

/// One disk: for each guest cluster that has something, a hash of it.
type Clusters = BTreeMap<u64, u64>;

/// The active disk, and the snapshots by id and name.
#[derive(Debug, PartialEq, Eq)]
pub struct Disk {
    active: Clusters,
    snapshots: Vec<(Vec<u8>, Vec<u8>, Clusters)>,
}

fn bytes(storage: &MemStorage, offset: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; len as usize];
    if offset < storage.len_bytes() {
        storage.read_at(offset, &mut bytes).unwrap();
    }
    bytes
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// Zero subclusters read as zeros, others not allocated as the backing file has it.
fn one(
    storage: &MemStorage,
    header: &Header,
    entry: L2Entry,
    map: Option<SubclusterBitmap>,
) -> Option<u64> {
    let cluster = header.cluster_bits.size_bytes();
    // What a broken entry says is data in the header's cluster changes with the header.
    let compressed = entry.compressed(header.cluster_bits);
    let start = compressed.map_or(entry.host_offset(), |data| data.offset);
    if start.get() < cluster && (compressed.is_some() || start.get() != 0) {
        return Some(1);
    }
    if let Some(data) = compressed {
        return Some(hash(&bytes(storage, data.offset.get(), data.size_bytes())));
    }
    let offset = entry.host_offset().get();
    let zero = map.is_none() && entry.0 & ALL_ZEROS != 0;
    let data_file = header.incompatible.external_data_file();
    match map {
        _ if zero => Some(0),
        Some(map) if map.allocated() == 0 => (map.0 != 0).then(|| hash(&map.0)),
        _ if data_file => Some(hash(&offset)),
        _ if offset == 0 => None,
        _ => Some(hash(&(
            map.map(|map| map.0),
            bytes(storage, offset, cluster),
        ))),
    }
}

fn disk(storage: &MemStorage, header: &Header, l1: u64, entries: u32) -> Clusters {
    let mut clusters = Clusters::new();
    let needed = entries.min(header.l1_entries_needed() as u32);
    let step = header.l2_entry_bytes() as usize;
    let table = bytes(storage, l1, u64::from(needed) * 8);
    for (index, raw) in table.as_chunks::<8>().0.iter().enumerate() {
        let entry = L1Entry::from_be_bytes(*raw);
        if entry.is_unallocated() {
            continue;
        }
        let l2 = bytes(
            storage,
            entry.l2_offset().get(),
            header.cluster_bits.size_bytes(),
        );
        for (place, raw) in l2.chunks_exact(step).enumerate() {
            let (word, rest) = raw.split_first_chunk().unwrap();
            let map = rest
                .first_chunk()
                .map(|raw| SubclusterBitmap::from_be_bytes(*raw));
            let seen = one(storage, header, L2Entry::from_be_bytes(*word), map);
            let number = index as u64 * header.l2_entries() + place as u64;
            clusters.extend(seen.map(|seen| (number, seen)));
        }
    }
    clusters
}

impl Disk {
    /// Reads everything.
    pub fn read(storage: &MemStorage) -> Self {
        let header = Header::read(storage, OpenMode::CheckWithKey).expect("opens");
        let table = SnapshotTable::new(storage, &header);
        // Entries that qemu-img itself cannot read are the repair's to drop or to complete.
        let sound = |l1: u64, size: u32| {
            header.cluster_bits.is_aligned(l1) && u64::from(size) <= MAX_L1_BYTES / 8
        };
        let snapshots = table.map_while(Result::ok).map(|snapshot| {
            let l1 = snapshot.l1_table_offset.get();
            let size = if sound(l1, snapshot.l1_size) {
                snapshot.l1_size
            } else {
                0
            };
            let clusters = disk(storage, &header, l1, size);
            (snapshot.id, snapshot.name, clusters)
        });
        Self {
            snapshots: snapshots.collect(),
            active: disk(
                storage,
                &header,
                header.l1_table_offset.get(),
                header.l1_size,
            ),
        }
    }
}

/// True if something is in the header's cluster that the repair changes there.
pub fn names_header(storage: &MemStorage, header: &Header) -> bool {
    let cluster = header.cluster_bits.size_bytes();
    let starts = [
        header.l1_table_offset.get(),
        header.refcount_table_offset.get(),
        header.snapshots_offset.get() + u64::from(header.nb_snapshots == 0) * cluster,
    ];
    let mut l1s = vec![(header.l1_table_offset.get(), header.l1_size)];
    for snapshot in SnapshotTable::new(storage, header).map_while(Result::ok) {
        l1s.push((
            snapshot.l1_table_offset.get(),
            snapshot.l1_size.min(1 << 16),
        ));
    }
    let in_header = |raw: &[u8; 8]| {
        let entry = L1Entry::from_be_bytes(*raw);
        entry.0 != 0 && entry.l2_offset().get() < cluster
    };
    starts.iter().any(|start| *start < cluster)
        || l1s.iter().any(|(at, _)| *at < cluster)
        || l1s.iter().any(|(at, entries)| {
            let table = bytes(storage, *at, u64::from(*entries) * 8);
            table.as_chunks::<8>().0.iter().any(in_header)
        })
}
