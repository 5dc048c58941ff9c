//! Images that the judge makes and checks.

use instar_storage::MemStorage;
use instar_tests::judge::{self, load, ok, save};
use std::path::Path;

/// A rebase.
#[derive(Debug)]
pub struct Case {
    /// Options of the image.
    pub options: &'static str,
    /// What is done to it.
    pub image: &'static [&'static str],
    /// Format of the old backing file, size and content.
    pub old: Option<(&'static str, u64, &'static [&'static str])>,
    /// Format of the new one.
    pub new: Option<&'static str>,
    /// What is copied is compressed.
    pub compress: bool,
}

/// Bytes of the disk.
const SIZE: u64 = 320 << 10;
/// Content of the new backing file, which ends before the disk does.
const NEW: &[&str] = &[
    "write -P 7 0 40k",
    "write -P 1 64k 64k",
    "write -P 8 200k 50k",
];
const NEW_SIZE: u64 = 290 << 10;
const OLD: Option<(&str, u64, &[&str])> = Some((
    "qcow2",
    250 << 10,
    &[
        "write -P 1 0 128k",
        "write -P 2 130k 3k",
        "write -P 3 210k 20k",
    ],
));

const fn case(options: &'static str, image: &'static [&'static str]) -> Case {
    Case {
        options,
        image,
        old: OLD,
        new: Some("qcow2"),
        compress: false,
    }
}

pub const CASES: &[Case] = &[
    case("cluster_size=4k", &["write -P 5 8k 20k", "write -z 68k 8k"]),
    case(
        "cluster_size=512,refcount_bits=64",
        &["write -P 5 8k 20k", "snapshot"],
    ),
    case(
        "cluster_size=64k,extended_l2=on",
        &["write -P 5 3k 20k", "snapshot"],
    ),
    case(
        "cluster_size=16k,lazy_refcounts=on",
        &["write -P 5 3k 2k", "bitmap"],
    ),
    Case {
        new: None,
        ..case("cluster_size=4k,compat=0.10", &["write -P 5 8k 20k"])
    },
    Case {
        old: None,
        new: Some("raw"),
        ..case("cluster_size=4k", &["write -P 5 8k 20k", "snapshot"])
    },
    Case {
        old: None,
        ..case("cluster_size=4k,compat=0.10", &["write -P 5 8k 20k"])
    },
    Case {
        compress: true,
        ..case("cluster_size=16k", &["write -P 5 3k 2k", "snapshot"])
    },
    Case {
        compress: true,
        new: None,
        ..case("cluster_size=64k,extended_l2=on", &["write -P 5 3k 20k"])
    },
];

fn make(dir: &Path, name: &str, format: &str, size: u64, create: &[&str], what: &[&str]) {
    let size = size.to_string();
    let head = ["create", "-q", "-f", format];
    ok(dir, "qemu-img", &[&head, create, &[name, &size]].concat());
    for step in what {
        match *step {
            "snapshot" => ok(dir, "qemu-img", &["snapshot", "-c", "one", name]),
            "bitmap" => ok(dir, "qemu-img", &["bitmap", "--add", name, "rec"]),
            command => ok(dir, "qemu-io", &["-f", format, "-c", command, name]),
        };
    }
}

/// As [`CASES`], with an external data file.
pub const WITH_DATA: &[Case] = &[
    case(
        "cluster_size=4k,data_file=data",
        &["write -P 5 8k 20k", "write -z 68k 8k"],
    ),
    case("cluster_size=512,data_file=data", &["write -P 5 8k 20k"]),
    case(
        "cluster_size=64k,extended_l2=on,data_file=data",
        &["write -P 5 3k 20k", "bitmap"],
    ),
    Case {
        new: None,
        ..case(
            "cluster_size=16k,lazy_refcounts=on,data_file=data",
            &["write -P 5 3k 2k"],
        )
    },
    Case {
        old: None,
        new: Some("raw"),
        ..case("cluster_size=4k,data_file=data", &["write -P 5 8k 20k"])
    },
];

/// The files of a case.
pub struct Files {
    pub image: MemStorage,
    /// Its data file, empty if it has none.
    pub data: MemStorage,
    pub old: MemStorage,
    pub new: MemStorage,
}

impl Files {
    pub fn make(case: &Case) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        let mut create = vec!["-o", case.options];
        if let Some((format, size, what)) = case.old {
            make(dir, "old", format, size, &[], what);
            create.extend(["-b", "old", "-F", format]);
        }
        if let Some(format) = case.new {
            make(dir, "new", format, NEW_SIZE, &[], NEW);
        }
        make(dir, "image", "qcow2", SIZE, &create, case.image);
        let load = |name: &str| {
            let path = dir.join(name);
            if path.exists() {
                load(&path)
            } else {
                MemStorage::default()
            }
        };
        Self {
            image: load("image"),
            data: load("data"),
            old: load("old"),
            new: load("new"),
        }
    }
}

/// The judge's check: 0 sound, 3 leaks.
pub fn check(image: &MemStorage, data: &MemStorage) -> i32 {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    save(image, &path);
    save(data, &folder.path().join("data"));
    // The backing files do not matter.
    let node = format!(
        "json:{{\"driver\":\"qcow2\",\"backing\":null,\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
        path.display()
    );
    judge::check_as(folder.path(), &[&node])
}
