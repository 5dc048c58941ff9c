//! Damage at places that the qcow2 specification names.

use crate::Rng;
use crate::base::Base;
use std::fmt::Write;

/// Where things are in an undamaged image.
#[derive(Default)]
#[allow(dead_code)]
pub struct Places {
    pub cluster: u64,
    pub snapshots_end: u64,
    pub l1: Vec<u64>,
    pub l2: Vec<u64>,
    pub l2_step: u64,
    pub refcount_table: u64,
    pub refcount_table_used: u64,
    pub blocks: Vec<u64>,
    pub snapshots: Vec<u64>,
    pub bitmaps: Vec<u64>,
    pub bitmap_entries: Vec<u64>,
    pub crypto: Option<u64>,
}

/// A big-endian number; 0 where the file has been cut off.
fn be<const N: usize>(bytes: &[u8], at: u64) -> u64 {
    let mut wide = [0; 8];
    if let Some(found) = bytes.get(at as usize..at as usize + N) {
        wide[8 - N..].copy_from_slice(found);
    }
    u64::from_be_bytes(wide)
}

const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

impl Places {
    pub fn of(bytes: &[u8]) -> Self {
        let v3 = be::<4>(bytes, 4) == 3;
        let mut places = Self {
            cluster: 1 << be::<4>(bytes, 20),
            ..Self::default()
        };
        places.l2_step = if v3 && be::<8>(bytes, 72) & 16 != 0 {
            16
        } else {
            8
        };
        places.add_l1(bytes, be::<8>(bytes, 40), be::<4>(bytes, 36));
        places.refcount_table = be::<8>(bytes, 48);
        for at in (places.refcount_table..)
            .step_by(8)
            .take((places.cluster / 8) as usize)
        {
            let block = be::<8>(bytes, at);
            if block == 0 {
                break;
            }
            places.blocks.push(block);
            places.refcount_table_used += 1;
        }
        let mut at = be::<8>(bytes, 64);
        for _ in 0..be::<4>(bytes, 60) {
            at = at.next_multiple_of(8);
            places.snapshots.push(at);
            places.add_l1(bytes, be::<8>(bytes, at), be::<4>(bytes, at + 8));
            at += 40 + be::<4>(bytes, at + 36) + be::<2>(bytes, at + 12) + be::<2>(bytes, at + 14);
            places.snapshots_end = at;
        }
        if v3 {
            places.add_extensions(bytes);
        }
        places
    }

    fn add_l1(&mut self, bytes: &[u8], start: u64, entries: u64) {
        for at in (start..start + 8 * entries).step_by(8) {
            self.l1.push(at);
            let table = be::<8>(bytes, at) & OFFSET;
            if table == 0 {
                continue;
            }
            let used = (table..table + self.cluster).step_by(self.l2_step as usize);
            self.l2
                .extend(used.filter(|at| be::<8>(bytes, *at) != 0 || at % 512 < 32));
        }
    }

    fn add_extensions(&mut self, bytes: &[u8]) {
        let mut at = be::<4>(bytes, 100);
        while be::<4>(bytes, at) != 0 {
            match be::<4>(bytes, at) {
                0x2385_2875 => self.add_bitmaps(bytes, at + 8),
                0x0537_be77 => self.crypto = Some(at + 8),
                _ => {}
            }
            at += 8 + be::<4>(bytes, at + 4).next_multiple_of(8);
        }
    }

    fn add_bitmaps(&mut self, bytes: &[u8], extension: u64) {
        let start = be::<8>(bytes, extension + 16);
        let mut at = start;
        while at < start + be::<8>(bytes, extension + 8) {
            self.bitmaps.push(at);
            let table = be::<8>(bytes, at);
            self.bitmap_entries
                .extend((table..).step_by(8).take(be::<4>(bytes, at + 8) as usize));
            at += (24 + be::<2>(bytes, at + 18) + be::<4>(bytes, at + 20)).next_multiple_of(8);
        }
    }
}

