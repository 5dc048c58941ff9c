//! Cases of `commit` and `rebase`, with 2 GiB of changed data.

use crate::cases::{Case, Promise, case, moving};
use crate::images::Image;
use crate::place::Place;

/// What holds for both.
const COPY: Promise = moving(1.0);

/// `commit` and `rebase`.
pub fn all() -> Vec<Case> {
    let mut cases = commit();
    cases.extend(rebase());
    cases
}

fn changed(name: &'static str, image: Image, args: &'static [&'static str]) -> Case {
    Case {
        place: Place::Memory,
        slow: true,
        ..case(name, image, args, COPY)
    }
}

fn commit() -> Vec<Case> {
    const KEPT: &[&str] = &["commit", "-d", "two.qcow2"];
    const EMPTIED: &[&str] = &["commit", "two.qcow2"];
    let image = Image::NoiseOver(2);
    vec![
        Case {
            fresh: &["empty.qcow2"],
            proof: &["compare", "two.qcow2", "empty.qcow2"],
            ..changed("commit -d, 2 GiB", image, KEPT)
        },
        Case {
            fresh: &["empty.qcow2", "two.qcow2"],
            proof: &["compare", "two.qcow2.pristine", "empty.qcow2"],
            ..changed("commit, 2 GiB, emptying the overlay", image, EMPTIED)
        },
        Case {
            fresh: &["empty.qcow2"],
            proof: &["compare", "two.qcow2", "empty.qcow2"],
            place: Place::Disk,
            ..changed("commit -d, 1 GiB, on disk", Image::NoiseOver(1), KEPT)
        },
    ]
}

fn rebase() -> Vec<Case> {
    const PROOF: &[&str] = &["compare", "two.qcow2", "over.qcow2"];
    let below = |name, image, args| Case {
        fresh: &["over.qcow2"],
        proof: PROOF,
        ..changed(name, image, args)
    };
    let image = Image::NoiseUnder(2);
    const ELSEWHERE: &[&str] = &["rebase", "-F", "qcow2", "-b", "empty.qcow2", "over.qcow2"];
    const COMPRESSED: &[&str] = &[
        "rebase",
        "-c",
        "-F",
        "qcow2",
        "-b",
        "empty.qcow2",
        "over.qcow2",
    ];
    vec![
        below("rebase, 2 GiB that differ", image, ELSEWHERE),
        below(
            "rebase, 2 GiB that do not differ",
            image,
            &["rebase", "-F", "qcow2", "-b", "same.qcow2", "over.qcow2"],
        ),
        below(
            "rebase, 2 GiB onto nothing",
            image,
            &["rebase", "-b", "", "over.qcow2"],
        ),
        below(
            "rebase -c, 192 MiB that differ",
            Image::CorpusUnder,
            COMPRESSED,
        ),
        Case {
            place: Place::Disk,
            ..below(
                "rebase, 1 GiB that differ, on disk",
                Image::NoiseUnder(1),
                ELSEWHERE,
            )
        },
    ]
}
