//! Several programs on one image: readers beside readers, and readers and writers that keep each other out with the
//! locks and the words of `qemu-img`.

use std::process::Child;

use anyhow::{Context, Result, ensure};
use instar_tests::compare::{differences, manners};
use instar_tests::holder::Holder;
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::Outcome;
use crate::secrets_at_rest::wait_until_it_writes;

fn stage() -> Result<Scratch> {
    let scratch = Scratch::new()?;
    image::create(&scratch, "base.qcow2", &[], "32M")?;
    image::io(&scratch, "base.qcow2", &["write -P 5 0 24M"])?;
    let below = "backing_file=base.qcow2,backing_fmt=qcow2";
    image::create(&scratch, "top.qcow2", &[below], "32M")?;
    image::io(&scratch, "top.qcow2", &["write -P 6 1M 8M"])?;
    Ok(scratch)
}

fn wait(child: Child) -> Result<()> {
    let done = child.wait_with_output()?;
    let said = String::from_utf8_lossy(&done.stderr).into_owned();
    ensure!(done.status.success(), "{:?}: {said}", done.status);
    ensure!(said.is_empty(), "it said {said}");
    Ok(())
}

#[test]
fn readers_read_beside_each_other() -> Outcome {
    let scratch = stage()?;
    let ours = tools::instar()?;
    let start = |words: &[&str]| Run::new(&ours, scratch.path()).args(words).start();
    let mut running = Vec::new();
    for number in 0..3 {
        let (raw, qcow2) = (format!("{number}.raw"), format!("{number}.qcow2"));
        running.push(start(&["convert", "-O", "raw", "top.qcow2", &raw])?);
        running.push(start(&[
            "convert",
            "-c",
            "-O",
            "qcow2",
            "top.qcow2",
            &qcow2,
        ])?);
        running.push(start(&["map", "--output=json", "top.qcow2"])?);
        running.push(start(&["compare", "-q", "top.qcow2", "top.qcow2"])?);
    }
    for child in running {
        wait(child)?;
    }
    for number in 0..3 {
        for format in ["raw", "qcow2"] {
            let name = format!("{number}.{format}");
            image::qemu_img(&scratch, &["compare", "-F", format, "top.qcow2", &name])?;
        }
    }
    Ok(())
}

#[test]
fn an_image_in_use_is_refused_in_the_same_words() -> Outcome {
    let scratch = stage()?;
    scratch.set_len("raw", 32 << 20)?;
    let _top = Holder::open(&scratch, &["-f", "qcow2"], "top.qcow2")?;
    let (ours, theirs) = (tools::instar()?, tools::qemu_img()?);
    let mut failures = Vec::new();
    for words in [
        "map top.qcow2",
        "map -U top.qcow2",
        "measure -O qcow2 top.qcow2",
        "measure -U -O qcow2 top.qcow2",
        "compare top.qcow2 raw",
        "compare raw top.qcow2",
        "compare -U raw top.qcow2",
        "convert -O raw top.qcow2 out",
        "convert -U -O raw top.qcow2 out",
        "convert -O qcow2 -n raw top.qcow2",
        "convert -O qcow2 raw top.qcow2",
        "convert -O raw raw top.qcow2",
        "convert -O qcow2 -B top.qcow2 -F qcow2 raw out",
        "create -f qcow2 top.qcow2 1M",
        "create -f raw top.qcow2 1M",
        "create -f qcow2 -b top.qcow2 -F qcow2 out",
        "dd if=top.qcow2 of=out",
        "dd -U if=top.qcow2 of=out",
        "dd if=raw of=top.qcow2",
        // The images below are open for reading only: they may be read.
        "map base.qcow2",
        "convert -O raw base.qcow2 out",
        "convert -O raw raw base.qcow2",
        "create -f qcow2 base.qcow2 1M",
    ] {
        let _ = std::fs::remove_file(scratch.file("out"));
        let args: Vec<&str> = words.split(' ').collect();
        let before = scratch.fingerprint("top.qcow2")?;
        let base = scratch.fingerprint("base.qcow2")?;
        let got = Run::new(&ours, scratch.path()).args(&args).go()?;
        if got.code != Some(0) {
            ensure!(!scratch.file("out").exists(), "{words}: a file is left");
        }
        ensure!(
            scratch.fingerprint("top.qcow2")? == before,
            "{words} changed it"
        );
        ensure!(
            scratch.fingerprint("base.qcow2")? == base,
            "{words} changed the base"
        );
        let _ = std::fs::remove_file(scratch.file("out"));
        let want = Run::new(&theirs, scratch.path()).args(&args).go()?;
        let mut wrong = differences(&want, &got);
        wrong.extend(manners(&got));
        if !wrong.is_empty() {
            let wrong = wrong.join("\n");
            let (want, got) = (want.describe(), got.describe());
            failures.push(format!("{words}: {wrong}\n{want}\n{got}"));
        }
    }
    ensure!(failures.is_empty(), "{}", failures.join("\n"));
    Ok(())
}

/// The processes of a run, which stand still until this is dropped.
struct Stopped(Pid);

impl Stopped {
    fn new(child: &Child) -> Result<Self> {
        let group = Pid::from_raw(i32::try_from(child.id())?).context("process id 0")?;
        kill_process_group(group, Signal::STOP)?;
        Ok(Self(group))
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        let _ = kill_process_group(self.0, Signal::CONT);
    }
}

#[test]
fn a_target_in_the_making_keeps_other_writers_out() -> Outcome {
    let scratch = stage()?;
    image::create(&scratch, "there.qcow2", &[], "1M")?;
    // 24 MiB at 2 MiB a second.
    let words = [
        "convert",
        "-r",
        "2M",
        "-O",
        "qcow2",
        "top.qcow2",
        "there.qcow2",
    ];
    let (ours, theirs) = (tools::instar()?, tools::qemu_img()?);
    let mut child = Run::new(&ours, scratch.path()).args(words).start()?;
    wait_until_it_writes(&scratch, &mut child, "there.qcow2")?;
    let stopped = Stopped::new(&child)?;
    let other = ["convert", "-O", "qcow2", "base.qcow2", "there.qcow2"];
    for _ in 0..4 {
        let run = |program| Run::new(program, scratch.path()).args(other).go();
        let (want, got) = (run(&theirs)?, run(&ours)?);
        ensure!(want.code == Some(1), "not refused: {}", want.describe());
        let wrong = differences(&want, &got);
        ensure!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), got.describe());
        // What is read may be read by others too.
        image::qemu_img(&scratch, &["info", "top.qcow2"])?;
    }
    drop(stopped);
    wait(child).context("the conversion")?;
    image::qemu_img(&scratch, &["compare", "top.qcow2", "there.qcow2"])?;
    image::qemu_img(&scratch, &["check", "there.qcow2"]).map(drop)
}
