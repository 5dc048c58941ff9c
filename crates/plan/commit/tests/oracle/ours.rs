//! A commit by this crate, as the operation does it.

use instar_codec::Decoder;
use instar_layers::{Chain, FileOf, Layer, View};
use instar_plan_commit::{
    Base, Cancelled, CommitError, Image, Job, Monitor, Numbers, copy, empty, grow,
};
use instar_plan_write::{Below, NothingBelow, WriteImage};
use instar_qcow2::{Header, OpenMode};
use instar_storage::overlap::MemOverlap;
use instar_storage::{MemStorage, Storage};
use instar_tests::joint::Recorded;

/// An image of a chain: the numbers of its files.
#[derive(Clone, Debug)]
pub struct Member {
    pub file: usize,
    /// Its external data file.
    pub data: Option<usize>,
    /// Else it is raw.
    pub qcow2: bool,
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

/// Images as a chain.
fn chain<'a, S: Storage>(files: &'a [S], members: &[Member]) -> Chain<&'a S> {
    let layer = |member: &Member| {
        let store = &files[member.file];
        if !member.qcow2 {
            return Layer::raw(store);
        }
        let header = Header::read(store, OpenMode::Change).unwrap();
        let data = member.data.map(|number| &files[number]);
        Layer::qcow2(store, data, header, View::Active)
    };
    Chain::new(members.iter().map(layer).collect())
}

/// Commits the images before `base` to it; `members` are the chain, the top first.
pub fn commit(
    files: &[Recorded<'_>],
    members: &[Member],
    base: usize,
    empties: bool,
    seed: u64,
) -> Result<(), CommitError> {
    let (above, below) = (chain(files, &members[..base]), &members[base + 1..]);
    let below = chain(files, below);
    let member = &members[base];
    let store = &files[member.file];
    let read = || {
        let qcow2 = member.qcow2;
        qcow2.then(|| Header::read(store, OpenMode::Change).unwrap())
    };
    let mut image = Image {
        disk: store,
        data: member.data.map(|number| &files[number]),
        header: read(),
    };
    grow(&image, None, &below, above.len_bytes(), &mut Quiet)?;
    image.header = read();
    let io = MemOverlap::new(files.iter().map(|f| (f.number as u16, f)), 5, seed);
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
            let (disk, data) = (&image.disk, image.data.as_ref());
            let mut open = WriteImage::open(disk, data, header, below, codec)?;
            open.punch();
            Base::Qcow2(Box::new(open))
        }
    };
    let job = Job {
        io: &io,
        above: &above,
        number: |store: &&Recorded<'_>| store.number as u16,
        codec: &mut Decoder::new(),
        base: Numbers {
            image: store.number as u16,
            data: member.data.unwrap_or_default() as u16,
        },
    };
    copy(job, &mut target, &mut Quiet)?;
    drop(target);
    let top = &above.layers()[0];
    let data = members[0].data.map(|_| top.store(FileOf::DataFile));
    match top.header().filter(|_| empties) {
        Some(header) => empty(top.store(FileOf::Image), data, header, &mut Quiet),
        None => Ok(()),
    }
}

/// What a guest reads of a chain, by this project's own reader.
pub fn content(files: &[MemStorage], members: &[Member]) -> Vec<u8> {
    let chain = chain(files, members);
    let mut bytes = vec![0; chain.len_bytes() as usize];
    chain.read_at(0, &mut bytes, &mut Decoder::new()).unwrap();
    bytes
}
