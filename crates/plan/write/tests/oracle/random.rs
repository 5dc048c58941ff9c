//! Random writes into images of every kind.

use crate::image::NAME;
use crate::image::{SIZE, check, content, load, make, ok, open, save};
use crate::{Rng, run_of};
use instar_plan_write::WriteImage;
use instar_storage::{MemStorage, StorageMut};
use std::path::Path;

/// Options, and what the image holds.
const KINDS: &[(&str, &[&str])] = &[
    ("cluster_size=64k", &["write -P 1 0 100k"]),
    (
        "cluster_size=512",
        &["write -P 1 0 100k", "snapshot", "write -P 2 50k 10k"],
    ),
    ("cluster_size=512,refcount_bits=1", &["write -P 1 3k 10k"]),
    ("cluster_size=512,refcount_bits=64", &[]),
    (
        "cluster_size=4k,compat=0.10",
        &["backing", "write -P 1 0 100k", "snapshot"],
    ),
    (
        "cluster_size=4k,refcount_bits=2",
        &["backing", "write -c -P 5 0 64k", "write -z 80k 40k"],
    ),
    (
        "cluster_size=4k,preallocation=metadata",
        &["write -P 1 0 10k"],
    ),
    (
        "cluster_size=8k,refcount_bits=8",
        &["write -c -P 5 16k 64k", "snapshot", "write -P 6 20k 5k"],
    ),
    (
        "cluster_size=16k,extended_l2=on",
        &[
            "backing",
            "write -P 1 5k 9k",
            "write -z 40k 3k",
            "discard 64k 16k",
        ],
    ),
    (
        "cluster_size=16k,extended_l2=on",
        &["write -c -P 5 32k 16k", "write -P 1 5k 99k", "snapshot"],
    ),
    (
        "cluster_size=32k,lazy_refcounts=on",
        &[
            "backing",
            "write -z 0 200k",
            "snapshot",
            "write -P 3 64k 32k",
        ],
    ),
    ("cluster_size=2M", &["backing", "write -P 1 5k 9k"]),
    (
        "cluster_size=4k,data_file=d.raw",
        &["write -P 1 0 10k", "write -z 20k 8k"],
    ),
    (
        "cluster_size=4k,data_file=d.raw,data_file_raw=on",
        &["write -P 1 0 10k"],
    ),
    (
        "cluster_size=16k,extended_l2=on,data_file=d.raw",
        &["backing", "write -P 1 0 10k"],
    ),
    (
        "cluster_size=4k,compression_type=zstd",
        &["write -c -P 5 0 64k", "snapshot"],
    ),
];

/// A write, to the image and to the model of its content.
fn write_one<S: StorageMut>(rng: &mut Rng, ours: &mut WriteImage<'_, S>, model: &mut [u8]) {
    let at = rng.below(SIZE / 512) * 512;
    let most = if rng.below(4) == 0 {
        100 << 10
    } else {
        9 << 10
    };
    let mut len = (rng.below(most) / 512 * 512 + 512).min(SIZE - at);
    let mut at = at;
    if rng.below(4) == 0 {
        // Any alignment.
        at += rng.below(512);
        len = (len - rng.below(512)).min(SIZE - at).max(1);
    }
    let byte = rng.below(256) as u8;
    let data = vec![byte; len as usize];
    ours.write_at(at, &data)
        .unwrap_or_else(|e| panic!("{at}+{len}: {e:?}"));
    model[at as usize..][..len as usize].copy_from_slice(&data);
}

fn random_case(kind: &(&str, &[&str]), rng: &mut Rng, writes: u64) {
    let folder = tempfile::tempdir().unwrap();
    let dir: &Path = folder.path();
    let (options, what) = *kind;
    make(dir, options, what);
    let mut model = content(dir, NAME, false);
    let frozen = what.contains(&"snapshot").then(|| content(dir, NAME, true));
    let image = load(&dir.join(NAME));
    let data = options
        .contains("data_file")
        .then(|| load(&dir.join("d.raw")));
    for _ in 0..3 {
        let mut ours = open(dir, &image, data.as_ref());
        for _ in 0..writes {
            write_one(rng, &mut ours, &mut model);
            if rng.below(8) == 0 {
                ours.commit().unwrap();
            }
        }
        ours.flush().unwrap();
        drop(ours);
        save(&image, &dir.join(NAME));
        if let Some(data) = &data {
            save(data, &dir.join("d.raw"));
        }
        assert_eq!(check(dir, NAME), 0, "{kind:?}");
        let now = content(dir, NAME, false);
        let differs = now.iter().zip(&model).position(|(a, b)| a != b);
        assert_eq!((differs, now.len()), (None, model.len()), "{kind:?}");
        if let Some(frozen) = &frozen {
            assert!(*frozen == content(dir, NAME, true), "snapshot of {kind:?}");
        }
    }
}

