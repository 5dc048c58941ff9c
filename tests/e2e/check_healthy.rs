//! `check` on images without damage, with leaks, and its options.

use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::places::Image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

#[test]
fn rich_images() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for list in [
        vec![],
        vec!["compat=0.10"],
        vec!["cluster_size=512"],
        vec!["cluster_size=2M"],
        vec!["extended_l2=on"],
        vec!["extended_l2=on", "cluster_size=16k"],
        vec!["refcount_bits=64"],
        vec!["refcount_bits=8", "cluster_size=4k"],
        vec!["refcount_bits=2"],
        vec!["lazy_refcounts=on"],
    ] {
        image::create_rich(&scratch, "rich.qcow2", &list)?;
        bench.same_both(&format!("{list:?}"), "rich.qcow2")?;
        image::qemu_img(&scratch, &["snapshot", "-d", "first", "rich.qcow2"])?;
        bench.same_both(&format!("{list:?}, one deleted"), "rich.qcow2")?;
    }
    bench.finish()
}

#[test]
fn fragmented_images() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for list in [vec![], vec!["cluster_size=4k"], vec!["extended_l2=on"]] {
        image::create(&scratch, "frag.qcow2", &list, "8M")?;
        for step in (0..64_u32).rev() {
            let at = format!("write -P 5 {}k 4k", step * 2 * 64 % 8192);
            image::io(&scratch, "frag.qcow2", &[&at])?;
        }
        bench.same_both(&format!("{list:?}"), "frag.qcow2")?;
    }
    bench.finish()
}

#[test]
fn converted_compressed_images() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    let mut noise = instar_tests::rng::Rng::for_test("converted_compressed_images");
    let bytes: Vec<u8> = (0..1_500_000_usize)
        .map(|at| match (at >> 14) & 1 {
            0 => b'x',
            _ => noise.next_u64().to_le_bytes()[0],
        })
        .collect();
    scratch.write("src.raw", &bytes)?;
    for kind in ["zlib", "zstd"] {
        for size in ["512", "4k", "64k", "2M"] {
            let list = format!("compression_type={kind},cluster_size={size}");
            image::qemu_img(
                &scratch,
                &[
                    "convert", "-c", "-O", "qcow2", "-o", &list, "src.raw", "c.qcow2",
                ],
            )?;
            bench.same_both(&list, "c.qcow2")?;
        }
    }
    bench.finish()
}

#[test]
fn leaks() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    for bits in [1_u32, 2, 4, 8, 16, 32, 64] {
        let width = format!("refcount_bits={bits}");
        image::create_filled(&scratch, "disk.qcow2", &[&width])?;
        let mut leaky = Image::load(&scratch, "disk.qcow2")?;
        // Clusters that the file has and nothing uses.
        let last = leaky.clusters()?;
        scratch.set_len("disk.qcow2", (last as u64 + 8) * 65_536)?;
        leaky = Image::load(&scratch, "disk.qcow2")?;
        for cluster in last..last + 5 {
            leaky.set_refcount(cluster, 1)?;
        }
        leaky.save(&scratch, "leaky.qcow2")?;
        bench.same_check(&width, "leaky.qcow2")?;
        bench.same("quiet", &["check", "-q", "leaky.qcow2"])?;
        // A leak beside an error.
        leaky.set_refcount(1, 0)?;
        leaky.save(&scratch, "leaky.qcow2")?;
        bench.same_check(&format!("{width} and an error"), "leaky.qcow2")?;
        bench.same("quiet", &["check", "-q", "leaky.qcow2"])?;
        bench.same("quiet", &["check", "-q", "--output=json", "leaky.qcow2"])?;
    }
    bench.finish()
}

#[test]
fn cache_modes() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_rich(&scratch, "disk.qcow2", &[])?;
    // The loop mounts that refuse direct I/O refuse it for both programs.
    for mode in [
        "none",
        "writeback",
        "writethrough",
        "directsync",
        "unsafe",
        "off",
        "",
        "bogus",
        "NONE",
    ] {
        bench.same(mode, &["check", "-T", mode, "disk.qcow2"])?;
    }
    bench.finish()
}

#[test]
fn large_sparse_image() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create(
        &scratch,
        "large.qcow2",
        &["preallocation=metadata", "cluster_size=64k"],
        "16G",
    )?;
    bench.same_both("262144 clusters", "large.qcow2")?;
    bench.finish()
}

#[test]
fn lazy_refcounts_left_dirty() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_filled(&scratch, "disk.qcow2", &["lazy_refcounts=on"])?;
    let mut dirty = Image::load(&scratch, "disk.qcow2")?;
    dirty.set_field("incompatible_features", 1)?;
    let clusters = dirty.clusters()?;
    for cluster in clusters - 3..clusters {
        dirty.set_refcount(cluster, 0)?;
    }
    dirty.save(&scratch, "dirty.qcow2")?;
    bench.same_both("refcounts behind", "dirty.qcow2")?;
    bench.finish()
}
