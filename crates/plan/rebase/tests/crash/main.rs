//! Power cuts and failing disks: whatever of a rebase reached the disk, the image shows what it did before, and another
//! run ends what this one began.
//!
//! `REBASE_SEED` repeats a run.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

mod images;
mod joint;

use images::{Case, Files, check};
use instar_codec::Decoder;
use instar_layers::{Chain, Layer, View};
use instar_plan_rebase::{
    Backing, Cancelled, Chains, Image, Io, Monitor, RebaseError, copy_differences, set_backing,
};
use instar_qcow2::{Header, OpenMode};
use instar_storage::overlap::MemOverlap;
use instar_storage::{
    Calls, CrashStorage, Extent, Fault, FaultyStorage, Reserve, Storage, StorageError, StorageMut,
    crash,
};

/// A store with a number.
#[derive(Clone, Copy)]
struct Store<'a>(u16, &'a dyn StorageMut);

impl Storage for Store<'_> {
    fn len_bytes(&self) -> u64 {
        self.1.len_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.1.read_at(offset, buf)
    }
    fn extent_at(&self, offset: u64) -> Result<Option<Extent>, StorageError> {
        self.1.extent_at(offset)
    }
}

impl StorageMut for Store<'_> {
    /// A part of a sector is written as the whole sector, which does not tear: the failing store halves what is less.
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        let (start, skip) = (offset & !511, (offset & 511) as usize);
        if skip + buf.len() >= 512 || start + 512 > self.1.len_bytes() {
            return self.1.write_at(offset, buf);
        }
        let mut sector = [0; 512];
        self.1.read_at(start, &mut sector)?;
        sector[skip..skip + buf.len()].copy_from_slice(buf);
        self.1.write_at(start, &sector)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.1.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.1.discard(offset, len)
    }
    fn allocate(&self, offset: u64, len: u64, how: Reserve) -> Result<(), StorageError> {
        self.1.allocate(offset, len, how)
    }
    fn set_len(&self, len: u64) -> Result<(), StorageError> {
        self.1.set_len(len)
    }
    fn flush(&self) -> Result<(), StorageError> {
        self.1.flush()
    }
}

struct Quiet;

impl Monitor for Quiet {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total);
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

fn layer<'a>(store: Store<'a>, data: Option<Store<'a>>) -> Layer<Store<'a>> {
    match Header::read(&store, OpenMode::Change) {
        Ok(header) => Layer::qcow2(store, data, header, View::Active),
        Err(_) => Layer::raw(store),
    }
}

/// An image and its external data file.
#[derive(Clone, Copy)]
struct Pair<'a> {
    image: &'a dyn StorageMut,
    data: Option<&'a dyn StorageMut>,
}

impl<'a> Pair<'a> {
    fn of(image: &'a dyn StorageMut) -> Self {
        Self { image, data: None }
    }

    fn stores(self) -> (Store<'a>, Option<Store<'a>>) {
        (Store(0, self.image), self.data.map(|data| Store(3, data)))
    }
}

/// The chain of one image that the image's header names, if it names one.
fn named<'a>(files: &'a Files, name: Option<&[u8]>) -> Option<Chain<Store<'a>>> {
    let (number, store) = match name? {
        b"old" => (1, &files.old),
        b"new" => (2, &files.new),
        other => panic!("{}", String::from_utf8_lossy(other)),
    };
    Some(Chain::new(vec![layer(Store(number, store), None)]))
}

/// Rebases an image from what it stands on to what the case says.
fn rebase(pair: Pair<'_>, files: &Files, case: &Case, seed: u64) -> Result<(), RebaseError> {
    let (store, data) = pair.stores();
    let header = Header::read(&store, OpenMode::Change).unwrap();
    let old = named(files, header.backing_file.as_deref());
    let name = case.new.map(|_| b"new".as_slice());
    let new = named(files, name);
    let now_on_new = header.backing_file.as_deref() == name;
    let chains = Chains {
        old: old.as_ref(),
        new: new.as_ref(),
        shared: &|_, _| now_on_new,
    };
    let lower = [Store(1, &files.old), Store(2, &files.new)];
    let all = [
        Some(&store),
        data.as_ref(),
        Some(&lower[0]),
        Some(&lower[1]),
    ];
    let all = all.into_iter().flatten().map(|store| (store.0, store));
    let overlap = MemOverlap::new(all, 16, seed);
    let io = Io {
        overlap: &overlap,
        number: |store: &Store<'_>| store.0,
    };
    let target = Image {
        cipher: None,
        storage: &store,
        data: data.as_ref(),
        header: &header,
    };
    let compared = copy_differences(target, chains, case.compress, &io, &mut Quiet)?;
    assert!(compared <= header.whole_sectors_size());
    let header = Header::read(&store, OpenMode::Change).unwrap();
    let backing = Backing {
        name: name.unwrap_or_default(),
        format: case.new.map(|format| format.as_bytes()),
    };
    set_backing(&store, &header, &backing).map(drop)
}