#[test]
fn random_writes_read_back_in_sound_images() {
    let (seed, cases) = run_of("writes", KINDS.len() as u64 * 2);
    for case in 0..cases {
        let kind = &KINDS[case as usize % KINDS.len()];
        println!("case {case}: {kind:?}");
        random_case(kind, &mut Rng::of(seed, case), 12);
    }
}

#[test]
fn a_refcount_table_that_is_too_short_is_moved() {
    // 64 entries of blocks for 64 clusters of 512 bytes: 2 MiB.
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let options = "cluster_size=512,refcount_bits=64";
    ok(
        dir,
        "qemu-img",
        &["create", "-q", "-f", "qcow2", "-o", options, NAME, "8M"],
    );
    let image = load(&dir.join(NAME));
    let mut ours = open(dir, &image, None);
    let data: Vec<u8> = (0..8_u32 << 20).map(|n| (n >> 9) as u8).collect();
    for (piece, at) in data.chunks(96 << 10).zip((0..).step_by(96 << 10)) {
        ours.write_at(at, piece).unwrap();
    }
    ours.flush().unwrap();
    save(&image, &dir.join(NAME));
    assert_eq!(check(dir, NAME), 0);
    assert!(content(dir, NAME, false) == data);
}

#[test]
fn recording_bitmaps_are_in_use_and_others_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    make(dir, "cluster_size=4k", &["bitmap"]);
    ok(
        dir,
        "qemu-img",
        &["bitmap", "--add", "--disable", NAME, "still"],
    );
    let image = load(&dir.join(NAME));
    let mut ours = open(dir, &image, None);
    ours.write_at(0, &[1; 512]).unwrap();
    ours.flush().unwrap();
    save(&image, &dir.join(NAME));
    assert_eq!(check(dir, NAME), 0);
    let info = String::from_utf8(ok(dir, "qemu-img", &["info", NAME])).unwrap();
    assert_eq!(info.matches("in-use").count(), 1, "{info}");
    let after = info.split("name: still").next().unwrap();
    assert!(after.contains("in-use"), "{info}");
}

#[test]
fn what_crosses_the_end_or_metadata_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    make(dir, "cluster_size=4k", &["write -P 1 0 8k"]);
    let image = load(&dir.join(NAME));
    let mut ours = open(dir, &image, None);
    assert!(ours.write_at(SIZE - 1, &[0; 2]).is_err());
    assert!(ours.write_at(u64::MAX, &[0; 2]).is_err());
    drop(ours);
    // The first L2 entry leads to the header.
    let header = instar_qcow2::Header::read(&image, instar_qcow2::OpenMode::Change).unwrap();
    let mut entry = [0; 8];
    read(&image, header.l1_table_offset.get(), &mut entry);
    let l2 = u64::from_be_bytes(entry) & 0x00ff_ffff_ffff_fe00;
    for place in [
        l2,
        header.l1_table_offset.get(),
        header.refcount_table_offset.get(),
    ] {
        let word = (1_u64 << 63) | place;
        image.write_at(l2, &word.to_be_bytes()).unwrap();
        let before = image.to_vec();
        let mut ours = open(dir, &image, None);
        assert_eq!(ours.write_at(0, &[9; 512]).unwrap_err().errno(), 5);
        drop(ours);
        assert!(image.to_vec() == before, "{place}");
    }
}

fn read(image: &MemStorage, at: u64, buf: &mut [u8]) {
    instar_storage::Storage::read_at(image, at, buf).unwrap();
}
