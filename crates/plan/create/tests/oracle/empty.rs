//! Empty images beside those that `qemu-img create` makes.

use crate::{Patient, Rng, new_file, run_of, said, typed};
use instar_plan_create::{Encryption, Options, Preallocation, Spec, create};
use instar_qcow2::header::CompressionType;
use std::path::Path;

/// Options that go together.
fn good_options<'a>(rng: &mut Rng) -> Options<'a> {
    let version = rng.pick(&[2, 3, 3, 3]);
    let v3 = version == 3;
    let cluster_bytes = 512 << rng.below(13);
    let extended_l2 = v3 && cluster_bytes >= 16384 && rng.below(3) == 0;
    let data_file = (v3 && rng.below(4) == 0).then_some(&b"data"[..]);
    let backing = rng.below(4) == 0;
    let reserves = !backing || extended_l2;
    let modes = [
        Preallocation::Off,
        Preallocation::Metadata,
        Preallocation::Falloc,
        Preallocation::Full,
    ];
    Options {
        size: size(rng, cluster_bytes),
        version,
        cluster_bytes,
        refcount_bits: if v3 { 1 << rng.below(7) } else { 16 },
        compression: if v3 && rng.below(3) == 0 {
            CompressionType::Zstd
        } else {
            CompressionType::Zlib
        },
        extended_l2,
        lazy_refcounts: v3 && rng.below(3) == 0,
        backing_file: backing.then_some(&b"below"[..]),
        backing_format: backing.then_some(&b"raw"[..]),
        data_file,
        data_file_raw: data_file.is_some() && !backing && rng.below(2) == 0,
        preallocation: if reserves {
            rng.pick(&modes)
        } else {
            Preallocation::Off
        },
        encryption: Encryption::None,
    }
}

fn size(rng: &mut Rng, cluster_bytes: u64) -> u64 {
    match rng.below(4) {
        0 => rng.below(3) * 512,
        1 => rng.below(40_000) * 512,
        2 => rng.below(1000) * cluster_bytes.min(65536),
        _ => 1 + rng.below(40 << 20),
    }
}

/// What `qemu-img info` says, but for names and what the host reserves.
fn shown(folder: &Path) -> serde_json::Value {
    let text = said(folder, &["info", "--output=json", "x"]);
    let mut info: serde_json::Value = serde_json::from_str(&text).unwrap();
    let map = info.as_object_mut().unwrap();
    for key in ["actual-size", "children"] {
        map.remove(key);
    }
    info
}

#[test]
fn empty_images_equal_those_of_qemu() {
    let (seed, cases) = run_of("empty", 150);
    let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (ours, theirs) = (ours.path(), theirs.path());
    for folder in [ours, theirs] {
        std::fs::write(folder.join("below"), vec![7; 100_000]).unwrap();
    }
    for case in 0..cases {
        let options = good_options(&mut Rng::of(seed, case));
        let list = typed(&options);
        let note = format!("case {case}: {list} size={}", options.size);
        let size = options.size.to_string();
        said(
            theirs,
            &["create", "-q", "-f", "qcow2", "-o", &list, "x", &size],
        );
        make(ours, &options);
        said(ours, &["check", "x"]);
        assert_eq!(shown(ours), shown(theirs), "{note}");
        assert!(header(ours) == header(theirs), "{note}: headers differ");
        let map = |folder| said(folder, &["map", "--output=json", "x"]);
        compare_maps(&map(ours), &map(theirs), &options, &note);
        lengths(ours, theirs, &options, &note);
    }
}

/// The first cluster, without the tables' places: those of preallocated images differ.
fn header(folder: &Path) -> Vec<u8> {
    let mut bytes = std::fs::read(folder.join("x")).unwrap();
    bytes.truncate(512.max(1 << bytes[23].min(13)));
    bytes[40..60].fill(0);
    bytes
}

/// Where preallocated data lies is each program's own affair.
fn compare_maps(ours: &str, theirs: &str, options: &Options<'_>, note: &str) {
    let runs = |text: &str| -> Vec<serde_json::Value> {
        let runs: Vec<serde_json::Value> = serde_json::from_str(text).unwrap();
        let inside = options.preallocation != Preallocation::Off;
        if inside {
            let states = runs.iter().map(|run| {
                // Whether reserved space is a hole is the host's affair.
                let keys = ["depth", "present", "data", "compressed"];
                let state: Vec<_> = keys.iter().map(|key| run[*key].to_string()).collect();
                (state.join(" "), run["length"].as_u64().unwrap())
            });
            return joined(states);
        }
        runs
    };
    assert_eq!(runs(ours), runs(theirs), "{note}");
}

/// Runs of equal state as one.
fn joined(states: impl Iterator<Item = (String, u64)>) -> Vec<serde_json::Value> {
    let mut out: Vec<(String, u64)> = Vec::new();
    for (state, len) in states {
        match out.last_mut() {
            Some(last) if last.0 == state => last.1 += len,
            _ => out.push((state, len)),
        }
    }
    out.into_iter().map(|run| serde_json::json!(run)).collect()
}

/// Ours is never longer, and as long unless QEMU moved its tables about.
fn lengths(ours: &Path, theirs: &Path, options: &Options<'_>, note: &str) {
    let len = |folder: &Path, name: &str| std::fs::metadata(folder.join(name)).unwrap().len();
    let (our_len, their_len) = (len(ours, "x"), len(theirs, "x"));
    let mapped = options.preallocation != Preallocation::Off || options.data_file_raw;
    // QEMU's file ends with the last subcluster, ours with its cluster.
    let whole = !(mapped && options.extended_l2);
    if options.size > 0 && whole && (options.cluster_bytes >= 65536 || !mapped) {
        assert_eq!(our_len, their_len, "{note}");
    }
    assert!(
        our_len <= their_len + 2 * options.cluster_bytes,
        "{note}: {our_len} {their_len}"
    );
    if options.data_file.is_some() {
        assert_eq!(len(ours, "data"), len(theirs, "data"), "{note}");
    }
}

fn make(folder: &Path, options: &Options<'_>) {
    let image = new_file(&folder.join("x"));
    let data = options.data_file.map(|_| new_file(&folder.join("data")));
    let spec = Spec::new(options).unwrap();
    create(&image, data.as_ref(), &spec, &mut Patient).unwrap();
}

#[test]
fn large_images_with_small_clusters_are_sound() {
    let folder = tempfile::tempdir().unwrap();
    for (size, cluster_bytes, preallocation) in [
        (128 << 30, 512, Preallocation::Off),
        (64 << 20, 512, Preallocation::Metadata),
        (1 << 50, 65536, Preallocation::Off),
        (3 << 30, 4096, Preallocation::Metadata),
    ] {
        let options = Options {
            size,
            cluster_bytes,
            preallocation,
            ..Options::default()
        };
        make(folder.path(), &options);
        said(folder.path(), &["check", "x"]);
        let len = std::fs::metadata(folder.path().join("x")).unwrap().len();
        let size = size.to_string();
        said(
            folder.path(),
            &[
                "create",
                "-q",
                "-f",
                "qcow2",
                "-o",
                &typed(&options),
                "y",
                &size,
            ],
        );
        let theirs = std::fs::metadata(folder.path().join("y")).unwrap().len();
        assert!(len <= theirs, "{len} {theirs}");
    }
}
