//! `--memory` and `--timeout`.

use anyhow::ensure;
use instar_tests::compare::{Bench, differences, manners, orderly};
use instar_tests::crafted;
use instar_tests::image;
use instar_tests::live::LONG_IMAGE;
use instar_tests::scratch::Scratch;

use crate::Outcome;

#[test]
fn little_memory_gives_the_same_result_or_a_sentence() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "rich.qcow2", &["cluster_size=512"])?;
    // A million clusters with refcounts of 8 bytes.
    crafted::create_wide(&scratch, "wide.qcow2", 128)?;
    let mut bench = Bench::new(&scratch);
    let mut answers = 0;
    for name in ["rich.qcow2", "wide.qcow2"] {
        let want = bench.qemu_img(&["check", name])?;
        for memory in ["1M", "2M", "4M", "8M", "32M"] {
            let got = bench.instar(&["--memory", memory, "check", name])?;
            let mut found = manners(&got);
            if got.code == Some(1) {
                found.extend(orderly(&got));
                if !got.err().contains("--memory") || memory == "32M" {
                    found.push("it refused".into());
                }
            } else {
                found.extend(differences(&want, &got));
                answers += 1;
            }
            if !found.is_empty() {
                bench.fail(format!("{memory} {name}: {found:?}\n{}", got.describe()));
            }
        }
        bench.same(name, &["check", name])?;
    }
    ensure!(answers >= 5, "only {answers} runs gave a result");
    bench.finish()
}

#[test]
fn time_limit_ends_a_run() -> Outcome {
    let scratch = Scratch::new()?;
    crafted::create_long(&scratch, LONG_IMAGE, 1 << 20)?;
    let bench = Bench::new(&scratch);
    for (limit, shown) in [("1", "1 s"), ("0.3", "0.3 s")] {
        let got = bench.instar(&["check", "--output=json", "--timeout", limit, LONG_IMAGE])?;
        let mut found = orderly(&got);
        found.extend(manners(&got));
        ensure!(
            got.code == Some(1) && found.is_empty(),
            "{found:?}\n{}",
            got.describe()
        );
        let said = got.err();
        ensure!(
            said.contains("--timeout") && said.contains(shown),
            "{limit}: {}",
            got.describe()
        );
    }
    let got = bench.instar(&["--timeout", "1000000", "info", LONG_IMAGE])?;
    got.expect_code(0)?;
    Ok(())
}

#[test]
fn bad_limits_are_usage_errors() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "disk.qcow2", &[], "1M")?;
    let mut bench = Bench::new(&scratch);
    for (option, values) in [
        (
            "--timeout",
            &["0", "x", "", "nan", "inf", "1e400", "1s", "-1"][..],
        ),
        (
            "--memory",
            &["0", "1", "1K", "1X", "", "17E", "99999999999999999999", "M"],
        ),
    ] {
        for value in values {
            let word = format!("{option}={value}");
            bench.refused("limit", &["check", &word, "disk.qcow2"], &[option])?;
            bench.refused("limit", &[&word, "info", "disk.qcow2"], &[option])?;
        }
    }
    bench.finish()
}
