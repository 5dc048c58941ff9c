//! Damaged images: every resize ends, with a sentence or a result, and a refusal changes nothing.

use crate::kinds::{Below, KINDS};
use crate::ours::{Opened, Steps, load, open_chain, resize, to};
use crate::{Rng, qemu, run_of};
use instar_plan_resize::Preallocation;
use instar_qcow2::{Header, OpenMode};
use instar_storage::MemStorage;

const NAME: &str = "a.qcow2";

/// Places worth a damage: header, tables, and what they name.
fn places(bytes: &[u8]) -> Vec<usize> {
    let word = |at: usize| {
        let raw = bytes.get(at..at + 8)?;
        Some((u64::from_be_bytes(raw.try_into().ok()?) & 0x00ff_ffff_ffff_fe00) as usize)
    };
    let mut all: Vec<usize> = (0..14).map(|n| n * 8).collect();
    for table in [word(40), word(48)].into_iter().flatten() {
        for at in (table..table + 64).step_by(8) {
            all.push(at);
            let Some(below) = word(at).filter(|b| *b != 0) else {
                continue;
            };
            all.extend((below..below + 512).step_by(8));
        }
    }
    all.retain(|at| at + 8 <= bytes.len());
    all
}

#[test]
fn damaged_images_come_to_an_end() {
    let (seed, cases) = run_of("damage", 600);
    let dir = tempfile::tempdir().unwrap();
    let kinds: Vec<_> = KINDS.iter().filter(|kind| kind.cluster <= 65536).collect();
    let (mut opened, mut refused) = (0, 0);
    let mut base: Option<(usize, Vec<u8>)> = None;
    for case in 0..cases {
        let mut rng = Rng::of(seed, case);
        let number = (case * kinds.len() as u64 / cases) as usize;
        let kind = kinds[number];
        if base.as_ref().is_none_or(|(made, _)| *made != number) {
            kind.make(dir.path(), 700 << 10);
            qemu::io(dir.path(), NAME, "write -P 1 10k 300k");
            qemu::io(dir.path(), NAME, "write -P 1 600k 100k");
            if kind.snapshots {
                qemu::img_ok(dir.path(), &["snapshot", "-c", "one", NAME]);
            }
            if kind.bitmaps {
                qemu::img_ok(dir.path(), &["bitmap", "--add", "-g", "512", NAME, "fine"]);
            }
            base = Some((number, std::fs::read(dir.path().join(NAME)).unwrap()));
        }
        let mut bytes = base.as_ref().unwrap().1.clone();
        let all = places(&bytes);
        for _ in 0..1 + rng.below(3) {
            let at = rng.pick(&all);
            let old = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
            let new = match rng.below(6) {
                0 => old ^ (1 << rng.below(64)),
                1 => rng.number(),
                2 => 0,
                3 => u64::MAX,
                4 => old.wrapping_add(512 << rng.below(12)),
                _ => (rng.below(40) << 16) | 1 << 63,
            };
            bytes[at..at + 8].copy_from_slice(&new.to_be_bytes());
        }
        let store = MemStorage::new(bytes);
        let Ok(header) = Header::read(&store, OpenMode::Change) else {
            continue;
        };
        opened += 1;
        let sizes = [300 << 10, 512, 701 << 10, 2 << 20, 64 << 30];
        let mut how = rng.pick(&[
            Preallocation::Off,
            Preallocation::Metadata,
            Preallocation::Falloc,
        ]);
        let size = rng.pick(&sizes);
        let size = if kind.below == Below::Nothing && !kind.data_file {
            size
        } else {
            size.min(2 << 20)
        };
        if size > 4 << 20 || size < header.virtual_size || header.virtual_size > 8 << 20 {
            how = Preallocation::Off;
        }
        let data = kind.data_file.then(|| load(&dir.path().join("a.data")));
        let before = store.clone();
        let mut chain = vec![Opened {
            store,
            data,
            header: Some(header),
        }];
        if kind.below != Below::Nothing {
            std::fs::write(dir.path().join("c.qcow2"), &base.as_ref().unwrap().1).unwrap();
            chain.extend(open_chain(dir.path(), "c.qcow2").into_iter().skip(1));
        }
        if resize(&chain, &to(size, how), &mut Steps(1_000_000)).is_err() {
            refused += 1;
            let same = Header::read(&chain[0].store, OpenMode::Change).ok() == chain[0].header;
            assert!(
                same,
                "RESIZE_SEED={seed} case {case} ({}): a refusal changed the header",
                kind.name
            );
        }
        drop(before);
    }
    println!("RESIZE_SEED={seed}: {cases} cases, {opened} opened, {refused} refused");
    assert!(opened * 2 > cases && refused * 20 > cases);
}
