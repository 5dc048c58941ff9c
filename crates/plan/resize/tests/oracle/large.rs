//! Large disks in bounded memory.

use crate::ours::{Opened, Steps, load, resize, to};
use crate::qemu;
use crate::state::sound;
use instar_plan_resize::{Preallocation, ResizeError, Stage};
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, Storage};

const NAME: &str = "a.qcow2";

fn image(options: &str, size: &str) -> MemStorage {
    let dir = tempfile::tempdir().unwrap();
    qemu::img_ok(
        dir.path(),
        &["create", "-q", "-f", "qcow2", "-o", options, NAME, size],
    );
    load(&dir.path().join(NAME))
}

fn top(store: MemStorage) -> Vec<Opened<MemStorage>> {
    let header = Header::read(&store, OpenMode::Change).unwrap();
    vec![Opened {
        store,
        data: None,
        header: Some(header),
    }]
}

#[test]
fn a_disk_of_64_tib_is_made_and_cut() {
    let chain = top(image("compat=1.1", "1M"));
    resize(
        &chain,
        &to(64 << 40, Preallocation::Off),
        &mut Steps(u64::MAX),
    )
    .unwrap();
    assert!(chain[0].store.len_bytes() < 2 << 20);
    sound(&chain[0].store).unwrap();
    let store = chain.into_iter().next().unwrap().store;
    let chain = top(store);
    resize(
        &chain,
        &to(1 << 20, Preallocation::Off),
        &mut Steps(u64::MAX),
    )
    .unwrap();
    sound(&chain[0].store).unwrap();
}

/// The most memory that was asked for.
struct Asked(u64);

impl Monitor for Asked {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        self.0 = self.0.max(bytes);
        bytes
    }
}

#[test]
fn much_metadata_is_made_and_cut_in_bounded_memory() {
    let chain = top(image("cluster_size=2M", "1M"));
    let mut asked = Asked(0);
    resize(&chain, &to(512 << 30, Preallocation::Metadata), &mut asked).unwrap();
    assert!(asked.0 < 80 << 20, "{}", asked.0);
    sound(&chain[0].store).unwrap();
    assert!(chain[0].store.len_bytes() > 512 << 30);
    let chain = top(chain.into_iter().next().unwrap().store);
    resize(&chain, &to(1 << 20, Preallocation::Off), &mut asked).unwrap();
    sound(&chain[0].store).unwrap();
    assert!(
        chain[0].store.len_bytes() < 20 << 20,
        "{}",
        chain[0].store.len_bytes()
    );
}

#[test]
fn more_clusters_than_refcounts_can_count_are_refused() {
    // A refcount table of 8 MiB counts 2^20 blocks of 64 clusters of 512 bytes.
    let chain = top(image("cluster_size=512,refcount_bits=64", "1M"));
    let before = chain[0].store.clone();
    let error = resize(
        &chain,
        &to(40 << 30, Preallocation::Metadata),
        &mut Steps(u64::MAX),
    );
    let failed = |stage| Err(ResizeError::Failed { stage, errno: 27 });
    assert_eq!(error, failed(Stage::Allocate));
    assert!(chain[0].store == before);
}
