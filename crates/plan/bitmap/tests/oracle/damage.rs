//! Images with damaged metadata: the planner comes to an end, and makes nothing worse.

use crate::image::{self, add, create, set_flags};
use crate::judge::{Act, Line, Quiet, actions};
use crate::{Rng, decode, seed_and_cases};
use instar_plan_bitmap::{Request, SourceImage, change};
use instar_plan_check::{Cancelled, MessageKind, Reporter, check};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, Storage, StorageMut};
use std::fs::File;

struct Ignore;

impl Reporter for Ignore {
    fn message(&mut self, _: MessageKind, _: &[u8]) {}
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn corruptions(store: &MemStorage) -> Option<u64> {
    let header = Header::read(store, OpenMode::CheckWithKey).ok()?;
    let summary = check(store, &header, &mut Ignore).ok()?;
    Some(summary.corruptions + summary.check_errors)
}

/// Metadata of an image: header, tables, directory.
fn places(store: &MemStorage) -> Vec<(u64, u64)> {
    let bytes = store.to_vec();
    let cluster = 1_u64 << decode::be32(&bytes, 20);
    let mut places = vec![(16, 100), (112, 400)];
    for at in [40, 48, 64] {
        places.push((decode::be64(&bytes, at), 64));
    }
    let table = decode::be64(&bytes, 48) as usize;
    places.push((decode::be64(&bytes, table), cluster));
    let extension = decode::extension(&bytes).unwrap();
    places.push((decode::be64(&bytes, extension + 16), 96));
    places.extend(
        decode::entries(&bytes)
            .iter()
            .map(|e| (e.table, u64::from(e.table_size) * 8)),
    );
    places
}

fn damaged(start: &MemStorage, rng: &mut Rng) -> MemStorage {
    let (store, places) = (start.clone(), places(start));
    let cluster = 1 << decode::be32(&start.to_vec(), 20);
    for _ in 0..1 + rng.below(3) {
        let (at, len) = rng.pick(&places);
        let at = at + rng.below(len);
        if rng.below(2) == 0 {
            let mut byte = [0];
            store.read_at(at, &mut byte).unwrap();
            store.write_at(at, &[byte[0] ^ 1 << rng.below(8)]).unwrap();
        } else {
            // An offset of some cluster of the file, or past it.
            let value = rng.below(start.len_bytes() / cluster + 8) * cluster;
            store.write_at(at & !7, &value.to_be_bytes()).unwrap();
        }
    }
    store
}

#[test]
fn damaged_images_come_to_an_end() {
    let (seed, cases) = seed_and_cases("damages", 3000);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("image");
    let mut starts = Vec::new();
    for options in ["cluster_size=512", "cluster_size=4k"] {
        create(&path, "1M", options);
        for (name, granularity) in [("a", "4k"), ("b", "512"), ("c", "64k")] {
            add(&path, name, granularity);
            let text = path.to_str().unwrap();
            image::run("qemu-io", &["-f", "qcow2", "-c", "write 100k 3k", text]);
        }
        image::run("qemu-img", &["snapshot", "-c", "s", path.to_str().unwrap()]);
        starts.push(MemStorage::load(&File::open(&path).unwrap()).unwrap());
        set_flags(&path, "b", 1, 0);
        starts.push(MemStorage::load(&File::open(&path).unwrap()).unwrap());
    }
    let lines = [
        Line::new("b", &[Act::Remove]),
        Line::new("a", &[Act::Clear]),
        Line::new("a", &[Act::Merge("c".to_owned())]),
        Line::new("c", &[Act::Merge("a".to_owned()), Act::Disable]),
        Line::new("new", &[Act::Add]),
        Line::new("b", &[Act::Remove, Act::Add, Act::Merge("a".to_owned())]),
    ];
    let (mut opened, mut done, mut worse) = (0, 0, Vec::new());
    for case in 0..cases {
        let mut rng = Rng::of_case(seed, case);
        let store = damaged(&rng.pick(&starts), &mut rng);
        let line = rng.pick(&lines);
        let Ok(header) = Header::read(&store, OpenMode::Change) else {
            continue;
        };
        opened += 1;
        let before = corruptions(&store);
        let actions = actions(&line);
        let request = Request {
            name: line.name.as_bytes(),
            actions: &actions,
        };
        let source: SourceImage<'_, MemStorage> = SourceImage::Same;
        let result = change(&store, &header, &source, &request, &mut Quiet);
        done += u32::from(result.is_ok());
        let after = corruptions(&store);
        if before == Some(0) && after != Some(0) {
            worse.push(format!(
                "case {case}: {line:?}: {before:?} to {after:?}: {result:?}"
            ));
        }
    }
    println!("BITMAP_SEED={seed}: {opened} opened, {done} changed");
    assert!(worse.is_empty(), "BITMAP_SEED={seed}\n{}", worse.join("\n"));
    assert!(opened * 3 > cases && u64::from(done) * 3 > opened);
}