/// Another value for a table entry.
fn other_entry(old: u64, len: u64, cluster: u64, rng: &mut Rng) -> u64 {
    let clusters = len / cluster + 2;
    let random = rng.next();
    match rng.below(22) {
        0 => old ^ (1 << 63),
        1 => old ^ (1 << 62),
        2 => old ^ 1,
        3 => old ^ (1 << (1 + random % 8)),
        4 => old ^ (1 << (56 + random % 6)),
        5 => old ^ (512 << (random % 8)),
        6 => old + cluster,
        7 => old.wrapping_sub(cluster),
        8 => random % clusters * cluster,
        9 | 10 => (random % clusters * cluster) | (1 << 63),
        11 => ((random % len) & !511) | (1 << 63),
        12 => (1 << 63) | (random & OFFSET & !(cluster - 1)),
        13 => {
            (1 << 62)
                | (random % len)
                | (((random >> 32) & 3) << (62 - (cluster.trailing_zeros() - 8)))
        }
        14 => (3 << 62) | (random % (len + cluster)),
        15 => random,
        16 => u64::MAX,
        17 => 0,
        18 => 1 << 63,
        19 => (len & !(cluster - 1)) | (1 << 63),
        20 => (len - 512) | (1 << 62),
        _ => (random % clusters * cluster) | 1,
    }
}

struct Patch<'a> {
    bytes: &'a mut Vec<u8>,
    what: &'a mut String,
}

impl Patch<'_> {
    fn put(&mut self, name: &str, at: u64, value: u64, width: usize) {
        let end = at as usize + width;
        if end > self.bytes.len() {
            return;
        }
        let old: Vec<u8> = self.bytes[at as usize..end].to_vec();
        self.bytes[at as usize..end].copy_from_slice(&value.to_be_bytes()[8 - width..]);
        let _ = write!(self.what, "{name} at {at:#x}: {old:02x?} -> {value:#x}; ");
    }
}

fn header_field(patch: &mut Patch<'_>, cluster: u64, rng: &mut Rng) {
    let len = patch.bytes.len() as u64;
    let offset = match rng.below(4) {
        0 => rng.below(len / cluster + 2) * cluster,
        1 => rng.next() & 0x7fff_ffff_ffff_fe00 & !(cluster - 1),
        2 => rng.next(),
        _ => 0,
    };
    match rng.below(7) {
        0 => patch.put("l1_table_offset", 40, offset, 8),
        1 => patch.put("refcount_table_offset", 48, offset, 8),
        2 => patch.put("refcount_table_clusters", 56, rng.below(4), 4),
        3 => {
            let count = match rng.below(3) {
                0 => rng.below(6),
                1 => 65_537 + rng.below(1000),
                _ => rng.below(300),
            };
            patch.put("nb_snapshots", 60, count, 4);
        }
        4 => patch.put("snapshots_offset", 64, offset, 8),
        5 => {
            let entries = be::<4>(patch.bytes, 36) + rng.below(9);
            patch.put("l1_size", 36, entries, 4);
        }
        _ => patch.put(
            "incompatible_features",
            72 + 7,
            u64::from(patch.bytes[79]) ^ (1 + rng.below(3)),
            1,
        ),
    }
}

fn snapshot(patch: &mut Patch<'_>, at: u64, cluster: u64, rng: &mut Rng) {
    let len = patch.bytes.len() as u64;
    match rng.below(6) {
        0 | 1 => {
            let value = other_entry(be::<8>(patch.bytes, at), len, cluster, rng);
            patch.put("snapshot l1_table_offset", at, value, 8);
        }
        2 => {
            let size = rng.pick(&[0, 2, 3, 9, 1 << 22, (1 << 22) + 1, u64::MAX]);
            patch.put("snapshot l1_size", at + 8, size & 0xffff_ffff, 4);
        }
        3 => {
            let size = rng.pick(&[0, 8, 15, 16, 17, 32, 1024, 1025, 0xffff_ffff]);
            patch.put("snapshot extra_data_size", at + 36, size, 4);
        }
        4 => patch.put("snapshot id", at + 40 + 16, rng.next(), 8),
        _ => {
            let size = rng.below(70_000) & 0xffff;
            patch.put("snapshot name_size", at + 14, size, 2);
        }
    }
}

