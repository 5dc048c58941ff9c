//! `qemu-img amend` as the judge: images of every kind, amended by both. The
//! sentence of a refusal has to be the same, and so has what can be seen of the
//! image afterwards; guest data has to be what it was.
//!
//! `AMEND_ALL` tries all options on all images, `AMEND_ONLY` names one image.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

mod images;
mod judge;

use images::{PLANS, Plan};
use judge::{Checked, View, check, content, ours, qemu, view};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Versions, for every image.
const VERSIONS: &[&str] = &[
    "compat=0.10",
    "compat=1.1",
    "compat=0.10,refcount_bits=16",
    "compat=0.10,lazy_refcounts=on",
    "compat=1.1,refcount_bits=64,lazy_refcounts=on",
];

/// Refcount widths and what goes with them.
const WIDTHS: &[&str] = &[
    "refcount_bits=1",
    "refcount_bits=64",
    "lazy_refcounts=on",
    "refcount_bits=2",
    "refcount_bits=16",
    "compat=0.10,refcount_bits=8",
    "refcount_bits=4",
    "refcount_bits=32",
    "lazy_refcounts=off",
    "compat=1.1,refcount_bits=1",
];

/// Refusals, and which of several comes first.
const REFUSED: &[&str] = &[
    "refcount_bits=0",
    "refcount_bits=3",
    "refcount_bits=128",
    "refcount_bits=128,compat=0.10,lazy_refcounts=on",
    "lazy_refcounts=on,refcount_bits=32,compat=0.10",
    "data_file=x,refcount_bits=3",
    "data_file_raw=on,refcount_bits=3",
    "data_file_raw=on,data_file=x",
    "backing_file=x",
    "backing_file=",
    "backing_fmt=",
    "backing_fmt=raw",
    "backing_file=backing.raw",
    "backing_file=backing.raw,backing_fmt=raw",
    "backing_file=backing.raw,backing_fmt=qcow2",
    "backing_file=x,refcount_bits=32,compat=0.10",
    "backing_file=x,lazy_refcounts=on,compat=0.10",
    "backing_file=x,data_file_raw=on",
];

/// Data file options, for images that have one.
const DATA_FILE: &[&str] = &[
    "data_file=other.data",
    "data_file=",
    "data_file_raw=on",
    "data_file_raw=off",
    "data_file_raw=off,data_file=other.data,refcount_bits=64",
    "data_file=nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn",
];

/// Sizes, alone and with other options; the last ones are refused.
const SIZES: &[&str] = &[
    "size=3145728",
    "size=1048576",
    "size=0",
    "size=70368744177664,refcount_bits=16",
    "size=1048576,compat=0.10",
    "size=3145728,compat=0.10",
    "size=3145728,compat=1.1,refcount_bits=64,lazy_refcounts=on",
    "size=1000",
    "size=1000,compat=0.10",
    "size=9223372036854775808",
    "size=9223372036854775296",
    "size=1000,backing_file=x",
];

/// A copy of an image, with the files it names, in a folder of its own.
fn copy(plan: &Plan, image: &Path, folder: &str) -> PathBuf {
    let dir = image.with_file_name(folder);
    fs::create_dir_all(&dir).unwrap();
    let to = dir.join("image.qcow2");
    fs::copy(image, &to).unwrap();
    if plan.backing {
        fs::copy(
            image.with_file_name(images::BACKING),
            dir.join(images::BACKING),
        )
        .unwrap();
    }
    if plan.data_file {
        let data = image.with_extension("data");
        for name in [data.file_name().unwrap(), OsStr::new("other.data")] {
            fs::copy(&data, dir.join(name)).unwrap();
        }
    }
    to
}

/// Amends copies of `image` by both: true if it was done, false if it was refused; or what is wrong.
fn compare(plan: &Plan, image: &Path, options: &str) -> Result<bool, String> {
    let theirs = copy(plan, image, "theirs");
    let mine = copy(plan, image, "mine");
    let their_result = qemu(&theirs, options);
    let my_result = ours(&mine, options).map_err(|e| e.to_string());
    let breaks = plan.qemu_breaks && options.contains("compat=0.10") && their_result.is_ok();
    if breaks {
        return broken(image, &theirs, &mine, my_result.is_ok());
    }
    if my_result != their_result {
        return Err(format!("ours {my_result:?}, qemu-img {their_result:?}"));
    }
    if my_result.is_err() {
        let same = fs::read(image).unwrap() == fs::read(&mine).unwrap();
        return if same || same_disk(image, &mine) {
            Ok(false)
        } else {
            Err("a refusal has changed the image".to_owned())
        };
    }
    let (their_view, my_view) = (view(&theirs), view(&mine));
    if their_view != my_view {
        let text = |view: Option<View>| view.map(|v| format!("{}\n  {}", v.info, v.map));
        let (mine, theirs) = (text(my_view), text(their_view));
        return Err(format!("ours {mine:?}\n  qemu-img {theirs:?}"));
    }
    if my_view.is_none() {
        return Ok(true);
    }
    judge_checks(&theirs, &mine, options)?;
    if options.contains("70368744177664") {
        return Ok(true); // 64 TiB are not read
    }
    let expected = if options.contains("size") {
        &theirs
    } else {
        image
    };
    if content(expected) != content(&mine) {
        return Err("content has changed".to_owned());
    }
    Ok(true)
}

