//! What a name found in an image may open, and what not.
//!
//! The program differs from `qemu-img` here on purpose: these tests state our
//! rules, and fail when `INSTAR_BIN` is `qemu-img`.

use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::places::Image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

/// What a refusal names: both ways to allow the folder.
const WAYS: &[&str] = &["INSTAR_ALLOW_PATH", "--allow-path"];

/// A folder `images` with an overlay, and a folder `outside` with its base.
fn two_folders() -> anyhow::Result<Scratch> {
    let scratch = Scratch::new()?;
    for folder in ["images", "outside"] {
        std::fs::create_dir(scratch.file(folder))?;
    }
    image::create_filled(&scratch, "outside/base.qcow2", &[])?;
    image::create_filled(&scratch, "images/base.qcow2", &[])?;
    Ok(scratch)
}

/// Both commands that open the backing file refuse, and say how to allow it;
/// `info` alone does not open it and agrees with the oracle.
fn refused_with_ways(bench: &mut Bench, name: &str) -> Outcome {
    bench.same_info(name, name)?;
    bench.refused(name, &["check", name], WAYS)?;
    bench.refused(name, &["info", "--backing-chain", name], WAYS)?;
    let json = ["info", "--backing-chain", "--output=json", name];
    bench.refused(name, &json, WAYS)
}

/// Both commands that open the backing file agree with the oracle.
fn opened(bench: &mut Bench, name: &str) -> Outcome {
    bench.same(name, &["check", name])?;
    bench.same(name, &["info", "--backing-chain", name])
}

#[test]
fn backing_file_outside_the_folder_is_refused() -> Outcome {
    let scratch = two_folders()?;
    let absolute = scratch.file("outside/base.qcow2").display().to_string();
    image::create_overlay(
        &scratch,
        "images/dots.qcow2",
        "../outside/base.qcow2",
        "qcow2",
    )?;
    image::create_overlay(&scratch, "images/abs.qcow2", &absolute, "qcow2")?;
    image::create_overlay(
        &scratch,
        "images/file.qcow2",
        &format!("file:{absolute}"),
        "qcow2",
    )?;
    let mut bench = Bench::new(&scratch);
    for name in ["images/dots.qcow2", "images/abs.qcow2", "images/file.qcow2"] {
        refused_with_ways(&mut bench, name)?;
    }
    bench.finish()
}

#[test]
fn data_file_outside_the_folder_is_refused() -> Outcome {
    let scratch = two_folders()?;
    let data = scratch.file("outside/disk.data").display().to_string();
    image::create_filled(
        &scratch,
        "images/disk.qcow2",
        &[&format!("data_file={data}")],
    )?;
    let mut bench = Bench::new(&scratch);
    bench.same_info("not opened", "images/disk.qcow2")?;
    bench.refused("data file", &["check", "images/disk.qcow2"], WAYS)?;
    bench.env("INSTAR_ALLOW_PATH", scratch.file("outside"));
    bench.same("allowed", &["check", "images/disk.qcow2"])?;
    bench.finish()
}

#[test]
fn backing_file_inside_the_folder_is_opened() -> Outcome {
    let scratch = two_folders()?;
    let absolute = scratch.file("images/base.qcow2").display().to_string();
    image::create_overlay(&scratch, "images/plain.qcow2", "base.qcow2", "qcow2")?;
    image::create_overlay(&scratch, "images/abs.qcow2", &absolute, "qcow2")?;
    image::create_overlay(
        &scratch,
        "images/dots.qcow2",
        "../images/base.qcow2",
        "qcow2",
    )?;
    let mut bench = Bench::new(&scratch);
    for name in [
        "images/plain.qcow2",
        "images/abs.qcow2",
        "images/dots.qcow2",
    ] {
        opened(&mut bench, name)?;
    }
    bench.finish()
}

#[test]
fn the_environment_allows_a_folder() -> Outcome {
    let scratch = two_folders()?;
    image::create_overlay(
        &scratch,
        "images/dots.qcow2",
        "../outside/base.qcow2",
        "qcow2",
    )?;
    let mut bench = Bench::new(&scratch);
    bench.env("INSTAR_ALLOW_PATH", scratch.file("outside"));
    opened(&mut bench, "images/dots.qcow2")?;
    bench.env("INSTAR_ALLOW_PATH", scratch.file("nowhere"));
    refused_with_ways(&mut bench, "images/dots.qcow2")?;
    bench.finish()
}

