//! Images written field by field: larger or slower to check than `qemu-img` makes in good time.
//!
//! Both are healthy by the qcow2 specification ("Header", "Host cluster
//! management", "Cluster mapping"): clusters of 64 KiB, 64-bit refcounts.

use std::fs::File;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result};

use crate::scratch::Scratch;

/// Bytes in a cluster.
const CLUSTER: u64 = 64 << 10;
/// L2 entries, or refcounts, in a cluster.
const ENTRIES: u64 = CLUSTER / 8;

/// Where the structures of an image are, in clusters.
struct Layout {
    refcount_blocks: u64,
    l1_entries: u64,
    l1_at: u64,
    clusters: u64,
}

impl Layout {
    /// Writes the header, and the refcount table in the second cluster, whose blocks follow it.
    fn start(&self, file: &File) -> Result<()> {
        let mut header = Vec::from(*b"QFI\xfb");
        let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
        put(&3_u32.to_be_bytes());
        put(&[0; 12]);
        put(&CLUSTER.ilog2().to_be_bytes());
        put(&(self.l1_entries * ENTRIES * CLUSTER).to_be_bytes());
        put(&0_u32.to_be_bytes());
        put(&u32::try_from(self.l1_entries)?.to_be_bytes());
        put(&(self.l1_at * CLUSTER).to_be_bytes());
        put(&CLUSTER.to_be_bytes());
        put(&1_u32.to_be_bytes());
        put(&[0; 12]);
        put(&[0; 24]);
        put(&6_u32.to_be_bytes());
        put(&112_u32.to_be_bytes());
        put(&[0; 16]);
        file.set_len(self.clusters * CLUSTER)?;
        file.write_all_at(&header, 0)?;
        let blocks = (0..self.refcount_blocks).map(|block| (2 + block) * CLUSTER);
        write_numbers(file, CLUSTER, blocks)
    }
}

fn write_numbers(file: &File, at: u64, numbers: impl Iterator<Item = u64>) -> Result<()> {
    let bytes: Vec<u8> = numbers.flat_map(u64::to_be_bytes).collect();
    file.write_all_at(&bytes, at).context("writing a table")
}

/// Makes an image whose L1 entries, `tables` of them, all name the same L2
/// table, whose entries all name the same data cluster. A check follows
/// `tables` * 8,192 references (a million tables: half a minute and more), while
/// the file is hardly longer than its L1 table.
pub fn create_long(scratch: &Scratch, name: &str, tables: u64) -> Result<()> {
    let l1_clusters = (tables * 8).div_ceil(CLUSTER);
    let (l2_at, data_at) = (3, 4);
    let layout = Layout {
        refcount_blocks: 1,
        l1_entries: tables,
        l1_at: 5,
        clusters: 5 + l1_clusters,
    };
    let file = File::create(scratch.file(name)).context("making an image")?;
    layout.start(&file)?;
    let counts = [1, 1, 1, tables, tables * ENTRIES];
    let l1_counts = (0..l1_clusters).map(|_| 1);
    write_numbers(&file, 2 * CLUSTER, counts.into_iter().chain(l1_counts))?;
    let repeat = |cluster: u64, times: u64| (0..times).map(move |_| cluster * CLUSTER);
    write_numbers(&file, l2_at * CLUSTER, repeat(data_at, ENTRIES))?;
    write_numbers(&file, layout.l1_at * CLUSTER, repeat(l2_at, tables))
}

/// Makes an image of `tables` full L2 tables, each with 8,192 data clusters of
/// its own, which are holes in the file: 512 MiB of length for each table.
pub fn create_wide(scratch: &Scratch, name: &str, tables: u64) -> Result<()> {
    let data = tables * ENTRIES;
    let refcount_blocks = tables + 1;
    let l1_at = 2 + refcount_blocks;
    let l2_at = l1_at + (tables * 8).div_ceil(CLUSTER);
    let data_at = l2_at + tables;
    let layout = Layout {
        refcount_blocks,
        l1_entries: tables,
        l1_at,
        clusters: data_at + data,
    };
    anyhow::ensure!(
        layout.clusters <= refcount_blocks * ENTRIES,
        "{tables} tables need more refcount blocks"
    );
    // Bit 63 of an entry: the refcount of what it names is 1.
    let entry = |cluster: u64| (cluster * CLUSTER) | (1 << 63);
    let file = File::create(scratch.file(name)).context("making an image")?;
    layout.start(&file)?;
    write_numbers(&file, 2 * CLUSTER, (0..layout.clusters).map(|_| 1))?;
    write_numbers(&file, l1_at * CLUSTER, (l2_at..data_at).map(entry))?;
    let all_data = (data_at..layout.clusters).map(entry);
    write_numbers(&file, l2_at * CLUSTER, all_data)
}
