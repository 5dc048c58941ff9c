//! Cases of the commands that read what a guest would.

use crate::cases::{Case, case, moving};
use crate::images::Image;
use crate::place::Place;

/// `map` and `compare`.
pub fn all() -> Vec<Case> {
    let (map, compare) = (moving(1.0 / 2.0), moving(1.0 / 1.2));
    vec![
        case(
            "map, 64 GiB in a million pieces, JSON",
            Image::Scattered,
            &["map", "--output=json", "scattered.qcow2"],
            map,
        ),
        case(
            "map, 64 GiB in a million pieces",
            Image::Scattered,
            &["map", "scattered.qcow2"],
            map,
        ),
        case(
            "map, 256 GiB, metadata preallocated",
            Image::Full,
            &["map", "full.qcow2"],
            map,
        ),
        case(
            "map, 20,000 clusters of 4 KiB, JSON",
            Image::Fragmented,
            &["map", "--output=json", "fragmented.qcow2"],
            map,
        ),
        case(
            "map, two layers, JSON",
            Image::Overlay,
            &["map", "--output=json", "overlay.qcow2"],
            map,
        ),
        Case {
            place: Place::Memory,
            slow: true,
            ..case(
                "compare, 4 GiB raw and qcow2",
                Image::Twins,
                &[
                    "compare",
                    "-f",
                    "raw",
                    "-F",
                    "qcow2",
                    "one.raw",
                    "two.qcow2",
                ],
                compare,
            )
        },
        case(
            "compare, 64 GiB in a million pieces with itself",
            Image::Scattered,
            &["compare", "scattered.qcow2", "scattered.qcow2"],
            compare,
        ),
    ]
}
