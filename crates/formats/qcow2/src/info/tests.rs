use super::*;
use crate::test_image::Builder;
use zerocopy::big_endian::{U32, U64};

fn read(builder: &Builder) -> ImageInfo {
    ImageInfo::read(&builder.storage()).unwrap()
}

#[test]
fn version_2_shows_no_version_3_keys() {
    let mut builder = Builder::v3();
    builder.raw.version = U32::new(2);
    let info = read(&builder);
    assert_eq!(info.compat(), "0.10");
    assert_eq!(
        (info.lazy_refcounts(), info.corrupt(), info.extended_l2()),
        (None, None, None)
    );
}

#[test]
fn size_is_shown_in_whole_sectors() {
    let mut builder = Builder::v3();
    builder.raw.size = U64::new(1025);
    assert_eq!(read(&builder).virtual_size(), 1024);
}

#[test]
fn flags_are_shown() {
    let mut builder = Builder::v3();
    builder.raw.incompatible_features = U64::new(7);
    builder.raw.compatible_features = U64::new(1);
    builder.raw.autoclear_features = U64::new(2);
    builder.raw.nb_snapshots = U32::new(1);
    let info = read(&builder);
    assert!(info.dirty_flag() && !info.encrypted());
    assert_eq!(
        (info.corrupt(), info.lazy_refcounts()),
        (Some(true), Some(true))
    );
    assert_eq!((info.data_file_raw(), info.data_file()), (Some(true), None));
    assert!(!info.has_snapshots());
}

#[test]
fn backing_format_needs_a_backing_file() {
    let mut builder = Builder::v3();
    builder.extension(crate::extensions::EXT_BACKING_FORMAT, b"raw");
    assert_eq!(read(&builder).backing_format(), None);
    builder.backing(512, b"base");
    assert_eq!(read(&builder).backing_format(), Some(&b"raw"[..]));
    assert_eq!(read(&builder).backing_file(), Some(&b"base"[..]));
}

#[test]
fn bitmaps_without_the_autoclear_bit_give_a_warning() {
    let mut builder = Builder::v3();
    builder.bitmaps(&[b"one"]);
    let store = builder.storage();
    assert_eq!(read(&builder).bitmaps(&store).unwrap().count(), 1);
    builder.raw.autoclear_features = U64::ZERO;
    let info = read(&builder);
    assert_eq!(info.warning(), Some(BitmapsIgnored::AutoclearBitClear));
    assert!(info.bitmaps(&store).is_none());
}

#[test]
fn data_file_name_is_shown_without_its_feature_bit() {
    let mut builder = Builder::v3();
    builder.extension(crate::extensions::EXT_DATA_FILE, b"data");
    let info = read(&builder);
    assert_eq!(
        (info.data_file(), info.data_file_raw()),
        (Some(&b"data"[..]), None)
    );
}
