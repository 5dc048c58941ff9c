//! Images that claim more than they hold, and streams that inflate to more than they may: each conversion ends with
//! one sentence, in bounded memory and time, and leaves nothing.

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{differences, manners};
use instar_tests::places::Image;
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::{crafted, image, tools};

use crate::Outcome;
use crate::output_faults::Small;

/// Clusters of an image of the usual kind, in bytes.
const CLUSTER: usize = 64 << 10;
/// qcow2 "Cluster mapping": the flag of a compressed cluster.
const COMPRESSED: u64 = 1 << 62;

/// Runs ours, which must be orderly and leave no `out` unless it ends well.
fn ours(scratch: &Scratch, words: &[&str]) -> Result<Ran> {
    let _ = std::fs::remove_file(scratch.file("out"));
    let done = Run::new(&tools::instar()?, scratch.path())
        .args(words)
        .go()?;
    let mut wrong = manners(&done);
    let left = scratch.file("out").exists();
    if done.code != Some(0) && left {
        wrong.push("a file is left".into());
    }
    ensure!(
        wrong.is_empty(),
        "{words:?}: {wrong:?}\n{}",
        done.describe()
    );
    Ok(done)
}

/// Both say the same; what they make is `ours` and `out`.
fn both(scratch: &Scratch, words: &[&str]) -> Result<Ran> {
    let got = ours(scratch, words)?;
    if got.code == Some(0) {
        std::fs::rename(scratch.file("out"), scratch.file("ours"))?;
    }
    let want = Run::new(&tools::qemu_img()?, scratch.path())
        .args(words)
        .go()?;
    let wrong = differences(&want, &got);
    let (shown, oracle) = (got.describe(), want.describe());
    ensure!(wrong.is_empty(), "{words:?}: {wrong:?}\n{oracle}\n{shown}");
    Ok(got)
}

/// As [`both`], and the content is the same if they end well.
fn same(scratch: &Scratch, words: &[&str]) -> Result<Ran> {
    let got = both(scratch, words)?;
    if got.code == Some(0) {
        image::qemu_img(scratch, &["compare", "out", "ours"])?;
    }
    Ok(got)
}

/// The compressed stream of an image's first cluster, in whole sectors.
fn stream(scratch: &Scratch, options: &str, len: &str) -> Result<Vec<u8>> {
    image::create(scratch, "stream", &[options], "4M")?;
    image::io(scratch, "stream", &[&format!("write -c -P 7 0 {len}")])?;
    let image = Image::load(scratch, "stream")?;
    let entry = image.get(*image.used_l2_entries()?.first().context("an entry")?, 8)?;
    let bits = 62 - (image.field("cluster_bits")? - 8);
    let (offset, sectors) = (entry & ((1 << bits) - 1), (entry & !COMPRESSED) >> bits);
    let file = scratch.read("stream")?;
    let start = usize::try_from(offset)?;
    let end = (start / 512 + usize::try_from(sectors)? + 1) * 512;
    let bytes = file.get(start..end.min(file.len())).context("the stream")?;
    Ok(bytes.to_vec())
}

/// An image of `entries` clusters, each of which is `stream`, which lies in the file once.
fn transplant(
    scratch: &Scratch,
    name: &str,
    options: &str,
    entries: usize,
    stream: &[u8],
) -> Result<()> {
    let size = (entries * CLUSTER).max(4 << 20).to_string();
    image::create(scratch, name, &[options], &size)?;
    // So that each L2 table is there.
    for table in 0..entries.div_ceil(CLUSTER / 8) {
        let at = table * CLUSTER / 8 * CLUSTER;
        image::io(scratch, name, &[&format!("write -P 9 {at} 64k")])?;
    }
    let mut bytes = scratch.read(name)?;
    bytes.resize(bytes.len().next_multiple_of(CLUSTER), 0);
    let at = bytes.len();
    bytes.extend_from_slice(stream);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    scratch.write(name, &bytes)?;
    let mut image = Image::load(scratch, name)?;
    let sectors = stream.len().div_ceil(512) as u64 - 1;
    let entry = COMPRESSED | sectors << (62 - 8) | at as u64;
    for place in image.l2_entries()?.into_iter().take(entries) {
        image.set(place, 8, entry)?;
    }
    image.save(scratch, name)
}