fn bitmap(patch: &mut Patch<'_>, at: u64, cluster: u64, rng: &mut Rng) {
    let len = patch.bytes.len() as u64;
    match rng.below(4) {
        0 => patch.put("bitmap_table_size", at + 8, rng.below(5), 4),
        _ => {
            let value = other_entry(be::<8>(patch.bytes, at), len, cluster, rng) & !(cluster - 1);
            patch.put("bitmap_table_offset", at, value, 8);
        }
    }
}

fn file_length(patch: &mut Patch<'_>, cluster: u64, rng: &mut Rng) {
    let old = patch.bytes.len() as u64;
    let len = match rng.below(4) {
        0 => old - rng.below(cluster * 2).min(old / 2),
        1 => old + rng.below(cluster * 3),
        2 => old / 2 + rng.below(old / 2),
        _ => old.saturating_sub(cluster).max(1024),
    };
    patch.bytes.resize(len as usize, 0);
    let _ = write!(patch.what, "length {old:#x} -> {len:#x}; ");
}

fn one(patch: &mut Patch<'_>, places: &Places, rng: &mut Rng) {
    let (len, cluster) = (patch.bytes.len() as u64, places.cluster);
    let entry = |patch: &mut Patch<'_>, name: &str, at: u64, rng: &mut Rng| {
        if at + 8 <= patch.bytes.len() as u64 {
            let value = other_entry(be::<8>(patch.bytes, at), len, cluster, rng);
            patch.put(name, at, value, 8);
        }
    };
    match rng.below(20) {
        0..=2 if !places.l1.is_empty() => entry(patch, "L1 entry", rng.pick(&places.l1), rng),
        3..=9 if !places.l2.is_empty() => {
            let at = rng.pick(&places.l2);
            entry(patch, "L2 entry", at, rng);
            if places.l2_step == 16 && rng.below(2) == 0 {
                let shift = rng.below(64);
                let map = rng.pick(&[0, 1, 0xffff_ffff, 3 << 31, u64::MAX, 1 << 40, 0xff << 32])
                    | (1 << shift);
                patch.put("subcluster bitmap", at + 8, map, 8);
            }
        }
        10 | 11 => {
            let index = rng.below(places.refcount_table_used + 3);
            entry(
                patch,
                "refcount table entry",
                places.refcount_table + 8 * index,
                rng,
            );
        }
        12..=14 if !places.blocks.is_empty() => {
            let at = rng.pick(&places.blocks) + rng.below(cluster.min(256));
            patch.put("refcount", at, rng.next() & rng.pick(&[0, 1, 3, 0xff]), 1);
        }
        15 if !places.snapshots.is_empty() => {
            snapshot(patch, rng.pick(&places.snapshots), cluster, rng)
        }
        16 if !places.bitmaps.is_empty() => bitmap(patch, rng.pick(&places.bitmaps), cluster, rng),
        17 if !places.bitmap_entries.is_empty() => entry(
            patch,
            "bitmap table entry",
            rng.pick(&places.bitmap_entries),
            rng,
        ),
        18 if rng.below(2) == 0 => file_length(patch, cluster, rng),
        16 | 17 if places.crypto.is_some() => {
            let length = rng.pick(&[1 << 40, 0x20_0000, 0x10_0000, 1 << 63, (1 << 63) - 1]);
            patch.put(
                "LUKS header length",
                places.crypto.unwrap_or(0) + 8,
                length,
                8,
            );
        }
        _ => header_field(patch, cluster, rng),
    }
}

/// A damaged copy, and what was done to it.
pub fn damage(base: &Base, rng: &mut Rng) -> (Vec<u8>, String) {
    let mut bytes = base.bytes.clone();
    let places = Places::of(&bytes);
    let mut what = String::new();
    let times = rng.pick(&[1, 1, 2, 3, 6]);
    for _ in 0..times {
        one(
            &mut Patch {
                bytes: &mut bytes,
                what: &mut what,
            },
            &places,
            rng,
        );
    }
    (bytes, what)
}