/// An image that `qemu-img` damages: ours is sound, or refused.
fn broken(image: &Path, theirs: &Path, mine: &Path, done: bool) -> Result<bool, String> {
    let before = content(image);
    if check(theirs).corruptions == 0 && content(theirs) == before {
        return Err("qemu-img does not damage it any more".to_owned());
    }
    let checked = check(mine);
    if checked.corruptions + checked.leaks > 0 || content(mine) != before {
        return Err(format!("ours is damaged too: {checked:?}"));
    }
    let v2 = images::be::<4>(&fs::read(mine).unwrap(), 4) == 2;
    if v2 != done {
        return Err(format!("done: {done}, version 2: {v2}"));
    }
    Ok(true)
}

fn same_disk(image: &Path, mine: &Path) -> bool {
    view(image) == view(mine) && check(mine) == check(image) && content(image) == content(mine)
}

fn judge_checks(theirs: &Path, mine: &Path, options: &str) -> Result<(), String> {
    let (their_check, my_check) = (check(theirs), check(mine));
    let sound = Checked {
        corruptions: 0,
        leaks: 0,
        fragmented: my_check.fragmented,
        ..their_check
    };
    // What a smaller disk frees is still the old state's when zeros need space.
    let scattered = options.contains("size=") && options.contains("compat=0.10");
    let too_scattered = my_check.fragmented > their_check.fragmented && !scattered;
    if my_check != sound || too_scattered {
        return Err(format!(
            "check: ours {my_check:?}, qemu-img {their_check:?}"
        ));
    }
    let (their_len, my_len) = (len(theirs), len(mine));
    // Less than a cluster is no matter.
    let cluster = 1 << images::be::<4>(&fs::read(mine).unwrap(), 20);
    if my_len > their_len + their_len / 50 + cluster {
        return Err(format!("length: ours {my_len}, qemu-img {their_len}"));
    }
    Ok(())
}

fn len(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

/// Runs all `options`, or every `step`th, over all images that `chosen` takes.
fn all(options: &[&str], step: usize, chosen: impl Fn(&Plan) -> bool) {
    let everything = std::env::var_os("AMEND_ALL").is_some();
    let step = if everything { 1 } else { step };
    let only = std::env::var("AMEND_ONLY").ok();
    let dir = tempfile::tempdir().unwrap();
    let (mut failures, mut done, mut refused) = (Vec::new(), 0, 0);
    for (at, plan) in PLANS.iter().filter(|plan| chosen(plan)).enumerate() {
        if only.as_ref().is_some_and(|only| only != plan.name) {
            continue;
        }
        let image = images::make(plan, dir.path());
        for option in options.iter().skip(at % step).step_by(step) {
            match compare(plan, &image, option) {
                Ok(true) => done += 1,
                Ok(false) => refused += 1,
                Err(e) => failures.push(format!("{} -o {option}:\n  {e}", plan.name)),
            }
        }
    }
    println!(
        "{done} amended, {refused} refused, {} differ",
        failures.len()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}

#[test]
fn every_image_is_amended_alike() {
    all(VERSIONS, 1, |_| true);
    all(WIDTHS, 3, |_| true);
}

#[test]
fn sizes_are_changed_alike() {
    let slow = ["1 bit", "2 bit snapshots"];
    all(SIZES, 3, |plan| {
        !plan.qemu_breaks && !slow.contains(&plan.name)
    });
}

#[test]
fn refusals_come_in_the_same_order() {
    let some = [
        "v3",
        "v2",
        "zeros over backing",
        "lazy",
        "raw data file",
        "extended",
        "empty",
    ];
    all(REFUSED, 1, |plan| some.contains(&plan.name));
}

#[test]
fn data_files_are_renamed_alike() {
    all(DATA_FILE, 1, |plan| plan.data_file || plan.name == "v3");
}
