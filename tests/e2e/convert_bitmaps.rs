//! `convert --bitmaps`: the bits that arrive are those that `qemu-img` copies, read from the file and by QEMU.

use anyhow::{Context, Result, ensure};
use instar_tests::scratch::Scratch;
use instar_tests::twins::Twins;
use instar_tests::{hidden, image};

use crate::Outcome;

/// The image with bitmaps.
const SOURCE: &str = "source.qcow2";
/// What is made of it.
const OUT: &str = "out.qcow2";

/// An overlay with bitmaps of several granularities, one disabled, one empty, one merged, one full; its backing file
/// has one too, which nobody copies.
fn stage(folder: &Scratch, options: &[&str]) -> Result<()> {
    let bitmap = |name: &str, more: &[&str], file: &str| {
        let words = [&["bitmap"], more, &[file, name]].concat();
        image::qemu_img(folder, &words).map(drop)
    };
    image::create(folder, "base.qcow2", &[], "20M")?;
    image::io(folder, "base.qcow2", &["write -P 3 0 3M"])?;
    bitmap("below", &["--add"], "base.qcow2")?;
    let below = "backing_file=base.qcow2,backing_fmt=qcow2";
    image::create(folder, SOURCE, &[&[below], options].concat(), "33555968")?;
    bitmap("fine", &["--add", "-g", "512"], SOURCE)?;
    bitmap("usual", &["--add"], SOURCE)?;
    bitmap("coarse", &["--add", "-g", "2M"], SOURCE)?;
    let commands = [
        "write -P 5 512k 70k",
        "write -z 9M 1M",
        "write 33555456 512",
    ];
    image::io(folder, SOURCE, &commands)?;
    bitmap("fine", &["--disable"], SOURCE)?;
    bitmap("full", &["--add", "-g", "64k"], SOURCE)?;
    image::io(folder, SOURCE, &["write -P 6 0 2M", "write -z 2M 31458816"])?;
    let all = ["--add", "--merge", "fine", "--merge", "coarse"];
    bitmap("merged", &all, SOURCE)?;
    bitmap("empty", &["--add", "--disable"], SOURCE)
}

fn twins(options: &[&str]) -> Result<Twins> {
    let twins = Twins::new()?;
    twins.build(|folder| stage(folder, options))?;
    Ok(twins)
}

/// The same words, the same image, the same bits; the exit code.
fn same(twins: &mut Twins, words: &str) -> Result<i32> {
    let words: Vec<&str> = words.split(' ').collect();
    let code = twins.run(&words)?;
    if code == 0 {
        twins.compare_after_io(OUT)?;
    } else {
        ensure!(
            !twins.ours().file(OUT).exists(),
            "{words:?}: a file is left"
        );
    }
    Ok(code)
}

fn clean(twins: &Twins) {
    for folder in [twins.ours(), twins.theirs()] {
        for name in [OUT, "out.data"] {
            let _ = std::fs::remove_file(folder.file(name));
        }
    }
}

#[test]
fn bits_arrive_in_every_kind_of_target() -> Outcome {
    for options in [&[][..], &["cluster_size=4k"], &["extended_l2=on"]] {
        let mut twins = twins(options)?;
        for way in [
            "",
            "-c",
            "-o cluster_size=512",
            "-o cluster_size=2M",
            "-o refcount_bits=1",
            "-o extended_l2=on",
            "-o data_file=out.data",
            "-o preallocation=metadata",
            "-C",
            "-m 1",
            "-W",
            "-B base.qcow2 -F qcow2",
        ] {
            clean(&twins);
            let space = if way.is_empty() { "" } else { " " };
            let words = format!("convert --bitmaps -O qcow2{space}{way} {SOURCE} {OUT}");
            let code = same(&mut twins, &words)?;
            ensure!(code == 0, "{words}: exit code {code}");
        }
        clean(&twins);
        // Read by QEMU, which writes what it has read into other bitmaps.
        let words = format!("convert --bitmaps -O qcow2 {SOURCE} {OUT}");
        same(&mut twins, &words)?;
        let names = ["fine", "usual", "coarse", "full", "merged", "empty"];
        for folder in [twins.ours(), twins.theirs()] {
            for name in names {
                let read = format!("read-{name}");
                let words = ["bitmap", "--add", "-g", "512", "--merge", name, OUT, &read];
                image::qemu_img(folder, &words).with_context(|| name.to_owned())?;
            }
        }
        twins.compare_after_io(OUT)?;
    }
    Ok(())
}

#[test]
fn bits_go_from_one_copy_to_the_next() -> Outcome {
    let mut twins = twins(&[])?;
    let words = format!("convert --bitmaps -c -O qcow2 {SOURCE} next.qcow2");
    ensure!(twins.run(&words.split(' ').collect::<Vec<_>>())? == 0);
    // Both write on: the bitmaps that are enabled follow.
    twins.io("next.qcow2", &["write -P 8 20M 100k"])?;
    let words = format!("convert --bitmaps -O qcow2 next.qcow2 {OUT}");
    ensure!(same(&mut twins, &words)? == 0);
    Ok(())
}

#[test]
fn bitmaps_that_cannot_be_copied_are_refused_alike() -> Outcome {
    let mut twins = twins(&[])?;
    for words in [
        "convert --bitmaps -O qcow2 -o compat=0.10 source.qcow2 out.qcow2",
        "convert --bitmaps -O raw source.qcow2 out.qcow2",
        "convert --bitmaps -O qcow2 source.qcow2 base.qcow2 out.qcow2",
        "convert --bitmaps -O qcow2 -l nope source.qcow2 out.qcow2",
        "convert --skip-broken-bitmaps -O qcow2 source.qcow2 out.qcow2",
        "convert --bitmaps -f raw -O qcow2 source.qcow2 out.qcow2",
    ] {
        clean(&twins);
        let code = same(&mut twins, words)?;
        ensure!(code == 1, "{words}: exit code {code}");
    }
    Ok(())
}

#[test]
fn broken_bitmaps_are_refused_or_skipped_alike() -> Outcome {
    let mut twins = twins(&[])?;
    for folder in [twins.ours(), twins.theirs()] {
        hidden::mark_bitmap_in_use(&folder.file(SOURCE))?;
    }
    let refused = same(
        &mut twins,
        "convert --bitmaps -O qcow2 source.qcow2 out.qcow2",
    )?;
    ensure!(refused == 1, "exit code {refused}");
    clean(&twins);
    let skipped = same(
        &mut twins,
        "convert --bitmaps --skip-broken-bitmaps -O qcow2 source.qcow2 out.qcow2",
    )?;
    ensure!(skipped == 0, "exit code {skipped}");
    Ok(())
}
