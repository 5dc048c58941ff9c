//! Output that nobody takes: closed streams, full devices, readers that go away.

use anyhow::ensure;
use instar_tests::compare::manners;
use instar_tests::image;
use instar_tests::run::{Outcome as Ran, Run};
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

/// The commands, and the code of each when all goes well.
const COMMANDS: [(&str, i32); 6] = [
    ("info disk.qcow2", 0),
    ("info --output=json disk.qcow2", 0),
    ("check disk.qcow2", 0),
    ("check --output=json disk.qcow2", 0),
    ("check missing.qcow2", 1),
    ("--help", 0),
];

/// Runs each command with a redirection; its own exit code is the outcome's.
fn with(redirection: &str, mut judge: impl FnMut(&str, i32, &Ran) -> Outcome) -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "disk.qcow2", &[])?;
    let bash = tools::in_path("bash".as_ref())?;
    let instar = tools::instar()?;
    for (command, code) in COMMANDS {
        let script = format!("\"$0\" {command} {redirection}; exit ${{PIPESTATUS[0]}}");
        let got = Run::new(&bash, scratch.path())
            .args(["-c".as_ref(), script.as_ref(), instar.as_os_str()])
            .go()?;
        let found = manners(&got);
        ensure!(found.is_empty(), "{command}: {found:?}\n{}", got.describe());
        judge(command, code, &got)?;
    }
    Ok(())
}

/// The exit code is what it would be otherwise.
fn same_code(command: &str, code: i32, got: &Ran) -> Outcome {
    ensure!(
        got.code == Some(code),
        "{command}: code {code} expected\n{}",
        got.describe()
    );
    Ok(())
}

#[test]
fn reader_that_goes_away_is_no_error() -> Outcome {
    with("| head -c1", |command, code, got| {
        same_code(command, code, got)?;
        let silent = code != 0 || got.stderr.is_empty();
        ensure!(silent, "{command}: {}", got.describe());
        Ok(())
    })?;
    // It is gone before the first byte.
    with("| true", same_code)
}

#[test]
fn closed_streams_change_no_exit_code() -> Outcome {
    for redirection in [">&-", "2>&-", "<&-", ">&- 2>&-", "<&- >&- 2>&-"] {
        with(redirection, same_code)?;
    }
    Ok(())
}

#[test]
fn closed_streams_mix_nothing_up() -> Outcome {
    // Descriptor 1 is free: no file of the run may become its standard output.
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "disk.qcow2", &[])?;
    let before = scratch.fingerprint("disk.qcow2")?;
    with("<&- >&- 2>&-", same_code)?;
    let bash = tools::in_path("bash".as_ref())?;
    let script = "\"$0\" info disk.qcow2 <&- 2>&-";
    let got = Run::new(&bash, scratch.path())
        .args(["-c".as_ref(), script.as_ref(), tools::instar()?.as_os_str()])
        .go()?;
    let want = image::qemu_img(&scratch, &["info", "disk.qcow2"])?;
    ensure!(got.out() == want.out(), "{}", got.describe());
    ensure!(before == scratch.fingerprint("disk.qcow2")?);
    Ok(())
}

#[test]
fn full_output_is_an_error() -> Outcome {
    with(">/dev/full", |command, _, got| {
        ensure!(
            got.code == Some(1) && got.stdout.is_empty(),
            "{command}: {}",
            got.describe()
        );
        ensure!(
            got.err().starts_with("instar: "),
            "{command}: {}",
            got.describe()
        );
        Ok(())
    })
}

#[test]
fn full_standard_error_changes_no_exit_code() -> Outcome {
    with("2>/dev/full", same_code)
}
