//! Against the oracle: the same snapshot dates under many values of `TZ`.

use super::*;
use crate::oracle;

/// Moments on both sides of summer time, and the ends of the range.
const MOMENTS: [u32; 9] = [
    0,
    1_709_999_999,
    1_762_063_199,
    1_762_063_200,
    1_775_372_400,
    1_782_864_000,
    i32::MAX as u32,
    1 << 31,
    u32::MAX,
];

#[test]
fn format_every_kind_of_tz_equals_qemu_img() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("dates.qcow2");
    oracle::image_with_snapshots(
        &image,
        &MOMENTS.map(|date_sec| oracle::Snapshot {
            date_sec,
            ..oracle::Snapshot::default()
        }),
    );
    let zones = [
        None,
        Some("UTC"),
        Some(""),
        Some(":"),
        Some("America/New_York"),
        Some(":America/New_York"),
        Some("Asia/Kolkata"),
        Some("Australia/Lord_Howe"),
        Some("/usr/share/zoneinfo/Asia/Tokyo"),
        Some("../zoneinfo/Asia/Tokyo"),
        Some("/nonexistent"),
        Some("No/Where"),
        Some("rubbish"),
        Some("EST5EDT"),
        Some("EST5EDT,M3.2.0,M11.1.0"),
        Some("CET-1CEST,M3.5.0,M10.5.0/3"),
        Some("NZST-12NZDT,M9.5.0,M4.1.0/3"),
        Some("<+0530>-5:30"),
        Some("XXX3"),
        Some("XXX3YYY"),
        Some("ABC-24:59:59"),
        Some("AB3"),
        Some("ABC3DEF4,J60/2,J300/3"),
        Some("ABC3DEF4,59/2,299/3"),
    ];
    for zone in zones {
        assert_eq!(
            dates(zone),
            oracle::snapshot_dates(&image, zone),
            "TZ={zone:?}"
        );
    }
    // Where winter time is the exception, glibc is an hour or two off after 2037.
    for zone in ["Europe/Dublin", "Africa/Casablanca"].map(Some) {
        let theirs = oracle::snapshot_dates(&image, zone);
        assert_eq!(dates(zone)[..6], theirs[..6], "TZ={zone:?}");
    }
}

fn dates(zone: Option<&str>) -> Vec<String> {
    let zone = Zone::from_variable(zone.map(OsStr::new));
    MOMENTS.iter().map(|&moment| zone.format(moment)).collect()
}
