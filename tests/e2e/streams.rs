//! What goes to which stream.

use anyhow::{Context, ensure};
use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::places::Image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

#[test]
fn json_on_standard_output_parses() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_rich(&scratch, "rich.qcow2", &[])?;
    let mut damaged = Image::load(&scratch, "rich.qcow2")?;
    damaged.set_refcount(1, 0)?;
    damaged.save(&scratch, "damaged.qcow2")?;
    for name in ["rich.qcow2", "damaged.qcow2"] {
        for args in [
            &["info", "--output=json", name][..],
            &["info", "--backing-chain", "--output=json", name],
            &["check", "--output=json", name],
        ] {
            bench.same(name, args)?;
            let got = bench.instar(args)?;
            serde_json::from_slice::<serde_json::Value>(&got.stdout)
                .with_context(|| format!("{args:?}: {}", got.describe()))?;
        }
    }
    bench.finish()
}

#[test]
fn errors_leave_standard_output_empty() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_overlay(&scratch, "top.qcow2", "gone.raw", "raw")?;
    for args in [
        &["info", "--output=json", "missing"][..],
        &["check", "--output=json", "missing"],
        &["info", "--output=json", "--backing-chain", "top.qcow2"],
        &["check", "--output=json", "top.qcow2"],
    ] {
        bench.same("error", args)?;
        let got = bench.instar(args)?;
        ensure!(got.stdout.is_empty(), "{args:?}: {}", got.describe());
        ensure!(!got.stderr.is_empty(), "{args:?}: {}", got.describe());
    }
    bench.finish()
}

#[test]
fn quiet_check_prints_nothing_on_standard_output() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create_rich(&scratch, "rich.qcow2", &[])?;
    for args in [
        &["check", "-q", "rich.qcow2"][..],
        &["check", "-q", "--output=json", "rich.qcow2"],
    ] {
        bench.same("quiet", args)?;
        let got = bench.instar(args)?;
        ensure!(
            got.stdout.is_empty() && got.stderr.is_empty(),
            "{}",
            got.describe()
        );
    }
    bench.finish()
}
