//! `instar measure` beside `qemu-img measure`.
//!
//! `INSTAR_SEED` repeats a run, `INSTAR_CASES` says how many random chains are measured.

use anyhow::Result;
use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::rng::Rng;
use instar_tests::scratch::Scratch;

use crate::Outcome;
use crate::map_chains::{cases, chain};

/// Both forms.
fn same(bench: &mut Bench<'_>, args: &[&str]) -> Result<()> {
    bench.same("measure", &[&["measure"], args].concat())?;
    bench.same("measure", &[&["measure", "--output=json"], args].concat())
}

#[test]
fn command_lines_are_those_of_the_oracle() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "base", &[])?;
    image::create_overlay(&scratch, "top", "base", "qcow2")?;
    image::io(&scratch, "top", &["write 64k 100k", "write -z 0 64k"])?;
    image::create_rich(&scratch, "rich", &[])?;
    scratch.set_len("raw", 1_000_000)?;
    let mut bench = Bench::new(&scratch);
    for line in [
        "",
        "--size 1G",
        "--size 1001",
        "-O qcow2 --size 0",
        "-O qcow2 --size 1",
        "-O qcow2 --size 1P",
        "-O qcow2 --size 4E",
        "-O qcow2 --size 8E",
        "-O qcow2 --size abc",
        "-O qcow2 --size 9223372036854775807",
        "-O bogus --size 1M",
        "-O qcow2 -o compat=v2 --size 1M",
        "-O qcow2 -o compat=0.10,lazy_refcounts=on,extended_l2=on --size 1M",
        "-O qcow2 -o compat=0.10,refcount_bits=8 --size 1M",
        "-O qcow2 -o cluster_size=3 --size 1M",
        "-O qcow2 -o refcount_bits=3 --size 1M",
        "-O qcow2 -o extended_l2=on,cluster_size=4k --size 1M",
        "-O qcow2 -o preallocation=bogus --size 1M",
        "-O qcow2 -o compression_type=bogus --size 1M",
        "-O qcow2 -o bogus=1 --size 1M",
        "-O raw -o cluster_size=4k --size 1M",
        "-O qcow2 -o , --size 1M",
        "-O qcow2 -o backing_file=x,preallocation=full --size 1M",
        "-O qcow2 --size 1M -f qcow2",
        "-O qcow2 --size 1M -l x",
        "-O qcow2 --size 1M top",
        "-O qcow2 top base",
        "-O qcow2 top",
        "-O raw top",
        "-O qcow2 -o backing_file=base,backing_fmt=qcow2 top",
        "-O qcow2 -o cluster_size=2M top",
        "-O qcow2 -o extended_l2=on,cluster_size=16k top",
        "-O qcow2 -o preallocation=falloc top",
        "-O qcow2 -o size=1G,data_file=y top",
        "-O qcow2 -f raw top",
        "-O qcow2 -f bogus top",
        "-O qcow2 -U base",
        "-O qcow2 -l x base",
        "-O qcow2 missing",
        "-O qcow2 -o cluster_size=x missing",
        "-O bogus missing",
        "-O bogus base",
        "-O qcow2 -o bogus base",
        "-O qcow2 raw",
        "-O qcow2 rich",
        "-O qcow2 -o cluster_size=512 rich",
        "-O raw rich",
    ] {
        same(&mut bench, &line.split_whitespace().collect::<Vec<_>>())?;
    }
    // The oracle's JSON has a negative number here.
    let largest = ["measure", "-O", "raw", "--size", "9223372036854775807"];
    bench.same("largest", &largest)?;
    bench.same("form", &["measure", "--output=xml", "--size", "1"])?;
    bench.finish()
}

#[test]
fn random_chains_take_what_the_oracle_says() -> Outcome {
    let mut rng = Rng::for_test("measure");
    for _ in 0..cases(12) {
        let scratch = Scratch::new()?;
        let top = chain(&scratch, &mut rng, "m", 4)?;
        let mut bench = Bench::new(&scratch);
        for _ in 0..4 {
            let bits = 9 + rng.below(13);
            let mut options = format!("cluster_size={}", 1_u64 << bits);
            if bits >= 14 && rng.below(2) == 0 {
                options.push_str(",extended_l2=on");
            }
            options.push_str(&format!(",refcount_bits={}", 1 << rng.below(7)));
            same(
                &mut bench,
                &["-O", "qcow2", "-o", &options, "-f", top.format, &top.name],
            )?;
        }
        bench.finish()?;
    }
    Ok(())
}
