//! `instar run` with kernels of a few instructions: what it does with terminals, disks and signals. Linux guests are in
//! `tests/linux`.

use std::io::{Read, Write};
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use instar_tests::family;
use instar_tests::image;
use instar_tests::kernel::{self, Then};
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::terminal::Session;
use instar_tests::tools;
use rustix::process::Signal;

use crate::Outcome;

/// What a pipe holds: pipe(7).
const PIPE_BYTES: u64 = 64 << 10;
/// How long to wait for anything that takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(120);
/// What a machine needs, and an end in any case.
const COMMON: [&str; 7] = [
    "run",
    "--kernel",
    "kernel",
    "--memory",
    "64M",
    "--timeout",
    "600",
];

fn machine(scratch: &Scratch, options: &[&str]) -> anyhow::Result<Run> {
    let run = Run::new(&tools::instar()?, scratch.path());
    Ok(run.args(COMMON).args(options))
}

/// A machine that says `ready`; killed when it is dropped.
struct Running(Child);

impl Running {
    fn start(run: &Run) -> anyhow::Result<Self> {
        let mut running = Self(run.start()?);
        let out = running.0.stdout.as_mut().context("a pipe")?;
        let mut said = [0; 7];
        out.read_exact(&mut said)
            .context("the machine did not start")?;
        ensure!(&said == b"ready\r\n", "{said:?}");
        Ok(running)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = family::kill(&mut self.0);
    }
}

fn session(scratch: &Scratch, then: Then, options: &[&str]) -> anyhow::Result<Session> {
    kernel::create(scratch, "kernel", then)?;
    let args = [&COMMON[..], &["--no-reboot"], options].concat();
    Session::start(&tools::instar()?, &args, scratch.path())
}

#[test]
fn keys_are_the_guests_but_the_escape_key() -> Outcome {
    let scratch = Scratch::new()?;
    let mut session = session(&scratch, Then::Echo, &[])?;
    session.wait_for("ready\r\n")?;
    ensure!(!session.is_as_before()?, "it is not raw");
    // Nothing but the guest's own echo: no line is edited, no key is a signal, no line end is changed.
    session.type_keys(b"a\x03\x1a\x7f\r\nb\x01\x01c\x01?d")?;
    session.wait_for("a\x03\x1a\x7f\r\nb\x01cd")?;
    session.type_keys(b"\x01x")?;
    let (code, shown) = session.end()?;
    ensure!(
        (code, shown.as_str()) == (Some(0), ""),
        "{code:?} {shown:?}"
    );
    ensure!(session.is_as_before()?, "it is not as it was");
    Ok(())
}

#[test]
fn a_terminal_is_as_it_was_however_a_machine_ends() -> Outcome {
    let scratch = Scratch::new()?;
    for (then, signals, expected, sentence) in [
        (Then::Fault, 0, 1, "triple fault"),
        (Then::Reset, 0, 0, ""),
        (Then::Halt, 2, 143, ""),
    ] {
        let mut session = session(&scratch, then, &[])?;
        session.wait_for("ready\r\n")?;
        for _ in 0..signals {
            session.tell(Signal::TERM)?;
        }
        let (code, shown) = session.end()?;
        ensure!(code == Some(expected), "{then:?}: {code:?} {shown:?}");
        ensure!(shown.contains(sentence), "{then:?}: {shown:?}");
        ensure!(session.is_as_before()?, "{then:?}");
    }
    Ok(())
}

#[test]
fn no_progress_is_drawn_over_a_machines_console() -> Outcome {
    let scratch = Scratch::new()?;
    image::qemu_img(&scratch, &["create", "-q", "-f", "qcow2", "disk", "1M"])?;
    let options = ["--disk", "disk,format=qcow2"];
    let mut session = session(&scratch, Then::Echo, &options)?;
    let before = session.wait_for("ready\r\n")?;
    // The image's reader waits for questions; what runs for longer than a second may draw.
    std::thread::sleep(Duration::from_secs(3));
    session.type_keys(b"a")?;
    let between = session.wait_for("a")?;
    session.type_keys(b"\x01x")?;
    let (code, after) = session.end()?;
    ensure!(code == Some(0), "{code:?} {after:?}");
    // Before, a warning about the host may stand; a bar is drawn with escape sequences.
    ensure!(!before.contains('\x1b'), "{before:?}");
    let drawn = between + &after;
    ensure!(drawn.is_empty(), "{drawn:?}");
    Ok(())
}

