//! The cases, and what is promised of them.

use crate::images::Image;
use crate::place::Place;

/// One command line for both programs.
pub struct Case {
    /// Name in the table.
    pub name: &'static str,
    /// The image it works on.
    pub image: Image,
    /// Where that lies.
    pub place: Place,
    /// Arguments of instar, and of `qemu-img` if it is the other one.
    pub args: &'static [&'static str],
    /// Against whom instar is measured.
    pub rival: Rival,
    /// The file that both make: no run finds it.
    pub output: Option<&'static str>,
    /// The files that every run gets as they were made, if that is not the one that [`Case::changes`] finds.
    pub fresh: &'static [&'static str],
    /// `qemu-img compare` with these shows that what was made or changed is right; what both make is compared anyway,
    /// unless this says how.
    pub proof: &'static [&'static str],
    /// What `SPECIFICATION.md` promises.
    pub promise: Promise,
    /// A run takes `qemu-img` many seconds: there are [`SLOW_RUNS`] of them, whatever the command line says.
    pub slow: bool,
}

/// The other program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rival {
    /// `qemu-img` with the same arguments.
    QemuImg,
    /// `cp` with these.
    Cp(&'static [&'static str]),
}

/// Runs of a slow case.
pub const SLOW_RUNS: usize = 3;

impl Case {
    /// The files that the command changes: every run gets them as they were made.
    pub fn changes(&self) -> Vec<&'static str> {
        if self.output.is_some() || !self.fresh.is_empty() {
            return self.fresh.to_vec();
        }
        let repairs = self.args.contains(&"-r");
        match self.args.first() {
            Some(&("info" | "check" | "map" | "compare" | "measure")) if !repairs => Vec::new(),
            _ => {
                let mut files = self.args.iter().copied();
                let file = files.find(|arg| arg.contains('.') && !arg.contains('='));
                file.into_iter().collect()
            }
        }
    }
}

/// Upper limits; `None` where nothing is promised.
#[derive(Clone, Copy, Default)]
pub struct Promise {
    /// Median wall time as a part of `qemu-img`'s.
    pub ratio: Option<f64>,
    /// Largest resident set, in bytes.
    pub memory_bytes: Option<u64>,
    /// Largest resident set over `qemu-img`'s, in bytes.
    pub memory_over_bytes: Option<u64>,
    /// Length of the file made as a part of the other's.
    pub size: Option<f64>,
    /// VM exits.
    pub exits: Option<u64>,
    /// Median of the time from VM creation to the first guest instruction, in µs.
    pub setup_us: Option<u64>,
}

/// Bytes.
pub const MIB: u64 = 1 << 20;

const NONE: Promise = Promise {
    ratio: None,
    memory_bytes: None,
    memory_over_bytes: None,
    size: None,
    exits: None,
    setup_us: None,
};

/// What holds for every `check`.
const CHECK: Promise = Promise {
    memory_over_bytes: Some(16 * MIB),
    ..NONE
};

/// What holds for all that moves data: a time as a part of `qemu-img`'s.
pub const fn moving(ratio: f64) -> Promise {
    Promise {
        ratio: Some(ratio),
        memory_over_bytes: Some(48 * MIB),
        ..NONE
    }
}

/// A case of which nothing else is to be said.
pub fn case(
    name: &'static str,
    image: Image,
    args: &'static [&'static str],
    promise: Promise,
) -> Case {
    Case {
        name,
        image,
        place: Place::Disk,
        args,
        rival: Rival::QemuImg,
        output: None,
        fresh: &[],
        proof: &[],
        promise,
        slow: false,
    }
}

/// All cases, in the order of the table.
pub fn all() -> Vec<Case> {
    let mut cases = info();
    cases.extend(check());
    cases.extend(repair());
    cases.extend(snapshot());
    cases.extend(quick());
    cases.extend(crate::cases_content::all());
    cases.extend(crate::cases_copy::all());
    cases.extend(crate::cases_backing::all());
    cases.extend(crate::cases_encrypted::all());
    cases
}

fn info() -> Vec<Case> {
    let small = Promise {
        ratio: Some(0.75),
        memory_bytes: Some(12 * MIB),
        exits: Some(24),
        setup_us: Some(1500),
        ..NONE
    };
    let chain = Promise {
        exits: Some(24 + 8),
        ..NONE
    };
    vec![
        case(
            "info, small qcow2",
            Image::Small,
            &["info", "small.qcow2"],
            small,
        ),
        case("info, raw", Image::Raw, &["info", "disk.raw"], NONE),
        case(
            "info --backing-chain, two layers",
            Image::Overlay,
            &["info", "--backing-chain", "overlay.qcow2"],
            chain,
        ),
        case(
            "info, 512 B clusters",
            Image::Tiny,
            &["info", "tiny.qcow2"],
            NONE,
        ),
        case(
            "info, 2 MiB clusters",
            Image::Large,
            &["info", "large.qcow2"],
            NONE,
        ),
    ]
}

