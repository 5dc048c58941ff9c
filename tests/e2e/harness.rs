//! The comparison itself: it must see a difference where there is one.

use std::time::Duration;

use anyhow::ensure;
use instar_tests::compare::{differences, manners, normal_stderr, orderly};
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::tools;

use crate::Outcome;

fn ran(code: i32, stdout: &str, stderr: &str) -> Ran {
    Ran {
        code: Some(code),
        signal: None,
        stdout: stdout.into(),
        stderr: stderr.into(),
        max_rss_kib: 1,
        elapsed: Duration::ZERO,
        timed_out: false,
    }
}

#[test]
fn allowed_differences_are_exactly_prefix_and_hint() {
    let want = ran(
        1,
        "",
        "qemu-img: No\nTry 'qemu-img info --help' for more info\n",
    );
    assert!(differences(&want, &ran(1, "", "instar: No\nhint: yes\n")).is_empty());
    assert!(differences(&want, &ran(1, "", "instar: No\n")).is_empty());
    for other in [
        ran(2, "", "instar: No\n"),
        ran(1, " ", "instar: No\n"),
        ran(1, "", "instar: no\n"),
        ran(1, "", "instar: No\nhint: a\nmore\n"),
        ran(1, "", "instar: No\nhint: a\nhint: b\n"),
        ran(1, "", ""),
    ] {
        assert!(!differences(&want, &other).is_empty(), "{other:?}");
    }
    assert_eq!(normal_stderr(b"instar info: a\n"), b"qemu-img info: a\n");
}

#[test]
fn bad_manners_are_seen() {
    assert!(manners(&ran(0, "", "")).is_empty());
    assert!(!manners(&ran(1, "", "thread 'main' panicked at x\n")).is_empty());
    let mut large = ran(0, "", "");
    large.max_rss_kib = 300 << 10;
    assert!(!manners(&large).is_empty());
    assert!(!orderly(&ran(1, "", "instar: a\ninstar: b\n")).is_empty());
    assert!(!orderly(&ran(101, "", "instar: a\n")).is_empty());
}

#[test]
fn a_program_that_hangs_is_ended() -> Outcome {
    let sleep = tools::in_path("sleep".as_ref())?;
    let done = Run::new(&sleep, "/".as_ref())
        .args(["60"])
        .limit(Duration::from_secs(1))
        .go()?;
    ensure!(
        done.timed_out && done.signal == Some(9),
        "{}",
        done.describe()
    );
    Ok(())
}

#[test]
fn oracle_and_program_under_test_are_there() -> Outcome {
    tools::qemu_img()?;
    tools::qemu_io()?;
    tools::instar()?;
    Ok(())
}