#[test]
fn a_terminal_is_made_for_the_serial_line() -> Outcome {
    let scratch = Scratch::new()?;
    kernel::create(&scratch, "kernel", Then::Echo)?;
    let run = machine(&scratch, &["--serial", "pty"])?;
    let mut machine = run.start()?;
    let mut stderr = machine.stderr.take().context("a pipe")?;
    let mut said = String::new();
    let mut byte = [0];
    let name = loop {
        stderr.read_exact(&mut byte).context(said.clone())?;
        said.push(char::from(byte[0]));
        let name = said.split("the serial line is at ").nth(1);
        if let Some(name) = name.and_then(|name| name.strip_suffix('\n')) {
            break name.to_owned();
        }
    };
    let mut terminal = std::fs::File::options().read(true).write(true).open(name)?;
    let mut said = [0; 7];
    terminal.read_exact(&mut said)?;
    ensure!(&said == b"ready\r\n", "{said:?}");
    // The escape key is nothing special here.
    terminal.write_all(b"\x01x\r\n")?;
    let mut said = [0; 4];
    terminal.read_exact(&mut said)?;
    ensure!(&said == b"\x01x\r\n", "{said:?}");
    ensure!(machine.try_wait()?.is_none());
    machine.kill()?;
    machine.wait()?;
    Ok(())
}

#[test]
fn a_disk_that_a_machine_writes_is_nobody_elses() -> Outcome {
    let scratch = Scratch::new()?;
    kernel::create(&scratch, "kernel", Then::Halt)?;
    std::fs::File::create(scratch.file("disk"))?.set_len(1 << 20)?;
    let running = Running::start(&machine(&scratch, &["--disk", "disk"])?)?;
    for (disk, lock) in [
        ("disk", "Failed to get \"write\" lock"),
        ("disk,readonly", "Failed to get shared \"write\" lock"),
    ] {
        let second = machine(&scratch, &["--disk", disk])?.go()?;
        second.expect_code(1)?;
        let expected = format!("instar: {lock}\nIs another process using the image [disk]?\n");
        ensure!(second.err().contains(&expected), "{}", second.describe());
        ensure!(second.stdout.is_empty(), "{}", second.describe());
    }
    let write = ["-f", "raw", "-c", "write 0 512", "disk"];
    let io = Run::new(&tools::qemu_io()?, scratch.path())
        .args(write)
        .go()?;
    ensure!(io.code != Some(0) && io.err().contains("lock"), "{io:?}");
    drop(running);
    Run::new(&tools::qemu_io()?, scratch.path())
        .args(write)
        .go()?
        .expect_code(0)?;
    Ok(())
}

#[test]
fn a_disk_that_machines_only_read_is_for_all_of_them() -> Outcome {
    let scratch = Scratch::new()?;
    kernel::create(&scratch, "kernel", Then::Halt)?;
    std::fs::File::create(scratch.file("disk"))?.set_len(1 << 20)?;
    let read = machine(&scratch, &["--disk", "disk,readonly"])?;
    let _first = Running::start(&read)?;
    let _second = Running::start(&read)?;
    let writer = machine(&scratch, &["--disk", "disk"])?.go()?;
    writer.expect_code(1)?;
    ensure!(writer.err().contains("lock"), "{}", writer.describe());
    Ok(())
}

#[test]
fn a_qcow2_disk_is_one_if_its_option_says_so() -> Outcome {
    let scratch = Scratch::new()?;
    kernel::create(&scratch, "kernel", Then::Halt)?;
    image::qemu_img(&scratch, &["create", "-q", "-f", "qcow2", "disk", "1M"])?;
    let running = Running::start(&machine(&scratch, &["--disk", "disk,format=qcow2"])?)?;
    let grow = ["resize", "disk", "2M"];
    let taken = Run::new(&tools::qemu_img()?, scratch.path())
        .args(grow)
        .go()?;
    ensure!(taken.err().contains("lock"), "{}", taken.describe());
    drop(running);
    image::qemu_img(&scratch, &["check", "disk"])?;
    image::qemu_img(&scratch, &grow)?;
    std::fs::File::create(scratch.file("flat"))?.set_len(1 << 20)?;
    let wrong = machine(&scratch, &["--disk", "flat,format=qcow2"])?.go()?;
    wrong.expect_code(1)?;
    let sentence = "instar: Could not open 'flat': Image is not in qcow2 format\n";
    ensure!(wrong.err().contains(sentence), "{}", wrong.describe());
    Ok(())
}

#[test]
fn a_guest_that_nobody_reads_says_everything_in_the_end() -> Outcome {
    let scratch = Scratch::new()?;
    // More than a pipe holds, less than is kept beside it.
    let bytes = 80_000;
    kernel::create(&scratch, "kernel", Then::Talk(bytes))?;
    let run = machine(&scratch, &["--no-reboot"])?;
    let mut machine = run.start()?;
    let mut said = Vec::new();
    let mut out = machine.stdout.take().context("a pipe")?;
    let began = Instant::now();
    while rustix::io::ioctl_fionread(&out)? < PIPE_BYTES {
        ensure!(began.elapsed() < PATIENCE, "the pipe is never full");
        std::thread::sleep(Duration::from_millis(5));
    }
    out.read_to_end(&mut said)?;
    let expected = 7 + usize::try_from(bytes)?;
    ensure!(said.len() == expected, "{} of {expected}", said.len());
    ensure!(machine.wait()?.code() == Some(0));
    Ok(())
}
