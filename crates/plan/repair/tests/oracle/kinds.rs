//! Each kind of damage, in images with each feature.

use crate::base::{self, Base};
use crate::damage::Places;
use crate::random::Case;
use instar_plan_repair::Mode;
use std::path::Path;

const COPIED: u64 = 1 << 63;

/// A damaged copy of an image.
struct Damage {
    bytes: Vec<u8>,
    places: Places,
}

impl Damage {
    fn get(&self, at: u64) -> u64 {
        u64::from_be_bytes(self.bytes[at as usize..at as usize + 8].try_into().unwrap())
    }

    fn put(&mut self, at: u64, value: u64) {
        self.bytes[at as usize..at as usize + 8].copy_from_slice(&value.to_be_bytes());
    }

    fn put32(&mut self, at: u64, value: u32) {
        self.bytes[at as usize..at as usize + 4].copy_from_slice(&value.to_be_bytes());
    }

    fn v3(&self) -> bool {
        self.bytes[7] == 3
    }

    fn order(&self) -> u32 {
        if self.v3() {
            u32::from(self.bytes[99])
        } else {
            4
        }
    }

    /// The first L2 entry with a host cluster of its own.
    fn data_entry(&self) -> Option<u64> {
        let standard = |at: &u64| {
            let entry = self.get(*at);
            entry & !(COPIED | 1) != 0 && entry & (1 << 62) == 0
        };
        self.places.l2.iter().copied().find(standard)
    }

    /// The first L1 entry that names a table.
    fn l1_entry(&self) -> Option<u64> {
        self.places.l1.iter().copied().find(|at| self.get(*at) != 0)
    }

    /// Changes the refcount of a cluster, if its width is a whole number of bytes.
    fn refcount(&mut self, cluster: u64, change: impl Fn(u64) -> u64) -> Option<()> {
        let width = (1_u64 << self.order()) / 8;
        let per_block = self.places.cluster.checked_div(width)?;
        let block = *self.places.blocks.get((cluster / per_block) as usize)?;
        let at = (block + cluster % per_block * width) as usize;
        let bytes = &mut self.bytes[at..at + width as usize];
        let old = bytes.iter().fold(0, |n, b| n << 8 | u64::from(*b));
        bytes.copy_from_slice(&change(old).to_be_bytes()[8 - width as usize..]);
        Some(())
    }

    /// Changes the refcount of the first data cluster.
    fn data_refcount(&mut self, change: impl Fn(u64) -> u64) -> Option<()> {
        if !self.has_data_clusters() {
            return None;
        }
        let cluster = (self.get(self.data_entry()?) & 0x00ff_ffff_ffff_fe00) / self.places.cluster;
        self.refcount(cluster, change)
    }

    fn has_data_clusters(&self) -> bool {
        !(self.v3() && self.bytes[79] & 4 != 0)
    }

    fn block_entry(&mut self, change: impl Fn(&Self, u64) -> u64) -> Option<()> {
        let at = self.places.refcount_table;
        let value = change(self, self.get(at));
        self.put(at, value);
        Some(())
    }

    fn change(&mut self, at: Option<u64>, change: impl Fn(&Self, u64) -> u64) -> Option<()> {
        let at = at?;
        let value = change(self, self.get(at));
        self.put(at, value);
        Some(())
    }

    fn end(&self) -> u64 {
        (self.bytes.len() as u64).next_multiple_of(self.places.cluster)
    }
}

