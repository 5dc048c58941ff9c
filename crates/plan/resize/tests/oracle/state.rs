//! What is seen of an image, read by this crate's own reader: for the many states of a power cut, for which a process
//! each would be too slow.

use instar_plan_check::{Cancelled, MessageKind, Reporter, check};
use instar_plan_resize::{Layer, read_guest};
use instar_qcow2::bitmaps::{BitmapDirectory, BitmapTableEntry};
use instar_qcow2::snapshot::SnapshotTable;
use instar_qcow2::{Header, OpenMode};
use instar_storage::Storage;

/// A bitmap: its name, its flags, and the numbers of its bits that are set.
pub type Bits = (Vec<u8>, u32, Vec<u64>);

/// The disk, each snapshot, and the bitmaps.
#[derive(Clone, PartialEq, Eq)]
pub struct Seen {
    pub size: u64,
    pub disk: Vec<u8>,
    pub snapshots: Vec<Vec<u8>>,
    pub bitmaps: Vec<Bits>,
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

/// # Errors
/// What the check finds.
pub fn sound<S: Storage>(store: &S) -> Result<(), String> {
    let header = Header::read(store, OpenMode::CheckWithKey).map_err(|e| e.to_string())?;
    let mut lines = Lines(Vec::new());
    let sum = check(store, &header, &mut lines).map_err(|e| e.to_string())?;
    if (sum.corruptions, sum.leaks, sum.check_errors) == (0, 0, 0) {
        Ok(())
    } else {
        Err(lines.0.join("\n"))
    }
}

/// The bitmaps of an image.
pub fn bitmaps<S: Storage>(store: &S, header: &Header) -> Vec<Bits> {
    let Some(extension) = header.extensions.bitmaps else {
        return Vec::new();
    };
    let cluster = header.cluster_bits.size_bytes() as usize;
    let mut all = Vec::new();
    for bitmap in BitmapDirectory::new(store, extension) {
        let bitmap = bitmap.unwrap();
        let count = header.virtual_size.div_ceil(bitmap.granularity_bytes());
        let mut set = Vec::new();
        for index in 0..u64::from(bitmap.table_size) {
            let mut raw = [0; 8];
            let at = bitmap.table_offset.get() + 8 * index;
            store.read_at(at, &mut raw).unwrap();
            let entry = BitmapTableEntry::from_be_bytes(raw);
            let mut bits = vec![if entry.all_ones() { 0xff } else { 0 }; cluster];
            if entry.host_offset().get() != 0 {
                store.read_at(entry.host_offset().get(), &mut bits).unwrap();
            }
            let first = index * cluster as u64 * 8;
            let is_set = |n: &u64| bits[(*n / 8) as usize] >> (n % 8) & 1 != 0;
            let here = (0..cluster as u64 * 8).filter(is_set);
            set.extend(here.map(|n| first + n).filter(|n| *n < count));
        }
        all.push((bitmap.name, bitmap.flags, set));
    }
    all
}

/// Everything that is seen of a sound image, whose data file and backing chain are given.
pub fn seen<S: Storage>(store: &S, data: Option<&S>, below: &[Layer<'_, S>]) -> Seen {
    let header = Header::read(store, OpenMode::Change).unwrap();
    let view = |header: &Header| {
        let mut layers = vec![Layer {
            storage: store,
            data,
            header: Some(header),
            cipher: None,
        }];
        layers.extend_from_slice(below);
        let mut bytes = vec![0; header.virtual_size as usize];
        read_guest(&layers, 0, &mut bytes).unwrap();
        bytes
    };
    let mut snapshots = Vec::new();
    for snapshot in SnapshotTable::new(store, &header) {
        let snapshot = snapshot.unwrap();
        let mut then = header.clone();
        then.l1_table_offset = snapshot.l1_table_offset;
        then.l1_size = snapshot.l1_size;
        then.virtual_size = snapshot.disk_size.unwrap_or(header.virtual_size);
        snapshots.push(view(&then));
    }
    Seen {
        size: header.virtual_size,
        disk: view(&header),
        snapshots,
        bitmaps: bitmaps(store, &header),
    }
}
