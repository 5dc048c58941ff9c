//! Random requests to images of every kind.

use crate::image::{NAME, SIZE, check, content, load, make, save};
use crate::user::User;
use crate::{Rng, run_of};
use std::path::Path;

/// Options, and what the image holds.
pub const KINDS: &[(&str, &[&str])] = &[
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
            "compressed backing",
            "write -z 0 200k",
            "snapshot",
            "write -P 3 64k 32k",
        ],
    ),
    ("cluster_size=2M", &["backing", "write -P 1 5k 9k"]),
    ("cluster_size=4k", &["compressed backing"]),
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
    (
        "cluster_size=4k",
        &["backing", "bitmap", "write -P 1 0 40k"],
    ),
];

/// Where a request goes.
pub fn range(rng: &mut Rng) -> (u64, u64) {
    let at = rng.below(SIZE / 512) * 512;
    let most = if rng.below(4) == 0 {
        100 << 10
    } else {
        9 << 10
    };
    let len = (rng.below(most) / 512 * 512 + 512).min(SIZE - at);
    (at, len)
}

fn one<S: crate::image::Store>(rng: &mut Rng, user: &mut User<'_, S>) {
    let (at, len) = range(rng);
    match rng.below(8) {
        0..=3 => {
            let bytes = vec![rng.below(255) as u8 + 1; len as usize];
            if let Some(open) = user.begin(at, &bytes) {
                user.open.push(open);
            }
        }
        4 => user.zeros(rng, at, len),
        5 => user.live.flush().unwrap(),
        _ if !user.open.is_empty() => {
            let index = rng.below(user.open.len() as u64) as usize;
            let open = user.open.swap_remove(index);
            let link = rng.below(4) > 0;
            user.end(&open, link);
        }
        _ => {}
    }
}

fn case(kind: &(&str, &[&str]), rng: &mut Rng, requests: u64) {
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
    for _ in 0..2 {
        let mut user = User::new(dir, (&image, data.as_ref()), model, what);
        for _ in 0..requests {
            one(rng, &mut user);
            if rng.below(4) == 0 {
                user.compare(kind);
            }
        }
        user.compare(kind);
        model = user.close();
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
        if let (Some(data), true) = (&data, options.contains("data_file_raw")) {
            let raw = data.to_vec();
            assert!(raw[..model.len()] == model, "raw file of {kind:?}");
        }
    }
}

#[test]
fn random_requests_leave_what_was_written_in_sound_images() {
    let (seed, cases) = run_of("requests", KINDS.len() as u64 * 2);
    for number in 0..cases {
        let kind = &KINDS[number as usize % KINDS.len()];
        println!("case {number}: {kind:?}");
        case(kind, &mut Rng::of(seed, number), 40);
    }
}
