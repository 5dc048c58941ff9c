//! What is printed of what an operation says.

use super::*;
use crate::console::tests::{no_files, to_captures};
use crate::sink::tests::Capture;
use instar_shared::map::MapExtent;

fn extent(len: u64, flags: u32, depth: u16, offset: u64) -> MapExtent {
    MapExtent {
        len: len.into(),
        offset: offset.into(),
        flags: flags.into(),
        depth: depth.into(),
        slot: 0.into(),
    }
}

/// What the output prints of `extents` of a disk looked at from `start`, and its exit code.
fn printed(format: Format, start: u64, extents: &[MapExtent]) -> (String, String, u8) {
    let (out, err) = (Capture::default(), Capture::default());
    let mut output = MapOutput {
        console: to_captures([&out, &err], format == Format::Json, false),
        ..MapOutput::new(format, start)
    };
    output
        .record(RecordKind::MapExtents, extents.as_bytes(), &no_files())
        .unwrap();
    let mut result = MapResult::zeroed();
    result.outcome.set(Outcome::Done.raw());
    let mut bytes = [0; RESULT_BYTES];
    bytes[..size_of::<MapResult>()].copy_from_slice(result.as_bytes());
    let code = Box::new(output).finish(&bytes, &no_files());
    (out.text(), err.text(), code)
}

const PLACED_DATA: u32 = EXTENT_DATA | EXTENT_PRESENT | EXTENT_PLACED;

#[test]
fn json_has_all_extents_in_a_row() {
    let extents = [
        extent(512, EXTENT_ZERO, 3, 0),
        extent(1 << 40, PLACED_DATA, 0, u64::MAX >> 1),
        extent(1, EXTENT_DATA | EXTENT_PRESENT | EXTENT_COMPRESSED, 700, 0),
    ];
    let (out, err, code) = printed(Format::Json, 100, &extents);
    let want = "[{ \"start\": 100, \"length\": 512, \"depth\": 3, \"present\": false, \"zero\": true, \
                \"data\": false, \"compressed\": false},\n\
                { \"start\": 612, \"length\": 1099511627776, \"depth\": 0, \"present\": true, \"zero\": false, \
                \"data\": true, \"compressed\": false, \"offset\": 9223372036854775807},\n\
                { \"start\": 1099511628388, \"length\": 1, \"depth\": 700, \"present\": true, \"zero\": false, \
                \"data\": true, \"compressed\": true}]\n";
    assert_eq!((out.as_str(), err.as_str(), code), (want, "", 0));
}

#[test]
fn json_of_nothing_is_one_empty_extent() {
    let (out, _, code) = printed(Format::Json, 7, &[]);
    let want = "[{ \"start\": 7, \"length\": 0, \"depth\": 0, \"present\": false, \"zero\": false, \
                \"data\": false, \"compressed\": false}]\n";
    assert_eq!((out.as_str(), code), (want, 0));
}

#[test]
fn text_ends_where_data_has_no_place() {
    let zero = extent(512, EXTENT_ZERO, 0, 0);
    let compressed = extent(512, EXTENT_DATA | EXTENT_PRESENT | EXTENT_COMPRESSED, 0, 0);
    let (out, err, code) = printed(Format::Human, 0, &[zero, compressed, zero]);
    assert_eq!(out.as_bytes(), print::HEADING);
    let sentence = "instar: File contains external, encrypted or compressed clusters.\n";
    assert_eq!((err.as_str(), code), (sentence, 1));
}

#[test]
fn numbers_in_columns_are_as_c_prints_them() {
    let mut line = Line::default();
    for number in [0, 0xfade, u64::MAX] {
        line.hexadecimal(number);
    }
    let want = b"0               0xfade          0xffffffffffffffff";
    assert_eq!(line.bytes(), want);
}

#[test]
fn extents_that_cannot_be_are_refused() {
    let mut output = MapOutput::new(Format::Human, 0);
    for raw in [
        extent(0, EXTENT_ZERO, 0, 0),
        extent(1 << 63, EXTENT_ZERO, 0, 0),
        extent(512, 1 << 5, 0, 0),
        extent(512, EXTENT_ZERO, 0, 1),
        extent(512, PLACED_DATA, 0, 1 << 63),
        // No file is in its slot.
        extent(512, PLACED_DATA, 0, 512),
    ] {
        let refused = output.record(RecordKind::MapExtents, raw.as_bytes(), &no_files());
        assert!(refused.is_err(), "{raw:?}");
    }
    let short = output.record(RecordKind::MapExtents, &[0; 23], &no_files());
    assert!(short.is_err());
}

#[test]
fn packed_extents_come_back() {
    let mut packed = Packed::default();
    let mut start = 99;
    let mut all = Vec::new();
    for (index, len) in [1, 127, 128, 1 << 21, 1 << 62].into_iter().enumerate() {
        let placed = index % 2 == 0;
        all.push(Extent {
            start,
            len,
            depth: u16::try_from(index * 200).unwrap(),
            flags: if placed { PLACED_DATA } else { EXTENT_ZERO },
            offset: placed.then_some(len - 1),
            slot: 0,
        });
        start += len;
    }
    for extent in &all {
        packed.push(extent);
    }
    assert_eq!(packed.iter(99).collect::<Vec<_>>(), all);
}

#[test]
fn parts_past_the_largest_number_are_empty() {
    assert_eq!(end(5, None), u64::MAX);
    assert_eq!(end(5, Some(7)), 12);
    assert_eq!(end(0, Some(MAX_NUMBER)), MAX_NUMBER);
    assert_eq!(end(1, Some(MAX_NUMBER)), 0);
}