#[test]
fn streams_of_another_length_are_read_as_by_the_oracle() -> Outcome {
    for (kind, lengths) in [("zlib", [0, 1]), ("zstd", [1, 1])] {
        let scratch = Scratch::new()?;
        let kind = format!("compression_type={kind}");
        let sizes = [("2M", "2M"), ("4k", "4k")];
        for ((cluster, len), code) in sizes.iter().zip(lengths) {
            let from = format!("{kind},cluster_size={cluster}");
            let stream = stream(&scratch, &from, len)?;
            transplant(&scratch, "bomb", &kind, 1, &stream)?;
            for words in [
                &["convert", "-O", "raw", "bomb", "out"][..],
                &["convert", "-O", "qcow2", "bomb", "out"],
                &["convert", "-c", "-O", "qcow2", "bomb", "out"],
                &["convert", "--salvage", "-O", "raw", "bomb", "out"],
                &["dd", "if=bomb", "of=out", "bs=64k"],
            ] {
                let done = same(&scratch, words).with_context(|| format!("{from}: {words:?}"))?;
                let salvaged = words.contains(&"--salvage");
                let told = done.describe();
                ensure!(salvaged || done.code == Some(code), "{from}: {told}");
            }
        }
    }
    Ok(())
}

/// A million clusters out of one: 64 GiB in a file of 9 MiB.
#[test]
fn one_stream_for_a_million_clusters_ends_at_a_limit() -> Outcome {
    let scratch = Scratch::new()?;
    let stream = stream(&scratch, "cluster_size=64k", "64k")?;
    transplant(&scratch, "bomb", "cluster_size=64k", 1 << 20, &stream)?;
    for (format, more) in [("raw", None), ("qcow2", None), ("qcow2", Some("-c"))] {
        let mut words = vec!["--timeout", "0.7", "convert", "-O", format];
        words.extend(more);
        words.extend(["bomb", "out"]);
        let done = ours(&scratch, &words)?;
        done.expect_code(1)?;
        ensure!(done.err().contains("--timeout"), "{}", done.describe());
    }
    // What it shows can be said without writing it.
    for words in ["map --output=json bomb", "measure -O raw bomb", "info bomb"] {
        let words: Vec<&str> = words.split(' ').collect();
        ours(&scratch, &words)?.expect_code(0)?;
    }
    Ok(())
}

#[test]
fn one_cluster_for_512_tib_ends_at_a_limit() -> Outcome {
    let scratch = Scratch::new()?;
    crafted::create_long(&scratch, "long", 1 << 20)?;
    for words in [
        &["convert", "-O", "qcow2", "long", "out"][..],
        &["convert", "-c", "-O", "qcow2", "long", "out"],
        &["compare", "long", "long"],
        &["dd", "-O", "qcow2", "if=long", "of=out", "bs=1M"],
    ] {
        let done = ours(&scratch, &[&["--timeout", "0.7"], words].concat())?;
        // For `compare`, 1 says that there is a difference.
        let code = if words.contains(&"compare") { 2 } else { 1 };
        done.expect_code(code)?;
        ensure!(done.err().contains("--timeout"), "{}", done.describe());
    }
    Ok(())
}

