//! Signals to a run in the middle of its work.

use anyhow::ensure;
use instar_tests::live::{Live, soon};
use instar_tests::scratch::Scratch;
use rustix::process::Signal;

use crate::Outcome;

/// A signal to the broker ends the run with `code`.
fn ends_with(signal: Signal, code: i32) -> Outcome {
    let ended = soon(|| {
        let scratch = Scratch::new()?;
        let mut live = Live::check(&scratch, &["--output=json"])?;
        live.signal(live.broker()?, signal)?;
        live.end()
    })?;
    ended.expect_code(code)?;
    ensure!(ended.stdout.is_empty(), "{}", ended.describe());
    let lines = ended.err().lines().count();
    ensure!(lines == 1, "one sentence expected: {}", ended.describe());
    Ok(())
}

#[test]
fn interrupt_ends_a_run_with_130() -> Outcome {
    ends_with(Signal::INT, 130)
}

#[test]
fn termination_ends_a_run_with_143() -> Outcome {
    ends_with(Signal::TERM, 143)
}

#[test]
fn interrupt_of_both_processes_ends_a_run_with_130() -> Outcome {
    let ended = soon(|| {
        let scratch = Scratch::new()?;
        let mut live = Live::check(&scratch, &[])?;
        // As from a terminal.
        live.signal_both(Signal::INT)?;
        live.end()
    })?;
    ended.expect_code(130)?;
    ensure!(ended.stdout.is_empty(), "{}", ended.describe());
    Ok(())
}

#[test]
fn second_signal_kills_a_worker_that_does_not_listen() -> Outcome {
    let ended = soon(|| {
        let scratch = Scratch::new()?;
        let mut live = Live::check(&scratch, &["--output=json"])?;
        live.signal(live.worker(), Signal::STOP)?;
        live.tell(Signal::INT)?;
        live.tell(Signal::INT)?;
        live.end()
    })?;
    ended.expect_code(130)?;
    ensure!(ended.stdout.is_empty(), "{}", ended.describe());
    ensure!(ended.err().contains("killed"), "{}", ended.describe());
    Ok(())
}

#[test]
fn killed_worker_is_reported() -> Outcome {
    let ended = soon(|| {
        let scratch = Scratch::new()?;
        let mut live = Live::check(&scratch, &["--output=json"])?;
        live.signal(live.worker(), Signal::KILL)?;
        live.end()
    })?;
    ended.expect_code(1)?;
    ensure!(ended.stdout.is_empty(), "{}", ended.describe());
    let said = ended.err();
    ensure!(
        said.starts_with("instar: ") && said.contains("SIGKILL"),
        "{}",
        ended.describe()
    );
    Ok(())
}

#[test]
fn worker_dies_with_its_broker() -> Outcome {
    let scratch = Scratch::new()?;
    let mut live = Live::check(&scratch, &["--output=json"])?;
    live.signal(live.broker()?, Signal::KILL)?;
    // It fails if the worker lives on.
    let ended = live.end()?;
    ensure!(ended.signal == Some(9), "{}", ended.describe());
    ensure!(ended.stdout.is_empty(), "{}", ended.describe());
    Ok(())
}
