//! A damaged image in use: every request is done or refused, and what is given out lies in no metadata that the header
//! names.
#![no_main]

use instar_codec::Decoder;
use instar_plan_live::{Extents, ExtentKind, LiveImage, Place};
use instar_plan_write::WriteImage;
use instar_qcow2::{Header, OpenMode};
use instar_storage::{MemStorage, StorageMut};
use libfuzzer_sys::fuzz_target;

/// Longest input: an image, and what is done to it.
const MAX_REQUESTS: usize = 32;
/// Largest file that a write may lead to.
const MAX_OFFSET: u64 = 1 << 40;

fuzz_target!(|bytes: &[u8]| {
    let Some((head, rest)) = bytes.split_first_chunk::<2>() else {
        return;
    };
    let wanted = usize::from(u16::from_le_bytes(*head)) % MAX_REQUESTS * 6;
    let (requests, image) = rest.split_at(wanted.min(rest.len()));
    let image = MemStorage::new(image.to_vec());
    let Ok(header) = Header::read(&image, OpenMode::Change) else {
        return;
    };
    let usable = header.virtual_size <= 1 << 34
        && !header.incompatible.corrupt()
        && !header.incompatible.dirty()
        && !header.incompatible.external_data_file();
    if !usable {
        return;
    }
    let files = Place { image: 0, data: 0 };
    let opened = LiveImage::<_, Decoder>::written(None, files, |below| {
        WriteImage::open(&image, None, &header, below, Box::new(Decoder::new()))
    });
    let Ok(mut live) = opened else {
        return;
    };
    let mut found = Extents::default();
    let mut last = 0;
    for request in requests.as_chunks::<6>().0 {
        let [kind, a, b, c, len, _] = *request;
        let start = u64::from(u32::from_le_bytes([a, b, c, 0])) << 9;
        let len = (u64::from(len) + 1) << 9;
        let done = match kind % 8 {
            0 | 1 => live.allocate(start, len, &mut found).map(|ticket| {
                last = ticket;
                write(&image, &found);
            }),
            2 => live.link(last),
            3 => live.abandon(last),
            4 => live.lookup(start, len, &mut found),
            5 => live.write_zeroes(start, len, kind & 8 != 0),
            6 => live.discard(start, len),
            _ => live.flush(),
        };
        if let Err(error) = done {
            assert!(error.errno() != 0 && !error.to_string().is_empty());
        }
    }
    let _ = live.close();
});

fn write(image: &MemStorage, found: &Extents) {
    for extent in &found.list {
        let ExtentKind::Data { offset, .. } = extent.kind else {
            panic!("a place that is none");
        };
        assert!(offset >= 512, "the header is given away");
        if offset < MAX_OFFSET {
            image.write_at(offset, &[0x5a; 512]).expect("memory");
        }
    }
}
