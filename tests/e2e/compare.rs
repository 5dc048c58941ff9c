//! `instar compare` against `qemu-img compare`: answers, exit codes, strict mode, damages.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CASES` says how many random pairs there are.

use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;

use crate::Outcome;
use crate::map_chains::{DAMAGES, Image, cases, chain};

/// Both orders, plain and strict.
fn same_pair(bench: &mut Bench<'_>, label: &str, one: &Image, two: &Image) -> Result<()> {
    for (a, b) in [(one, two), (two, one)] {
        for mode in ["-U", "-s"] {
            let args = [
                "compare", mode, "-f", a.format, "-F", b.format, &a.name, &b.name,
            ];
            bench.same(label, &args)?;
        }
    }
    Ok(())
}

#[test]
fn options_are_those_of_the_oracle() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "a", &[])?;
    image::create_filled(&scratch, "b", &["cluster_size=4k"])?;
    image::create_filled(&scratch, "longer", &[])?;
    image::qemu_img(&scratch, &["resize", "-q", "longer", "9M"])?;
    scratch.set_len("raw", 8 << 20)?;
    let mut bench = Bench::new(&scratch);
    for args in [
        &["a", "b"][..],
        &["-s", "a", "b"],
        &["-q", "a", "b"],
        &["-q", "a", "raw"],
        &["a", "raw"],
        &["raw", "a"],
        &["-f", "qcow2", "-F", "raw", "a", "raw"],
        &["--a-format=qcow2", "--b-format=raw", "a", "b"],
        &["a", "a"],
        &["a", "longer"],
        &["longer", "a"],
        &["-s", "a", "longer"],
        &["-q", "-s", "a", "longer"],
        &["-U", "a", "b"],
        &["-T", "none", "a", "b"],
        &["-T", "bogus", "a", "b"],
        &["-f", "bogus", "a", "b"],
        &["-F", "bogus", "a", "b"],
        &["-f", "qcow2", "raw", "a"],
        &["-F", "qcow2", "a", "raw"],
        &["missing", "a"],
        &["a", "missing"],
        &["--image-opts", "-f", "raw", "a", "b"],
        &["a"],
        &[],
        &["a", "b", "raw"],
    ] {
        bench.same("options", &[&["compare"], args].concat())?;
    }
    bench.finish()
}

#[test]
fn percentages_begin_and_end_as_the_oracles() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "a", &[])?;
    image::create_filled(&scratch, "b", &["cluster_size=4k"])?;
    scratch.set_len("raw", 8 << 20)?;
    let bench = Bench::new(&scratch);
    for args in [
        &["compare", "-p", "a", "b"][..],
        &["compare", "-p", "-q", "a", "b"],
        &["compare", "-p", "a", "raw"],
        &["compare", "-p", "-s", "a", "raw"],
        &["compare", "-p", "a", "missing"],
        &["compare", "-p", "-T", "bogus", "a", "b"],
    ] {
        let (want, got) = (bench.qemu_img(args)?, bench.instar(args)?);
        // What lies between the first percentage and the last line is a matter of time.
        let ends = |text: String| -> Option<(String, String)> {
            let all: Vec<&str> = text.split('\r').collect();
            let (first, last) = (all.first()?, all.last()?);
            Some(((*first).to_owned(), (*last).to_owned()))
        };
        ensure!(
            ends(want.out()) == ends(got.out()) && want.code == got.code,
            "{args:?}: {}\nqemu-img {}",
            got.describe(),
            want.describe()
        );
    }
    Ok(())
}

#[test]
fn random_pairs_are_judged_alike() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("compare");
    let mut bench = Bench::new(&scratch);
    for case in 0..cases(20) {
        let one = chain(&scratch, &mut rng, "a", 4)?;
        let two = match rng.below(3) {
            0 => chain(&scratch, &mut rng, "b", 4)?,
            _ => converted(&scratch, &mut rng, &one)?,
        };
        let label = format!("case {case} of seed {}", rng.seed());
        same_pair(&mut bench, &label, &one, &two)?;
    }
    bench.finish()
}

/// A copy of what the guest reads, in another form, sometimes with a byte changed.
fn converted(scratch: &Scratch, rng: &mut Rng, image: &Image) -> Result<Image> {
    let mut args = vec!["convert", "-f", image.format];
    let format = *rng.pick(&["raw", "qcow2", "qcow2"]);
    if format == "qcow2" && rng.below(2) == 0 {
        args.push("-c");
    }
    args.extend(["-O", format, &image.name, "copy"]);
    image::qemu_img(scratch, &args)?;
    if rng.below(2) == 0 {
        let at = rng.below(image.size / 512) * 512;
        let write = format!("write -P {} {at} 512", rng.below(4));
        let args = ["-f", format, "-c", &write, "copy"];
        let qemu_io = instar_tests::tools::qemu_io()?;
        instar_tests::run::Run::new(&qemu_io, scratch.path())
            .args(args)
            .go()?
            .expect_code(0)?;
    }
    Ok(Image {
        name: "copy".into(),
        format,
        size: image.size,
    })
}

#[test]
fn every_sector_of_a_large_disk_is_compared() -> Outcome {
    let scratch = Scratch::new()?;
    let mut rng = Rng::for_test("compare sectors");
    let mut bench = Bench::new(&scratch);
    let bytes: Vec<u8> = (0..9 << 20)
        .map(|_| 1 + u8::try_from(rng.below(255)).unwrap_or(0))
        .collect();
    scratch.write("one", &bytes)?;
    image::qemu_img(
        &scratch,
        &["convert", "-f", "raw", "-O", "qcow2", "one", "two"],
    )?;
    let raw = Image {
        name: "one".into(),
        format: "raw",
        size: 9 << 20,
    };
    let qcow2 = Image {
        name: "two".into(),
        format: "qcow2",
        ..raw.clone()
    };
    same_pair(&mut bench, "equal", &raw, &qcow2)?;
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(scratch.file("one"))?;
    for place in [
        0,
        511,
        512,
        (2 << 20) - 1,
        2 << 20,
        (5 << 20) + 77,
        (9 << 20) - 1,
    ] {
        let index = usize::try_from(place)?;
        let byte = *bytes.get(index).context("a place in the disk")?;
        file.write_all_at(&[!byte], place)?;
        same_pair(&mut bench, &format!("byte {place}"), &raw, &qcow2)?;
        file.write_all_at(&[byte], place)?;
    }
    bench.finish()
}

#[test]
fn damage_ends_with_its_code() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create(&scratch, "good", &[], "4M")?;
    image::io(&scratch, "good", &["write -P 7 0 300k"])?;
    scratch.set_len("longer", 6 << 20)?;
    for (index, damage) in DAMAGES.iter().enumerate() {
        let (name, label) = (format!("disk{index}"), format!("damage {index}"));
        damage.image(&scratch, &name)?;
        for other in ["good", "longer"] {
            bench.same(&label, &["compare", &name, other])?;
            bench.same(&label, &["compare", other, &name])?;
            bench.same(&label, &["compare", "-s", "-q", other, &name])?;
        }
    }
    bench.finish()
}
