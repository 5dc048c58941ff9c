//! Limits that `qemu-img` needs minutes for: its words are those that it had for such images.

use crate::judge::Quiet;
use instar_plan_bitmap::{Action, Request, SourceImage, change};
use instar_plan_check::{MessageKind, Reporter, check};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, Storage, StorageMut};

const CLUSTER: u64 = 4096;

/// An image with `count` bitmaps whose names are `name_len` bytes long, made here.
fn image(count: u64, name_len: usize) -> MemStorage {
    let entry_bytes = (24 + name_len as u64).next_multiple_of(8);
    let directory_bytes = count * entry_bytes;
    let directory_clusters = directory_bytes.div_ceil(CLUSTER);
    // Header, L1, refcount table, blocks, bitmap tables, directory.
    let total = 3 + directory_clusters + count;
    let blocks = (total + total / 2048 + 1).div_ceil(2048);
    let (tables, end) = (3 + blocks, total + blocks);
    let directory = tables + count;
    let store = MemStorage::hole(end * CLUSTER);
    let put = |at: u64, bytes: &[u8]| store.write_at(at, bytes).unwrap();
    put(0, b"QFI\xfb\0\0\0\x03");
    put(20, &12_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &CLUSTER.to_be_bytes());
    put(48, &(2 * CLUSTER).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(88, &1_u64.to_be_bytes());
    put(96, &4_u32.to_be_bytes());
    put(100, &104_u32.to_be_bytes());
    put(104, &0x2385_2875_u32.to_be_bytes());
    put(108, &24_u32.to_be_bytes());
    put(112, &(count as u32).to_be_bytes());
    put(120, &directory_bytes.to_be_bytes());
    put(128, &(directory * CLUSTER).to_be_bytes());
    for block in 0..blocks {
        put(
            2 * CLUSTER + 8 * block,
            &((3 + block) * CLUSTER).to_be_bytes(),
        );
        let used = (end - (block * 2048).min(end)).min(2048);
        put((3 + block) * CLUSTER, &[0, 1].repeat(used as usize));
    }
    for index in 0..count {
        let at = directory * CLUSTER + index * entry_bytes;
        put(at, &((tables + index) * CLUSTER).to_be_bytes());
        put(at + 8, &[0, 0, 0, 1, 0, 0, 0, 2, 1, 16]);
        put(at + 18, &(name_len as u16).to_be_bytes());
        put(at + 24, format!("{index:0name_len$}").as_bytes());
    }
    store
}

fn done(store: &MemStorage, name: &[u8], actions: &[Action<'_>]) -> Vec<String> {
    let header = Header::read(store, OpenMode::Change).unwrap();
    let request = Request { name, actions };
    let source: SourceImage<'_, MemStorage> = SourceImage::Same;
    let report = change(store, &header, &source, &request, &mut Quiet).unwrap();
    report.sentences()
}

/// The lines of a check.
pub struct Findings(pub Vec<String>);

impl Reporter for Findings {
    fn message(&mut self, _: MessageKind, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }
    fn progress(&mut self, _: u64, _: u64) -> Result<(), instar_plan_check::Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// The check finds nothing.
fn checked(store: &MemStorage) {
    let header = Header::read(store, OpenMode::CheckWithKey).unwrap();
    let mut findings = Findings(Vec::new());
    check(store, &header, &mut findings).unwrap();
    assert_eq!(findings.0, Vec::<String>::new());
}

const ADD: Action<'static> = Action::Add { granularity: 0 };

#[test]
fn no_more_than_65535_bitmaps() {
    let store = image(65_535, 8);
    checked(&store);
    assert_eq!(
        done(&store, b"new", &[ADD]),
        [
            "Operation add on bitmap new failed: Can't make bitmap 'new' persistent in '#block100': \
             Maximum number of persistent bitmaps is already reached"
        ]
    );
    let long = [b'n'; 1024];
    let sentences = done(&store, &long, &[ADD]);
    assert!(sentences[0].ends_with("': Name length exceeds maximum (1023 characters)"));
    assert!(done(&store, b"00000005", &[Action::Remove, ADD]).is_empty());
    checked(&store);
    assert!(done(&store, b"00000006", &[Action::Remove]).is_empty());
    assert!(done(&store, b"new", &[ADD]).is_empty());
    checked(&store);
    assert_eq!(done(&store, b"other", &[ADD]).len(), 1);
}

#[test]
fn no_directory_above_64_mib() {
    // 1048 bytes for each entry; 65535 KiB are the limit.
    let store = image(64_034, 1023);
    let before = store.len_bytes();
    let long = [b'n'; 1023];
    assert_eq!(
        done(&store, &long, &[ADD]).len(),
        1,
        "67107632 bytes and 1048 more"
    );
    let sentences = done(&store, &[b'j'; 1000], &[ADD]);
    assert!(
        sentences[0]
            .ends_with(" persistent in '#block100': Not enough space in the bitmap directory")
    );
    // 208 bytes are left.
    assert!(done(&store, &[b'k'; 184], &[ADD]).is_empty());
    assert_eq!(done(&store, b"k", &[ADD]).len(), 1);
    checked(&store);
    let first = format!("{:01023}", 0);
    assert!(done(&store, first.as_bytes(), &[Action::Remove]).is_empty());
    checked(&store);
    assert!(store.len_bytes() <= before * 51 / 50 + (64 << 20));
}
