//! Power cuts and stores that fail: the image is the old one or the new one, and sound.

use crate::ours::{Opened, Steps, load, open_chain, resize, to};
use crate::state::{Seen, seen, sound};
use crate::{qemu, run_of};
use instar_plan_resize::{Layer, Preallocation, Request};
use instar_storage::{Calls, CrashStorage, Fault, FaultyStorage, MemStorage, Storage, crash};
use std::path::Path;

/// Random subsets of each interval between flushes.
const SAMPLES: usize = 60;
const NAME: &str = "a.qcow2";

/// An image of 100.5 KiB whose last cluster is full of data, shared with a snapshot or not.
fn make(dir: &Path, options: &str, with: &[&str]) {
    std::fs::write(dir.join("base.raw"), [0xaa; 300 << 10]).unwrap();
    let backing: &[&str] = if with.contains(&"backing") {
        &["-b", "base.raw", "-F", "raw"]
    } else {
        &[]
    };
    let create = ["create", "-q", "-f", "qcow2", "-o", options];
    img(dir, &[&create[..], backing, &[NAME, "102912"]].concat());
    for (number, what) in with.iter().enumerate() {
        let write = format!("write -P {} {}k 20k", number + 1, 11 * number);
        match *what {
            "backing" => {}
            "snapshot" => img(dir, &["snapshot", "-c", "one", NAME]),
            "bitmap" => img(dir, &["bitmap", "--add", "-g", "512", NAME, "fine"]),
            "tail" => qemu::io(dir, NAME, "write -P 99 80k 20992"),
            "compressed" => qemu::io(dir, NAME, "write -c -P 98 96k 4608"),
            _ => qemu::io(dir, NAME, &write),
        }
    }
}

fn img(dir: &Path, args: &[&str]) {
    qemu::img_ok(dir, args);
}

/// The chain over stores of another kind.
fn wrap<S>(dir: &Path, store: impl Fn(MemStorage) -> S) -> Vec<Opened<S>> {
    let wrap = |opened: Opened<MemStorage>| Opened {
        store: store(opened.store),
        data: opened.data.map(&store),
        header: opened.header,
    };
    open_chain(dir, NAME).into_iter().map(wrap).collect()
}

/// What is seen of an image in the chain of `dir`.
fn look(dir: &Path, image: &MemStorage, data: Option<&MemStorage>) -> Seen {
    let chain = open_chain(dir, NAME);
    let below: Vec<Layer<'_, MemStorage>> = chain[1..]
        .iter()
        .map(|opened| Layer {
            storage: &opened.store,
            data: opened.data.as_ref(),
            header: opened.header.as_ref(),
            cipher: None,
        })
        .collect();
    seen(image, data, &below)
}

/// The cases: options, what the image holds, and the requests.
const CASES: &[(&str, &[&str])] = &[
    ("cluster_size=512", &["data", "tail"]),
    ("cluster_size=4k", &["tail", "snapshot", "data"]),
    ("cluster_size=512,compat=0.10", &["tail", "data"]),
    (
        "cluster_size=1k,refcount_bits=64",
        &["data", "tail", "snapshot"],
    ),
    ("cluster_size=4k", &["backing", "data", "tail"]),
    ("cluster_size=4k", &["backing", "tail", "snapshot"]),
    ("cluster_size=8k", &["backing", "data"]),
    ("cluster_size=16k,extended_l2=on", &["backing", "data"]),
    (
        "cluster_size=16k,extended_l2=on",
        &["backing", "tail", "snapshot"],
    ),
    ("cluster_size=8k", &["backing", "compressed"]),
    ("cluster_size=512", &["bitmap", "data", "tail"]),
    (
        "cluster_size=4k,lazy_refcounts=on",
        &["bitmap", "snapshot", "tail"],
    ),
];

fn requests(options: &str, with: &[&str]) -> Vec<Request> {
    let mut all = vec![
        to(41 << 10, Preallocation::Off),
        to(200 << 10, Preallocation::Falloc),
        to(200 << 10, Preallocation::Full),
    ];
    if !(options.contains("0.10") && with.contains(&"backing")) {
        all.push(to(150 << 10, Preallocation::Metadata));
        all.push(to(104 << 10, Preallocation::Off));
        all.push(to(2 << 20, Preallocation::Off));
    }
    all
}

/// Every state that a power cut leaves; how many there were.
fn cut(dir: &Path, request: &Request, seed: u64, what: &str) -> usize {
    let start = load(&dir.join(NAME));
    let chain = wrap(dir, CrashStorage::new);
    resize(&chain, request, &mut Steps(u64::MAX)).unwrap_or_else(|e| panic!("{what}: {e}"));
    let (old, new) = (
        look(dir, &start, None),
        look(dir, &chain[0].store.image(), None),
    );
    assert!(old.size != new.size, "{what} does something");
    let recording = chain.into_iter().next().unwrap().store.finish();
    let mut count = 0;
    for (label, image) in crash::states(&recording, seed, SAMPLES) {
        sound(&image).unwrap_or_else(|e| panic!("{what}, seed {seed}: {label}: {e}"));
        let now = look(dir, &image, None);
        let all = label.durable == recording.steps();
        assert!(
            now == new || (now == old && !all),
            "{what}, seed {seed}: {label}: neither old nor new"
        );
        count += 1;
    }
    count
}

