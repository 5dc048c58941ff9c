//! What `convert` and `dd` say when they refuse, beside `qemu-img`.

use anyhow::ensure;
use instar_tests::compare::{Bench, differences, manners};
use instar_tests::image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

/// Words of conversions that are refused, or only print something.
const REFUSED: &[&str] = &[
    "convert",
    "convert a.qcow2",
    "convert -f bogus a.qcow2 b",
    "convert -O bogus a.qcow2 b",
    "convert -O raw -c a.qcow2 b",
    "convert -O qcow2 -C -c a.qcow2 b",
    "convert -O raw -C -S 4k a.qcow2 b",
    "convert -O raw -S 0 -C a.qcow2 b",
    "convert --salvage -C a.qcow2 b",
    "convert -C -c -S 4k",
    "convert -B a.qcow2 -O raw a.qcow2 b",
    "convert -B a.qcow2 -O qcow2 a.qcow2 o.qcow2 b",
    "convert -B a.qcow2 -O qcow2 o.qcow2 b",
    "convert -F qcow2 -O qcow2 o.qcow2 b",
    "convert -B a.qcow2 -F bogus -O qcow2 o.qcow2 b",
    "convert -B nope -F qcow2 -O qcow2 o.qcow2 b",
    "convert -B r.raw -F qcow2 -O qcow2 o.qcow2 b",
    "convert -n -O raw a.qcow2 nope",
    "convert -n -O raw a.qcow2 small.raw",
    "convert -n -O qcow2 a.qcow2 small.raw",
    "convert -n -O raw -o preallocation=full a.qcow2 small.raw",
    "convert -n -o a=b nope b",
    "convert --target-is-zero -O raw a.qcow2 b",
    "convert --target-is-zero a.qcow2",
    "convert --bitmaps -O raw a.qcow2 b",
    "convert --bitmaps r.raw -O qcow2 b",
    "convert --bitmaps -O qcow2 a.qcow2 a.qcow2 b",
    "convert --skip-broken-bitmaps -O qcow2 a.qcow2 b",
    "convert --skip-broken-bitmaps --target-is-zero a.qcow2 b",
    "convert -m 0 a.qcow2 b",
    "convert -m 17 a.qcow2 b",
    "convert -m x a.qcow2 b",
    "convert -m 1.5 a.qcow2 b",
    "convert -r x a.qcow2 b",
    "convert -r -1 a.qcow2 b",
    "convert -S x a.qcow2 b",
    "convert -S 1000 a.qcow2 b",
    "convert -S 3000 a.qcow2 b",
    "convert -S 1G a.qcow2 b",
    "convert -S -1 a.qcow2 b",
    "convert -S x nope b",
    "convert -t bogus a.qcow2 b",
    "convert -T bogus a.qcow2 b",
    "convert -t bogus -O raw nope b",
    "convert -T bogus -O raw nope b",
    "convert -l nope a.qcow2 b",
    "convert -l nope a.qcow2 nope b",
    "convert -l snapshot.id=9 a.qcow2 b",
    "convert -l snapshot.id=1,snapshot.name=other a.qcow2 b",
    "convert -l snapshot.foo=x a.qcow2 b",
    "convert -l x a.qcow2 a.qcow2 b",
    "convert -l x -O bogus a.qcow2 b",
    "convert -o bogus=1 -O qcow2 a.qcow2 b",
    "convert -o bogus=1 -O qcow2 nope b",
    "convert -o size=x -O raw a.qcow2 b",
    "convert -o cluster_size=3 -O qcow2 a.qcow2 b",
    "convert -o cluster_size=x -O qcow2 nope b",
    "convert -o ,x -O qcow2 a.qcow2 b",
    "convert -c -O qcow2 -o preallocation=metadata a.qcow2 b",
    "convert -c -O qcow2 -o compression_type=zstd,compat=0.10 a.qcow2 b",
    "convert -O qcow2 -o compat=0.10,lazy_refcounts=on a.qcow2 b",
    "convert -O qcow2 -o extended_l2=on,cluster_size=4k a.qcow2 b",
    "convert -O qcow2 -o help",
    "convert -O qcow2 -o help a.qcow2 b",
    "convert -O raw -o help a.qcow2 b",
    "convert -O raw -c nope b",
    "convert -O bogus nope b",
    "convert a.qcow2 nope b",
    "convert a.qcow2 nodir/b",
    "convert a.qcow2 .",
    "convert -O qcow2 a.qcow2 a.qcow2",
    "convert -O raw o.qcow2 a.qcow2",
    "dd",
    "dd if=a.qcow2",
    "dd of=b",
    "dd if=nope of=b",
    "dd if=a.qcow2 of=b bs=0",
    "dd if=a.qcow2 of=b bs=x",
    "dd if=a.qcow2 of=b count=-1",
    "dd if=a.qcow2 of=b foo=1",
    "dd if=a.qcow2 of=b foo",
    "dd -O bogus if=a.qcow2 of=b",
    "dd -f bogus if=a.qcow2 of=b",
    "dd if=a.qcow2 of=a.qcow2",
    "dd if=a.qcow2 of=nodir/b",
];

#[test]
fn refusals_read_as_those_of_qemu_img() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "a.qcow2", &[], "4M")?;
    image::io(&scratch, "a.qcow2", &["write -P 1 0 1M"])?;
    image::create_overlay(&scratch, "o.qcow2", "a.qcow2", "qcow2")?;
    scratch.set_len("small.raw", 2 << 20)?;
    scratch.write("r.raw", &[7; 4096])?;
    let bench = Bench::new(&scratch);
    let mut failures = Vec::new();
    for words in REFUSED {
        let list: Vec<&str> = words.split(' ').collect();
        let want = bench.qemu_img(&list)?;
        let _ = std::fs::remove_file(scratch.file("b"));
        let before = scratch.fingerprints()?;
        let got = bench.instar(&list)?;
        let mut wrong = differences(&want, &got);
        wrong.extend(manners(&got));
        if scratch.fingerprints()? != before {
            wrong.push("a file was changed".into());
        }
        if !wrong.is_empty() {
            let wrong = wrong.join("\n");
            let (want, got) = (want.describe(), got.describe());
            failures.push(format!("{words}: {wrong}\n{want}\n{got}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}
