//! Wrong and unusual command lines.

use instar_tests::compare::Bench;
use instar_tests::image;
use instar_tests::scratch::Scratch;

use crate::Outcome;

#[test]
fn usage_errors_have_the_oracles_first_line() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create(&scratch, "disk.qcow2", &[], "1M")?;
    for command in ["info", "check"] {
        for args in [
            &[][..],
            &["one", "two"],
            &["--output=xml", "disk.qcow2"],
            &["--output=", "disk.qcow2"],
            &["-f", "nonsense", "disk.qcow2"],
            &["missing.qcow2"],
            &["folder/missing.qcow2"],
            &[""],
        ] {
            let mut words = vec![command];
            words.extend(args);
            bench.same(command, &words)?;
        }
    }
    bench.same("cache", &["check", "-T", "bogus", "disk.qcow2"])?;
    bench.finish()
}

#[test]
fn wrong_use_has_one_line() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create(&scratch, "disk.qcow2", &[], "1M")?;
    for args in [
        &["info", "--nonsense", "disk.qcow2"][..],
        &["check", "--nonsense=3", "disk.qcow2"],
        &["info", "disk.qcow2", "-f"],
        &["check", "disk.qcow2", "-T"],
        &["info", "-z", "disk.qcow2"],
    ] {
        bench.same("option", args)?;
    }
    // getopt takes the next word for the value, whatever it is.
    bench.refused("option", &["info", "-f", "-U", "disk.qcow2"], &["--format"])?;
    bench.finish()
}

#[test]
fn options_in_every_order_and_spelling() -> Outcome {
    let scratch = Scratch::new()?;
    let mut bench = Bench::new(&scratch);
    image::create(&scratch, "disk.qcow2", &[], "1M")?;
    image::create(&scratch, "-dash.qcow2", &[], "1M").ok();
    for args in [
        &["info", "disk.qcow2", "--output", "json"][..],
        &["info", "--output", "human", "disk.qcow2"],
        &["info", "-fqcow2", "disk.qcow2"],
        &["info", "--format=qcow2", "disk.qcow2"],
        &["info", "--format", "qcow2", "--force-share", "disk.qcow2"],
        &["info", "-b", "-U", "disk.qcow2"],
        &["info", "--", "disk.qcow2"],
        &["info", "./disk.qcow2"],
        &["check", "disk.qcow2", "-q"],
        &["check", "--quiet", "disk.qcow2"],
        &["check", "-U", "--output=json", "disk.qcow2", "-f", "qcow2"],
        &["check", "-T", "none", "-q", "disk.qcow2"],
    ] {
        bench.same("spelling", args)?;
    }
    bench.finish()
}