#[test]
fn a_power_cut_leaves_the_old_or_the_new_image() {
    let (seed, _) = run_of("power cuts", 0);
    let mut states = 0;
    for (options, with) in CASES {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), options, with);
        for request in requests(options, with) {
            let what = format!("{options} {with:?} {request:?}");
            states += cut(dir.path(), &request, seed, &what);
        }
    }
    println!("{states} states");
    assert!(states > 5000);
}

/// A data file shrinks after the switch and grows before it, so that the disk is all there at every moment.
#[test]
fn a_power_cut_between_image_and_data_file_keeps_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    let options = "cluster_size=4k,data_file=a.data";
    make(path, options, &["data", "tail"]);
    let (start, start_data) = (load(&path.join(NAME)), load(&path.join("a.data")));
    let old = look(path, &start, Some(&start_data));
    for request in [
        to(41 << 10, Preallocation::Off),
        to(150 << 10, Preallocation::Metadata),
        to(150 << 10, Preallocation::Full),
        to(120 << 10, Preallocation::Off),
    ] {
        let chain = wrap(path, CrashStorage::new);
        resize(&chain, &request, &mut Steps(u64::MAX)).unwrap();
        let top = chain.into_iter().next().unwrap();
        let new_data = top.data.as_ref().unwrap().image();
        let new = look(path, &top.store.image(), Some(&new_data));
        let len = new_data.len_bytes();
        let recording = top.store.finish();
        let data = top.data.unwrap().finish();
        let (grows, mut count) = (new.size > old.size, 0);
        for (label, image) in crash::states(&recording, 7, SAMPLES) {
            // The data file is durable before the image switches, or is touched only after it.
            let data = match (grows, label.durable == 0) {
                (true, true) => crash::states(&data, 7, 20).map(|(_, d)| d).collect(),
                (true, false) => vec![new_data.clone()],
                (false, _) => vec![start_data.clone()],
            };
            for data in data {
                let now = look(path, &image, Some(&data));
                assert!(now == old || now == new, "{request:?}: {label}");
                count += 1;
            }
        }
        assert!(count >= 3 && len >= new.size, "{request:?}: {count} states");
    }
}

#[test]
fn a_store_that_fails_at_any_change_keeps_the_image() {
    let mut total = 0;
    for (options, with) in [CASES[0], CASES[1], CASES[4], CASES[10]] {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), options, with);
        let old = look(dir.path(), &load(&dir.path().join(NAME)), None);
        for request in requests(options, with) {
            let chain = wrap(dir.path(), |store| store);
            resize(&chain, &request, &mut Steps(u64::MAX)).unwrap();
            let new = look(dir.path(), &chain[0].store, None);
            for (at, errno) in (0..100_000).zip([28, 5, 122].into_iter().cycle()) {
                let chain = wrap(dir.path(), |store| {
                    let fault = Fault {
                        calls: Calls::Changes,
                        nth: at,
                        errno,
                        lasting: at % 2 == 0,
                    };
                    FaultyStorage::with(store, fault)
                });
                let result = resize(&chain, &request, &mut Steps(u64::MAX));
                let struck = chain[0].store.struck();
                let image = &chain.into_iter().next().unwrap().store.into_inner();
                sound(image).unwrap_or_else(|e| panic!("{request:?}, change {at}: {e}"));
                let now = look(dir.path(), image, None);
                assert!(
                    now == old || now == new,
                    "{options} {request:?}, change {at}: neither old nor new"
                );
                if result.is_ok() {
                    assert!(
                        now == new,
                        "{options} {request:?}, change {at}: success is the new image"
                    );
                }
                total += 1;
                if !struck {
                    break;
                }
            }
        }
    }
    println!("{total} failures");
    assert!(total > 200);
}

#[test]
fn a_cancel_before_the_commit_changes_nothing() {
    let mut cancelled = 0;
    for (options, with) in CASES {
        let dir = tempfile::tempdir().unwrap();
        make(dir.path(), options, with);
        let old = look(dir.path(), &load(&dir.path().join(NAME)), None);
        for request in requests(options, with) {
            for steps in 0..10_000 {
                let chain = wrap(dir.path(), |store| store);
                let before = chain[0].store.len_bytes();
                if resize(&chain, &request, &mut Steps(steps)).is_ok() {
                    break;
                }
                assert!(
                    look(dir.path(), &chain[0].store, None) == old,
                    "{request:?} {steps}"
                );
                assert_eq!(chain[0].store.len_bytes(), before, "{request:?} {steps}");
                sound(&chain[0].store).unwrap();
                cancelled += 1;
                assert!(steps < 9_999);
            }
        }
    }
    assert!(cancelled > 100, "{cancelled}");
}