/// A kind of damage: its name, what exit code remains after `-r all`, and how it
/// is done; `None` where the image has no such place.
type Kind = (&'static str, i32, fn(&mut Damage) -> Option<()>);

const KINDS: &[Kind] = &[
    ("undamaged", 0, |_| Some(())),
    ("refcount too high", 0, |d| d.data_refcount(|n| n + 3)),
    ("refcount too low", 0, |d| d.data_refcount(|n| n.max(2) - 1)),
    ("refcount 0", 0, |d| d.data_refcount(|_| 0)),
    ("header's refcount 0", 0, |d| d.refcount(0, |_| 0)),
    ("cluster leaked at the end", 0, |d| {
        let end = d.end();
        d.bytes.resize((end + d.places.cluster) as usize, 7);
        d.refcount(end / d.places.cluster, |_| 1)
    }),
    ("all refcounts 0", 0, |d| {
        for block in d.places.blocks.clone() {
            let end = block + d.places.cluster;
            d.bytes[block as usize..end as usize].fill(0);
        }
        Some(())
    }),
    ("no refcount block", 0, |d| d.block_entry(|_, _| 0)),
    ("refcount block unaligned", 0, |d| {
        (d.places.cluster > 512).then_some(())?;
        d.block_entry(|_, old| old + 512)
    }),
    ("refcount block with reserved bits", 0, |d| {
        d.block_entry(|_, old| old | 1)
    }),
    ("refcount block far outside", 0, |d| {
        d.block_entry(|_, _| 1 << 50)
    }),
    ("refcount block just outside", 0, |d| {
        d.block_entry(|d, _| d.end() + d.places.cluster)
    }),
    ("refcount block is the refcount table", 0, |d| {
        d.block_entry(|d, _| d.places.refcount_table)
    }),
    ("refcount block is the L1 table", 0, |d| {
        d.block_entry(|d, _| d.get(40))
    }),
    ("refcount block is the header", 0, |d| {
        d.block_entry(|d, _| d.get(40) & !(d.places.cluster - 1))
    }),
    ("refcount block used twice", 0, |d| {
        let (at, block) = (d.places.refcount_table + 8, d.get(d.places.refcount_table));
        d.put(at, block);
        Some(())
    }),
    ("refcount block behind the others", 0, |d| {
        let at = d.places.refcount_table + d.places.cluster - 8;
        d.put(at, d.end() << 9);
        Some(())
    }),
    ("refcount table of garbage", 0, |d| {
        let at = d.places.refcount_table as usize;
        d.bytes[at..at + 256].fill(0xa5);
        Some(())
    }),
    ("refcount table outside", 0, |d| {
        d.put(48, 1 << 40);
        Some(())
    }),
    ("refcount table is the L1 table", 0, |d| {
        d.put(48, d.get(40));
        Some(())
    }),
    ("no refcount table", 0, |d| {
        d.put32(56, 0);
        Some(())
    }),
    ("refcount table too long", 0, |d| {
        d.put32(56, 2);
        Some(())
    }),
    ("COPIED flag of an L1 entry", 0, |d| {
        d.change(d.l1_entry(), |_, old| old ^ COPIED)
    }),
    ("COPIED flag of an L2 entry", 0, |d| {
        (d.bytes[79] & 4 == 0 || !d.v3()).then_some(())?;
        d.change(d.data_entry(), |_, old| old ^ COPIED)
    }),
    ("COPIED flag of a compressed cluster", 0, |d| {
        let compressed = |at: &u64| d.get(*at) & (1 << 62) != 0;
        let at = d.places.l2.iter().copied().find(compressed);
        d.change(at, |_, old| old | COPIED)
    }),
    ("zero cluster with an unaligned offset", 0, |d| {
        (d.v3() && d.places.cluster > 512 && d.places.l2_step == 8 && d.bytes[79] & 4 == 0)
            .then_some(())?;
        d.change(d.data_entry(), |_, old| old | 513)
    }),
    ("reserved bits of an L2 entry", 2, |d| {
        d.change(d.data_entry(), |_, old| old | 2)
    }),
    ("reserved bits of an L1 entry", 2, |d| {
        d.change(d.l1_entry(), |_, old| old | 2)
    }),
    ("data outside", 2, |d| {
        d.has_data_clusters().then_some(())?;
        d.change(d.data_entry(), |_, _| COPIED | 1 << 45)
    }),
    ("data just behind the end", 2, |d| {
        d.has_data_clusters().then_some(())?;
        d.change(d.data_entry(), |d, _| COPIED | d.end())
    }),
    ("data behind the end, and no refcounts", 2, |d| {
        d.has_data_clusters().then_some(())?;
        d.change(d.data_entry(), |d, _| COPIED | (d.end() + d.places.cluster))?;
        d.block_entry(|_, _| 0)
    }),
    ("data in the L1 table", 2, |d| {
        d.has_data_clusters().then_some(())?;
        d.change(d.data_entry(), |d, _| COPIED | d.get(40))
    }),
    ("L2 table outside", 2, |d| {
        d.change(d.l1_entry(), |_, _| COPIED | 1 << 45)
    }),
    ("snapshot's L1 table unaligned", 2, |d| {
        let at = d.places.snapshots.first().copied();
        (d.places.cluster > 512).then_some(())?;
        d.change(at, |_, old| old + 512)
    }),
    ("one snapshot more than there is", 0, |d| {
        let count = d.places.snapshots.len() as u32;
        (count > 0 && d.v3() && d.places.cluster > 512).then_some(())?;
        d.put32(60, count + 1);
        Some(())
    }),
    ("too much extra data", 0, |d| {
        // The last entry moves to a cluster of its own, at the end.
        let last = *d.places.snapshots.last()?;
        (d.places.snapshots.len() == 1 && d.bytes[last as usize + 39] >= 16).then_some(())?;
        let end = d.end();
        let entry = d.bytes[last as usize..d.places.snapshots_end as usize].to_vec();
        let (head, names) = entry.split_at(40 + entry[39] as usize);
        d.bytes.resize(end as usize, 0);
        d.bytes.extend(head);
        d.bytes.resize((end + 40 + 1200) as usize, 0xaa);
        d.bytes.extend(names);
        d.bytes
            .resize((end + 3 * d.places.cluster.max(512)) as usize, 0);
        d.put32(end + 36, 1200);
        d.put(64, end);
        Some(())
    }),
    ("snapshots behind the end of the file", 0, |d| {
        // The last entry moves to a cluster of its own, at the end.
        let last = *d.places.snapshots.last()?;
        (d.places.snapshots.len() == 1).then_some(())?;
        let end = d.end();
        let entry = d.bytes[last as usize..d.places.snapshots_end as usize].to_vec();
        d.bytes.resize(end as usize, 0);
        d.bytes.extend(entry);
        d.put(64, end);
        d.put32(60, 700);
        Some(())
    }),
    ("offset of a snapshot table, and no snapshots", 0, |d| {
        d.places.snapshots.is_empty().then_some(())?;
        d.put(64, 0x1234_5678_9abc_def0);
        Some(())
    }),
    ("header is an L2 table", 2, |d| {
        d.change(d.l1_entry(), |_, _| 1 << 62)
    }),
    ("dirty", 0, |d| mark(d, 1)),
    ("corrupt", 0, |d| mark(d, 2)),
    ("dirty, with a leak", 0, |d| {
        d.data_refcount(|n| n + 1)?;
        mark(d, 1)
    }),
    ("corrupt, with a refcount of 0", 0, |d| {
        d.data_refcount(|_| 0)?;
        mark(d, 2)
    }),
];

fn mark(damage: &mut Damage, bit: u8) -> Option<()> {
    damage.v3().then_some(())?;
    damage.bytes[79] |= bit;
    Some(())
}

fn judge(base: &Base, kind: &Kind, dir: &Path) -> Result<bool, String> {
    let (name, expected, damage) = kind;
    let mut damaged = Damage {
        bytes: base.bytes.clone(),
        places: Places::of(&base.bytes),
    };
    if damage(&mut damaged).is_none() {
        return Ok(false);
    }
    let label = format!("{name} in {}", base.name);
    let Some(case) = Case::new(base, &damaged.bytes, dir) else {
        return Ok(false);
    };
    case.repair(Mode::Leaks)
        .map_err(|wrong| format!("{label}, leaks: {wrong}"))?;
    let (code, told, bytes) = case
        .repair(Mode::All)
        .map_err(|wrong| format!("{label}, all: {wrong}"))?;
    // An image that is sound now is more than was expected: `qemu-img` has been asked.
    if code != *expected && code != 0 {
        return Err(format!(
            "{label}: {code}, not {expected}: {:#?}",
            told.lines
        ));
    }
    let bits = bytes[79];
    if code == 0 && base.bytes[7] == 3 && bits & 3 != 0 {
        return Err(format!("{label}: still marked {bits:#x}"));
    }
    Ok(true)
}

fn every_kind(bases: &[&str], least: u32) {
    let dir = tempfile::tempdir().unwrap();
    let (mut failures, mut done) = (Vec::new(), 0);
    for base in base::all(dir.path()) {
        if !bases.contains(&base.name) {
            continue;
        }
        for kind in KINDS {
            match judge(&base, kind, dir.path()) {
                Ok(applies) => done += u32::from(applies),
                Err(wrong) => failures.push(wrong),
            }
        }
    }
    println!("{done} damages, {} failed", failures.len());
    assert!(
        failures.is_empty(),
        "{}",
        failures[..failures.len().min(20)].join("\n\n")
    );
    assert!(done >= least, "{done} damages only");
}

#[test]
fn every_kind_of_damage_is_repaired_or_named() {
    every_kind(&["v3", "v2", "v3 snapshots", "512", "2M"], 120);
}

#[test]
fn every_kind_of_damage_at_other_refcount_widths() {
    every_kind(&["1k 64 bit", "4k 32 bit", "8 bit"], 75);
}

#[test]
fn every_kind_of_damage_beside_other_features() {
    every_kind(
        &[
            "extended",
            "extended 16k",
            "compressed",
            "zstd",
            "bitmaps in use",
            "data file",
            "raw data file",
            "luks",
        ],
        200,
    );
}