fn check() -> Vec<Case> {
    let full = Promise {
        ratio: Some(1.0 / 3.0),
        ..CHECK
    };
    vec![
        case(
            "check, 256 GiB, metadata preallocated",
            Image::Full,
            &["check", "full.qcow2"],
            full,
        ),
        case(
            "check, small qcow2",
            Image::Small,
            &["check", "small.qcow2"],
            CHECK,
        ),
        case(
            "check, fragmented, 20,000 clusters of 4 KiB",
            Image::Fragmented,
            &["check", "fragmented.qcow2"],
            CHECK,
        ),
        case(
            "check, overlay of two layers",
            Image::Overlay,
            &["check", "overlay.qcow2"],
            CHECK,
        ),
        case(
            "check, 256 MiB, 512 B clusters, preallocated",
            Image::Tiny,
            &["check", "tiny.qcow2"],
            CHECK,
        ),
        case(
            "check, 1 TiB, 2 MiB clusters, preallocated",
            Image::Large,
            &["check", "large.qcow2"],
            CHECK,
        ),
        case(
            "check, 64 GiB preallocated, 3 snapshots",
            Image::Snapshots,
            &["check", "snapshots.qcow2"],
            CHECK,
        ),
    ]
}

fn repair() -> Vec<Case> {
    let leaked = Promise {
        ratio: Some(1.0 / 3.0),
        ..CHECK
    };
    vec![
        Case {
            slow: true,
            ..case(
                "check -r all, 1 M leaked clusters",
                Image::Leaked,
                &["check", "-r", "all", "leaked.qcow2"],
                leaked,
            )
        },
        case(
            "check -r leaks, small qcow2",
            Image::Small,
            &["check", "-r", "leaks", "small.qcow2"],
            CHECK,
        ),
    ]
}

fn snapshot() -> Vec<Case> {
    let snapshot = Promise {
        ratio: Some(0.2),
        ..CHECK
    };
    vec![
        case(
            "snapshot -c, 256 GiB, metadata preallocated",
            Image::Full,
            &["snapshot", "-c", "one", "full.qcow2"],
            snapshot,
        ),
        case(
            "snapshot -d, 256 GiB, metadata preallocated",
            Image::FullWithSnapshot,
            &["snapshot", "-d", "one", "full.qcow2"],
            snapshot,
        ),
        case(
            "snapshot -a, 256 GiB, metadata preallocated",
            Image::FullWithSnapshot,
            &["snapshot", "-a", "one", "full.qcow2"],
            CHECK,
        ),
        case(
            "snapshot -c, small qcow2",
            Image::Small,
            &["snapshot", "-c", "one", "small.qcow2"],
            CHECK,
        ),
        case(
            "snapshot -c, fragmented, 20,000 clusters of 4 KiB",
            Image::Fragmented,
            &["snapshot", "-c", "one", "fragmented.qcow2"],
            CHECK,
        ),
    ]
}

/// Changes that are quick with both programs.
fn quick() -> Vec<Case> {
    let quick = Promise {
        ratio: Some(0.75),
        ..CHECK
    };
    vec![
        case(
            "resize +1G, small qcow2",
            Image::Small,
            &["resize", "small.qcow2", "+1G"],
            quick,
        ),
        Case {
            slow: true,
            ..case(
                "resize --shrink, 256 GiB to 1 GiB",
                Image::Full,
                &["resize", "--shrink", "full.qcow2", "1G"],
                quick,
            )
        },
        case(
            "resize --preallocation=metadata +64G, small qcow2",
            Image::Small,
            &["resize", "--preallocation=metadata", "small.qcow2", "+64G"],
            quick,
        ),
        case(
            "resize +1G, raw",
            Image::Raw,
            &["resize", "-f", "raw", "disk.raw", "+1G"],
            quick,
        ),
        case(
            "amend compat=0.10, small qcow2",
            Image::Small,
            &["amend", "-o", "compat=0.10", "small.qcow2"],
            quick,
        ),
        case(
            "amend refcount_bits=64, 256 GiB, metadata preallocated",
            Image::Full,
            &["amend", "-o", "refcount_bits=64", "full.qcow2"],
            quick,
        ),
        case(
            "bitmap --add, small qcow2",
            Image::Small,
            &["bitmap", "--add", "small.qcow2", "one"],
            quick,
        ),
        case(
            "bitmap --merge, two bitmaps of 64 GiB",
            Image::Bitmaps,
            &["bitmap", "--merge", "one", "bitmaps.qcow2", "two"],
            quick,
        ),
    ]
}