/// What is read through an image.
fn content(pair: Pair<'_>, files: &Files) -> Vec<u8> {
    let (store, data) = pair.stores();
    let header = Header::read(&store, OpenMode::Change).unwrap_or_else(|e| panic!("{e}"));
    let mut layers = vec![layer(store, data)];
    if let Some(name) = header.backing_file.as_deref() {
        let store = if name == b"old" {
            &files.old
        } else {
            &files.new
        };
        layers.push(layer(Store(1, store), None));
    }
    let chain = Chain::new(layers);
    let mut bytes = vec![0; chain.len_bytes() as usize];
    chain.read_at(0, &mut bytes, &mut Decoder::new()).unwrap();
    bytes
}

fn seed() -> u64 {
    let text = std::env::var("REBASE_SEED").ok();
    let seed = text.map_or(20_261_121, |text| text.parse().expect("a number"));
    println!("REBASE_SEED={seed}");
    seed
}

/// States of a case that `qemu-img check` looks at, and that a second run starts from.
const JUDGED: usize = 12;

#[test]
fn every_power_cut_leaves_what_is_read_as_it_was_and_a_rerun_completes() {
    let seed = seed();
    let mut all = 0;
    for case in images::CASES {
        let files = Files::make(case);
        let before = content(Pair::of(&files.image), &files);
        let store = CrashStorage::new(files.image.clone());
        rebase(Pair::of(&store), &files, case, seed).unwrap_or_else(|e| panic!("{case:?}: {e}"));
        let after = store.image();
        assert!(content(Pair::of(&after), &files) == before, "{case:?}");
        assert_eq!(check(&after, &files.data), 0, "{case:?}");
        let recording = store.finish();
        let states: Vec<_> = crash::states(&recording, seed, 20).collect();
        let step = states.len().div_ceil(JUDGED);
        for (index, (label, state)) in states.iter().enumerate() {
            let what = format!("REBASE_SEED={seed} {case:?}: {label}");
            assert!(content(Pair::of(state), &files) == before, "{what}");
            if index % step == 0 {
                let code = check(state, &files.data);
                assert!(matches!(code, 0 | 3), "{what}: check {code}");
                let again = state.clone();
                rebase(Pair::of(&again), &files, case, seed)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                assert!(content(Pair::of(&again), &files) == before, "{what}: again");
                let header = Header::read(&again, OpenMode::Change).unwrap();
                let name = case.new.map(|_| b"new".to_vec());
                assert_eq!(header.backing_file, name, "{what}");
            }
        }
        println!("{case:?}: {} states", states.len());
        all += states.len();
    }
    assert!(all > 1000, "{all} states only");
}

#[test]
fn every_failing_call_leaves_what_is_read_as_it_was() {
    let seed = seed();
    for case in images::CASES {
        let files = Files::make(case);
        let before = content(Pair::of(&files.image), &files);
        for (nth, errno) in (0..).zip([28, 5, 122].into_iter().cycle()) {
            let fault = Fault {
                calls: Calls::Changes,
                nth,
                errno,
                lasting: nth % 2 == 0,
            };
            let storage = FaultyStorage::with(files.image.clone(), fault);
            let result = rebase(Pair::of(&storage), &files, case, seed);
            let struck = storage.struck();
            let after = storage.into_inner();
            let what = format!("{case:?}, change {nth} fails: {result:?}");
            assert!(content(Pair::of(&after), &files) == before, "{what}");
            if nth % 7 == 0 {
                let code = check(&after, &files.data);
                assert!(matches!(code, 0 | 3), "{what}: check {code}");
            }
            if !struck {
                assert!(result.is_ok(), "{what}");
                break;
            }
        }
    }
}
