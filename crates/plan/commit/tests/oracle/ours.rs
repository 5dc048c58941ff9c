//! A commit by this crate, as the operation does it.

use instar_codec::Decoder;
use instar_layers::{Chain, FileOf, Layer, View};
use instar_plan_commit::{
    Base, Cancelled, CommitError, Image, Job, Monitor, Numbers, copy, empty, grow,
};
use instar_plan_write::{Below, NothingBelow, WriteImage};
use instar_qcow2::{Header, OpenMode};
use instar_storage::overlap::MemOverlap;
use instar_storage::{MemStorage, Storage, StorageMut};

/// A file of the chain in a place of its own.
pub trait Numbered: StorageMut {
    fn number(&self) -> u16;
}

impl Numbered for crate::record::Recorded<'_> {
    fn number(&self) -> u16 {
        self.number as u16
    }
}

/// Lets everything pass.
struct Quiet;

impl Monitor for Quiet {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), Cancelled> {
        Ok(())
    }
    fn pace(&mut self, _: u64, _: u64) {}
}

impl instar_plan_txn::Monitor for Quiet {
    fn progress(&mut self, _: u64, _: u64) -> Result<(), instar_plan_txn::Cancelled> {
        Ok(())
    }
    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// An image as a layer; `qcow2` or raw.
pub fn layer<S: Storage>(store: S, qcow2: bool) -> Layer<S> {
    if !qcow2 {
        return Layer::raw(store);
    }
    let header = Header::read(&store, OpenMode::Change).unwrap();
    Layer::qcow2(store, None, header, View::Active)
}

/// Commits the images before `base` to it; `files` are the chain, the top first, and whether each is qcow2.
pub fn commit<S: Numbered>(
    files: &[(S, bool)],
    base: usize,
    empties: bool,
    seed: u64,
) -> Result<(), CommitError> {
    let above = Chain::new(files[..base].iter().map(|(f, q)| layer(f, *q)).collect());
    let below = Chain::new(
        files[base + 1..]
            .iter()
            .map(|(f, q)| layer(f, *q))
            .collect(),
    );
    let (store, qcow2) = &files[base];
    let read = || qcow2.then(|| Header::read(store, OpenMode::Change).unwrap());
    let mut image = Image {
        disk: store,
        data: None,
        header: read(),
    };
    grow(&image, None, &below, above.len_bytes(), &mut Quiet)?;
    image.header = read();
    let io = MemOverlap::new(files.iter().map(|(f, _)| (f.number(), f)), 5, seed);
    let has_below = !below.layers().is_empty();
    let mut target = match &image.header {
        None => Base::Raw(&image.disk),
        Some(header) => {
            let below: Box<dyn Below> = if has_below {
                Box::new((below, Decoder::new()))
            } else {
                Box::new(NothingBelow)
            };
            let codec = Box::new(Decoder::new());
            let mut open = WriteImage::open(&image.disk, None, header, below, codec)?;
            open.punch();
            Base::Qcow2(Box::new(open))
        }
    };
    let job = Job {
        io: &io,
        above: &above,
        number: |store: &&S| store.number(),
        codec: &mut Decoder::new(),
        base: Numbers {
            image: store.number(),
            data: 0,
        },
    };
    copy(job, &mut target, &mut Quiet)?;
    drop(target);
    let top = &above.layers()[0];
    match top.header().filter(|_| empties) {
        Some(header) => empty(top.store(FileOf::Image), None, header, &mut Quiet),
        None => Ok(()),
    }
}

/// What a guest reads of a chain, by this project's own reader.
pub fn content(files: &[(&MemStorage, bool)]) -> Vec<u8> {
    let chain = Chain::new(files.iter().map(|(f, q)| layer(*f, *q)).collect());
    let mut bytes = vec![0; chain.len_bytes() as usize];
    chain.read_at(0, &mut bytes, &mut Decoder::new()).unwrap();
    bytes
}
