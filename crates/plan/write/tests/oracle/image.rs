//! Images in memory, opened for writing.

use instar_codec::Decoder;
use instar_layers::{Chain, Layer, View};
use instar_plan_write::{Below, NothingBelow, WriteImage};
use instar_qcow2::{Header, OpenMode};
use instar_storage::StorageMut;
use instar_tests::judge::load;
use std::path::Path;

/// Opens for writing.
pub fn open<'a, S: StorageMut>(dir: &Path, image: &'a S, data: Option<&'a S>) -> WriteImage<'a, S> {
    let header = Header::read(image, OpenMode::Change).unwrap();
    let below: Box<dyn Below> = match header.backing_file {
        Some(ref name) => {
            let store = load(&dir.join(std::str::from_utf8(name).unwrap()));
            let layer = match Header::read(&store, OpenMode::Change) {
                Ok(header) => Layer::qcow2(store, None, header, View::Active),
                Err(_) => Layer::raw(store),
            };
            Box::new((Chain::new(vec![layer]), Decoder::new()))
        }
        None => Box::new(NothingBelow),
    };
    WriteImage::open(image, data, &header, below, Box::new(Decoder::new())).unwrap()
}