#[test]
fn a_pebibyte_is_converted_in_bounded_memory_or_refused() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "large", &["cluster_size=2M"], "1P")?;
    image::io(&scratch, "large", &["write -P 7 1125899906777088 64k"])?;
    for (words, code) in [
        ("convert -O qcow2 large out", 0),
        ("convert -c -O qcow2 -o cluster_size=2M large out", 0),
        ("convert -O qcow2 -o cluster_size=512 large out", 1),
        ("dd if=large of=out bs=1M skip=1073741823", 0),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let done = both(&scratch, &words)?;
        done.expect_code(code)?;
        if words.contains(&"convert") && code == 0 {
            let end = "read -P 7 1125899906777088 64k";
            image::io(&scratch, "ours", &[end, "read -P 0 0 1M"])?;
            image::qemu_img(&scratch, &["check", "-q", "ours"])?;
        } else if code == 0 {
            image::qemu_img(&scratch, &["compare", "ours", "out"])?;
        }
    }
    Ok(())
}

/// On a file system of 12 MiB, whose files end at 4 TiB.
#[test]
fn a_pebibyte_does_not_go_where_there_is_no_room_for_it() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "large", &["cluster_size=2M"], "1P")?;
    let _small = Small::mount(&scratch, "ext4")?;
    for (words, oracle) in [
        ("convert -O raw large small/out", true),
        ("convert -O raw -C large small/out", true),
        ("convert -O raw -o preallocation=full large small/out", true),
        ("dd if=large of=small/out bs=1M", true),
        // Here the oracle writes until there is no room, or takes hours.
        (
            "convert -O qcow2 -o preallocation=metadata large small/out",
            false,
        ),
        (
            "convert -O qcow2 -o preallocation=full large small/out",
            false,
        ),
        (
            "convert -O qcow2 -o data_file=small/data,data_file_raw=on large small/out",
            false,
        ),
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let done = if oracle {
            both(&scratch, &words)?
        } else {
            ours(&scratch, &words)?
        };
        done.expect_code(1)?;
        for name in ["small/out", "small/data"] {
            let left = scratch.file(name).exists() && !oracle;
            ensure!(!left, "{words:?}: {name} is left");
        }
        let _ = std::fs::remove_file(scratch.file("small/out"));
    }
    Ok(())
}

#[test]
fn sizes_that_the_tables_do_not_cover_are_refused_alike() -> Outcome {
    let scratch = Scratch::new()?;
    for (number, size) in [1_u64 << 40, 1 << 50, 1 << 62, u64::MAX - 511, u64::MAX]
        .into_iter()
        .enumerate()
    {
        let name = format!("lie{number}");
        image::create(&scratch, &name, &[], "1M")?;
        let mut lie = Image::load(&scratch, &name)?;
        lie.set_field("size", size)?;
        lie.save(&scratch, &name)?;
        for format in ["raw", "qcow2"] {
            let words = ["convert", "-f", "qcow2", "-O", format, &name, "out"];
            same(&scratch, &words)?.expect_code(1)?;
        }
    }
    Ok(())
}

#[test]
fn chains_that_loop_are_refused_by_every_command() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "sound", &[], "1M")?;
    image::create_overlay(&scratch, "one", "two", "qcow2")?;
    image::create_overlay(&scratch, "two", "one", "qcow2")?;
    image::create_overlay(&scratch, "three", "one", "qcow2")?;
    for words in [
        "convert -O raw one out",
        "convert -O qcow2 three out",
        "convert -O qcow2 sound three out",
        "convert -B one -F qcow2 -O qcow2 sound out",
        "create -f qcow2 -b one -F qcow2 out",
        "dd if=one of=out",
        "map one",
        "measure -O qcow2 three",
        "compare sound one",
        "compare one sound",
    ] {
        let words: Vec<&str> = words.split(' ').collect();
        let done = ours(&scratch, &words)?;
        let told = done.describe();
        // A difference between images is 1, an image that cannot be opened 2.
        let code = if words.contains(&"compare") { 2 } else { 1 };
        ensure!(done.code == Some(code), "{words:?}: {told}");
        ensure!(done.err().contains("infinite loop"), "{words:?}: {told}");
    }
    Ok(())
}
