//! Power cuts, full disks and failing ones: the image is the old one or the new one.

use crate::decode::{self, Decoded};
use crate::image::{self, add, create, set_flags};
use crate::judge::{Act, Line, Quiet, actions};
use crate::limits::Findings;
use crate::seed_and_cases;
use instar_plan_bitmap::{ChangeError, Report, Request, SourceImage, change};
use instar_plan_check::check;
use instar_qcow2::{Header, OpenMode};
use instar_storage::crash::states;
use instar_storage::{Calls, CrashStorage, Fault, FaultyStorage, MemStorage, Storage, StorageMut};
use std::fs::File;

fn apply<S: StorageMut>(
    store: &S,
    source: Option<&MemStorage>,
    line: &Line,
) -> Result<Report, ChangeError> {
    let header = Header::read(store, OpenMode::Change).unwrap();
    let actions = actions(line);
    let request = Request {
        name: line.name.as_bytes(),
        actions: &actions,
    };
    match source {
        None => {
            let source: SourceImage<'_, MemStorage> = SourceImage::Same;
            change(store, &header, &source, &request, &mut Quiet)
        }
        Some(storage) => {
            let header_of_source = Header::read(storage, OpenMode::Change).unwrap();
            let source = SourceImage::Other {
                storage,
                header: &header_of_source,
            };
            change(store, &header, &source, &request, &mut Quiet)
        }
    }
}

/// The check finds nothing at all.
fn clean(store: &MemStorage, label: &str) {
    let header = Header::read(store, OpenMode::CheckWithKey);
    let header = header.unwrap_or_else(|e| panic!("{label}: {e}"));
    let mut findings = Findings(Vec::new());
    let summary = check(store, &header, &mut findings).unwrap();
    let counts = (summary.corruptions, summary.leaks, summary.check_errors);
    assert_eq!((counts, findings.0), ((0, 0, 0), Vec::new()), "{label}");
}

fn bitmaps(store: &impl Storage) -> Vec<Decoded> {
    let mut bytes = vec![0; store.len_bytes() as usize];
    store.read_at(0, &mut bytes).unwrap();
    decode::bitmaps(&bytes)
}

/// Small images, what is done to each, and the image of their merge sources.
fn cases(dir: &std::path::Path) -> (Vec<(MemStorage, Line)>, MemStorage) {
    let path = dir.join("image");
    let text = path.to_str().unwrap();
    let load = || MemStorage::load(&File::open(&path).unwrap()).unwrap();
    let fill = |options: &str| {
        create(&path, "2M", options);
        for (name, granularity, write) in [
            ("c", "64k", "write 900k 100k"),
            ("b", "512", "write 100k 3k"),
            ("a", "4k", "write 300k 70k"),
        ] {
            add(&path, name, granularity);
            image::run("qemu-io", &["-f", "qcow2", "-c", write, text]);
        }
        image::run("qemu-img", &["snapshot", "-c", "s", text]);
        image::run("qemu-io", &["-f", "qcow2", "-c", "write 1M 200k", text]);
    };
    let merge = |name: &str| Act::Merge(name.to_owned());
    let mut cases = Vec::new();
    fill("cluster_size=4k");
    let source = load();
    for options in [
        "cluster_size=512",
        "cluster_size=4k,refcount_bits=64",
        "extended_l2=on",
    ] {
        fill(options);
        for acts in [
            &[Act::Remove][..],
            &[Act::Clear, Act::Disable],
            &[Act::Disable],
            &[merge("a"), merge("b")],
            &[Act::Remove, Act::Add, merge("b"), Act::Add],
        ] {
            cases.push((load(), Line::new("a", acts)));
        }
        cases.push((load(), Line::new("b", &[merge("c")]).source(&path, "other")));
        cases.push((load(), Line::new("new", &[Act::Add]).granularity(512)));
        set_flags(&path, "c", 1, 0);
        cases.push((load(), Line::new("c", &[Act::Remove])));
    }
    create(&path, "2M", "cluster_size=512");
    cases.push((load(), Line::new("first", &[Act::Add])));
    add(&path, "last", "4k");
    cases.push((load(), Line::new("last", &[Act::Remove])));
    (cases, source)
}

#[test]
fn power_cuts_leave_the_old_or_the_new_image() {
    let (seed, samples) = seed_and_cases("power cuts", 60);
    let dir = tempfile::tempdir().unwrap();
    let (cases, source) = cases(dir.path());
    let (mut count, mut news) = (0, 0);
    for (start, line) in cases {
        let label = format!("BITMAP_SEED={seed} {line:?}");
        let old = bitmaps(&start);
        clean(&start, &label);
        let store = CrashStorage::new(start);
        apply(&store, line.source.as_ref().map(|_| &source), &line).unwrap();
        let new = bitmaps(&store.image());
        clean(&store.image(), &label);
        assert_ne!(old, new, "{label}");
        let recording = store.finish();
        for (state, image) in states(&recording, seed, samples as usize) {
            clean(&image, &format!("{label}: {state}"));
            let there = bitmaps(&image);
            assert!(there == old || there == new, "{label}: {state}: {there:?}");
            if state.durable == recording.steps() {
                assert_eq!(there, new, "{label}: {state}");
            }
            count += 1;
            news += usize::from(there == new);
        }
    }
    println!("BITMAP_SEED={seed}: {count} states, {news} of them new");
    assert!(count > 1000 && news > 100 && news < count);
}

#[test]
fn stores_that_fail_leave_the_old_or_the_new_image() {
    let dir = tempfile::tempdir().unwrap();
    let (cases, source) = cases(dir.path());
    let mut count = 0;
    for (start, line) in cases {
        let old = bitmaps(&start);
        let source = line.source.as_ref().map(|_| &source);
        let whole = start.clone();
        apply(&whole, source, &line).unwrap();
        let new = bitmaps(&whole);
        for (calls, errno) in [(Calls::Reads, 5), (Calls::Writes, 28), (Calls::Flushes, 5)] {
            for lasting in [false, true] {
                for nth in 0.. {
                    let fault = Fault {
                        calls,
                        nth,
                        errno,
                        lasting,
                    };
                    // The fault counts what comes after the image was opened.
                    let header = Header::read(&start, OpenMode::Change).unwrap();
                    let store = FaultyStorage::with(start.clone(), fault);
                    let actions = actions(&line);
                    let request = Request {
                        name: line.name.as_bytes(),
                        actions: &actions,
                    };
                    let result = match source {
                        None => {
                            let same: SourceImage<'_, MemStorage> = SourceImage::Same;
                            change(&store, &header, &same, &request, &mut Quiet)
                        }
                        Some(storage) => {
                            let header_of_source = Header::read(storage, OpenMode::Change).unwrap();
                            let other = SourceImage::Other {
                                storage,
                                header: &header_of_source,
                            };
                            change(&store, &header, &other, &request, &mut Quiet)
                        }
                    };
                    let struck = store.struck();
                    let image = store.into_inner();
                    let there = bitmaps(&image);
                    let label = format!("{line:?} {calls:?} {nth}");
                    clean(&image, &label);
                    if result.is_ok() {
                        assert_eq!(there, new, "{label}");
                    } else {
                        assert!(there == old || there == new, "{label}: {there:?}");
                    }
                    count += 1;
                    if !struck {
                        break;
                    }
                }
            }
        }
    }
    println!("{count} runs");
    assert!(count > 500);
}