#[test]
fn the_flag_allows_a_folder() -> Outcome {
    let scratch = two_folders()?;
    image::create_overlay(
        &scratch,
        "images/dots.qcow2",
        "../outside/base.qcow2",
        "qcow2",
    )?;
    let outside = scratch.file("outside").display().to_string();
    let mut bench = Bench::new(&scratch);
    for words in [&["check"][..], &["info", "--backing-chain"]] {
        let plain: Vec<&str> = words.iter().copied().chain(["images/dots.qcow2"]).collect();
        let want = bench.qemu_img(&plain)?;
        let mut allowed = words.to_vec();
        allowed.extend(["--allow-path", &outside, "images/dots.qcow2"]);
        let got = bench.instar(&allowed)?;
        let found = instar_tests::compare::differences(&want, &got);
        if !found.is_empty() {
            bench.fail(format!("{allowed:?}: {found:?}\n{}", got.describe()));
        }
    }
    refused_with_ways(&mut bench, "images/dots.qcow2")?;
    bench.finish()
}

#[test]
fn links_that_leave_the_folder_are_refused() -> Outcome {
    let scratch = two_folders()?;
    std::os::unix::fs::symlink("../outside/base.qcow2", scratch.file("images/link.qcow2"))?;
    std::os::unix::fs::symlink("../outside", scratch.file("images/sub"))?;
    std::os::unix::fs::symlink("base.qcow2", scratch.file("images/inner.qcow2"))?;
    image::create_overlay(&scratch, "images/one.qcow2", "link.qcow2", "qcow2")?;
    image::create_overlay(&scratch, "images/two.qcow2", "sub/base.qcow2", "qcow2")?;
    image::create_overlay(&scratch, "images/three.qcow2", "inner.qcow2", "qcow2")?;
    let mut bench = Bench::new(&scratch);
    refused_with_ways(&mut bench, "images/one.qcow2")?;
    refused_with_ways(&mut bench, "images/two.qcow2")?;
    opened(&mut bench, "images/three.qcow2")?;
    bench.finish()
}

#[test]
fn protocol_and_json_names_are_refused() -> Outcome {
    let scratch = two_folders()?;
    let mut bench = Bench::new(&scratch);
    for backing in [
        "nbd://localhost:1/disk",
        "nbd:localhost:1",
        "https://localhost:1/disk.qcow2",
        "ssh://localhost/disk.qcow2",
        "fat:images",
        "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"images/base.qcow2\"}}",
    ] {
        image::create_overlay(&scratch, "images/net.qcow2", backing, "raw")?;
        bench.refused(backing, &["check", "images/net.qcow2"], &[])?;
        bench.refused(
            backing,
            &["info", "--backing-chain", "images/net.qcow2"],
            &[],
        )?;
    }
    bench.finish()
}

/// An overlay in `images` whose backing file `backing` has no stated format.
fn without_format(scratch: &Scratch, backing: &str) -> Outcome {
    image::create_overlay(scratch, "images/top.qcow2", backing, "raw")?;
    let mut top = Image::load(scratch, "images/top.qcow2")?;
    top.forget_backing_format()?;
    top.save(scratch, "images/top.qcow2")
}

#[test]
fn backing_file_without_a_format_is_never_taken_for_raw() -> Outcome {
    let scratch = two_folders()?;
    let mut bench = Bench::new(&scratch);
    scratch.write("images/base.raw", &[1; 100_000])?;
    without_format(&scratch, "base.raw")?;
    bench.same_info("the name is shown", "images/top.qcow2")?;
    bench.refused("raw", &["check", "images/top.qcow2"], &["format"])?;
    bench.refused(
        "raw",
        &["info", "--backing-chain", "images/top.qcow2"],
        &["format"],
    )?;
    // A known header says the format by itself.
    without_format(&scratch, "base.qcow2")?;
    opened(&mut bench, "images/top.qcow2")?;
    bench.finish()
}

#[test]
fn raw_file_named_by_the_user_is_an_image() -> Outcome {
    let scratch = two_folders()?;
    let mut bench = Bench::new(&scratch);
    scratch.write("images/base.raw", &[1; 100_000])?;
    image::create_overlay(&scratch, "images/top.qcow2", "base.raw", "raw")?;
    bench.same_both("named by the user", "images/base.raw")?;
    opened(&mut bench, "images/top.qcow2")?;
    bench.finish()
}

#[test]
fn relative_data_file_starts_at_the_current_folder() -> Outcome {
    let scratch = two_folders()?;
    image::create_filled(
        &scratch,
        "images/disk.qcow2",
        &["data_file=images/disk.data"],
    )?;
    image::create_filled(&scratch, "plain.qcow2", &["data_file=plain.data"])?;
    let mut bench = Bench::new(&scratch);
    bench.same(
        "beside the image, named from here",
        &["check", "images/disk.qcow2"],
    )?;
    std::fs::rename(
        scratch.file("plain.qcow2"),
        scratch.file("images/plain.qcow2"),
    )?;
    std::fs::rename(
        scratch.file("plain.data"),
        scratch.file("images/plain.data"),
    )?;
    // QEMU would look for ./plain.data, which is outside the image's folder.
    bench.refused(
        "only beside the image",
        &["check", "images/plain.qcow2"],
        WAYS,
    )?;
    bench.finish()
}
