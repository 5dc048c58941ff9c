//! Images in memory: opened for use, and checked.

use instar_codec::Decoder;
use instar_layers::{Chain, Layer, View};
use instar_plan_check::{Cancelled, MessageKind, Reporter};
use instar_plan_live::{Backing, LiveImage, Place};
use instar_plan_write::WriteImage;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{CrashStorage, MemStorage, StorageMut};
use instar_tests::judge::load;
use std::path::Path;

/// The image file's number.
pub const IMAGE: u16 = 0;
/// The data file's number.
pub const DATA: u16 = 1;
/// The backing file's number.
pub const BASE: u16 = 2;

/// Prints what is found.
struct Lines(Vec<String>);

impl Reporter for Lines {
    fn message(&mut self, _kind: MessageKind, line: &[u8]) {
        self.0.push(String::from_utf8_lossy(line).into_owned());
    }

    fn progress(&mut self, _done: u64, _total: u64) -> Result<(), Cancelled> {
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// Our check: whether there is nothing worse than leaks, and what it says if there is.
pub fn sound(store: &MemStorage) -> Result<(), String> {
    let header = Header::read(store, OpenMode::Check).map_err(|e| e.to_string())?;
    let mut lines = Lines(Vec::new());
    let summary = instar_plan_check::check(store, &header, &mut lines);
    let summary = summary.map_err(|e| e.to_string())?;
    if summary.corruptions == 0 {
        Ok(())
    } else {
        Err(lines.0.join("\n"))
    }
}

/// A store that can be made of a file.
pub trait Store: StorageMut {
    /// A store with the content of `image`.
    fn of(image: MemStorage) -> Self;
}

impl Store for MemStorage {
    fn of(image: MemStorage) -> Self {
        image
    }
}

impl Store for CrashStorage {
    fn of(image: MemStorage) -> Self {
        Self::new(image)
    }
}

pub type Live<'a, S> = LiveImage<'a, S, Decoder>;

/// What lies below the image, as it says.
fn below<S: Store>(dir: &Path, header: &Header) -> Option<Backing<S, Decoder>> {
    let name = header.backing_file.as_ref()?;
    let name = std::str::from_utf8(name).unwrap();
    let store = S::of(load(&dir.join(name)));
    let layer = if name.ends_with(".raw") {
        Layer::raw(store)
    } else {
        let header = Header::read(&store, OpenMode::Change).unwrap();
        Layer::qcow2(store, None, header, View::Active)
    };
    Some(Backing::new(
        Chain::new(vec![layer]),
        Decoder::new(),
        |_| BASE,
    ))
}

/// Opens for use.
pub fn open<'a, S: Store>(dir: &Path, image: &'a S, data: Option<&'a S>) -> Live<'a, S> {
    let header = Header::read(image, OpenMode::Change).unwrap();
    let files = Place {
        image: IMAGE,
        data: if data.is_some() { DATA } else { IMAGE },
    };
    let opened = LiveImage::written(below(dir, &header), files, |below| {
        WriteImage::open(image, data, &header, below, Box::new(Decoder::new()))
    });
    opened.unwrap()
}
