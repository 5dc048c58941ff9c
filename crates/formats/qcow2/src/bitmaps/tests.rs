use super::*;
use crate::header::OpenMode;
use crate::test_image::{BITMAP_TABLE, Builder, DIRECTORY};
use alloc::string::{String, ToString};

/// What opening says after the image's bytes are changed at an offset.
fn open(names: &[&[u8]], at: usize, bytes: &[u8]) -> Result<(), String> {
    let mut builder = Builder::v3();
    builder.bitmaps(names);
    builder.tail.push((at, bytes.to_vec()));
    Header::read(&builder.storage(), OpenMode::Info)
        .map(drop)
        .map_err(|e| e.to_string())
}

fn refused(names: &[&[u8]], at: usize, bytes: &[u8]) -> String {
    open(names, at, bytes).unwrap_err()
}

#[test]
fn directory_is_iterated_in_order() {
    let mut builder = Builder::v3();
    builder.bitmaps(&[b"one", b"a\0b"]);
    let store = builder.storage();
    let header = Header::read(&store, OpenMode::Info).unwrap();
    let all: Result<Vec<_>, _> =
        BitmapDirectory::new(&store, header.extensions.bitmaps.unwrap()).collect();
    let all = all.unwrap();
    assert_eq!((&all[0].name[..], all[0].index), (&b"one"[..], 0));
    assert_eq!((&all[1].name[..], all[1].name_size), (&b"a"[..], 3));
    assert!(all[0].auto() && !all[0].in_use());
    assert_eq!(all[0].granularity_bytes(), 65536);
    assert_eq!(all[0].table_offset, HostOffset(BITMAP_TABLE as u64));
}

#[test]
fn fields_out_of_range_break_the_constraints() {
    let text = "Bitmap 'one' doesn't satisfy the constraints";
    for (at, bytes) in [
        (0, &[0; 8][..]),
        (6, &[2]),
        (8, &[0; 4]),
        (15, &[4]),
        (16, &[2]),
        (17, &[8]),
    ] {
        assert_eq!(refused(&[b"one"], DIRECTORY + at, bytes), text, "byte {at}");
    }
    assert_eq!(open(&[b"one"], DIRECTORY + 17, &[31]), Ok(()));
}

#[test]
fn directory_and_extension_must_agree() {
    assert_eq!(
        refused(&[b"one", b"one"], 0, b""),
        "Bitmap already exists: one"
    );
    // The count is at the extension's data, after the 112-byte header.
    let count = |n: u8| refused(&[b"one", b"two"], 112 + 8 + 3, &[n]);
    assert_eq!(
        count(1),
        "More bitmaps found than specified in header extension"
    );
    assert_eq!(
        count(3),
        "Less bitmaps found than specified in header extension"
    );
    assert_eq!(
        refused(&[b"one"], 112 + 8 + 15, &[24]),
        "Broken bitmap directory"
    );
    assert_eq!(
        refused(&[b"one"], DIRECTORY + 23, &[1]),
        "Bitmap extra data is not supported"
    );
}

#[test]
fn in_use_bitmaps_are_not_loaded() {
    assert!(open(&[b"one", b"one"], DIRECTORY + 15, &[1]).is_ok());
    assert!(open(&[b"one"], DIRECTORY + 11, &[2]).is_err());
    assert!(open(&[b"one"], DIRECTORY + 11, &[2, 0, 0, 0, 1]).is_ok());
}

#[test]
fn table_is_judged() {
    let text = "Could not read bitmap_table table from image for bitmap 'one': Invalid argument";
    assert_eq!(
        refused(&[b"one"], BITMAP_TABLE, &[0, 0, 0, 0, 0, 0, 0, 2]),
        text
    );
    assert_eq!(
        refused(&[b"one"], BITMAP_TABLE, &[0, 0, 0, 0, 0, 1, 0, 1]),
        text
    );
    assert_eq!(
        open(&[b"one"], BITMAP_TABLE, &[0, 0, 0, 0, 0, 0, 0, 1]),
        Ok(())
    );
    assert_eq!(
        refused(&[b"one"], DIRECTORY + 11, &[2]),
        "Could not read bitmap 'one' from image: Invalid argument"
    );
}

#[test]
fn full_directory_of_65535_bitmaps_is_judged_in_bounded_memory() {
    let names: Vec<String> = (0..65_535).map(|i| alloc::format!("b{i}")).collect();
    let names: Vec<&[u8]> = names.iter().map(|name| name.as_bytes()).collect();
    let mut builder = Builder::v3();
    builder.bitmaps(&names);
    let header = Header::read(&builder.storage(), OpenMode::Info).unwrap();
    assert_eq!(header.extensions.bitmaps.unwrap().nb_bitmaps, 65_535);
}
