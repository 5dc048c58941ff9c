//! Locks, special files, files that change: what an image file can be.

use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use instar_tests::compare::{Bench, manners};
use instar_tests::holder::Holder;
use instar_tests::image;
use instar_tests::run::Run;
use instar_tests::scratch::Scratch;
use instar_tests::tools;

use crate::Outcome;

#[test]
fn image_open_for_writing_is_refused_without_force_share() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "disk.qcow2", &[])?;
    image::create_overlay(&scratch, "top.qcow2", "disk.qcow2", "qcow2")?;
    let mut bench = Bench::new(&scratch);
    let holder = Holder::open(&scratch, &["-f", "qcow2"], "disk.qcow2")?;
    ensure!(bench.qemu_img(&["info", "disk.qcow2"])?.code == Some(1));
    for args in [
        &["info", "disk.qcow2"][..],
        &["info", "--output=json", "disk.qcow2"],
        &["info", "-f", "raw", "disk.qcow2"],
        &["check", "disk.qcow2"],
        &["check", "-q", "disk.qcow2"],
        &["info", "-U", "disk.qcow2"],
        &["info", "-U", "--output=json", "disk.qcow2"],
        &["check", "-U", "disk.qcow2"],
        &["check", "--force-share", "-q", "disk.qcow2"],
        // The overlay is free; its backing file is not.
        &["info", "top.qcow2"],
        &["check", "top.qcow2"],
        &["info", "--backing-chain", "top.qcow2"],
        &["info", "-U", "--backing-chain", "top.qcow2"],
        &["check", "-U", "top.qcow2"],
    ] {
        bench.same("locked", args)?;
    }
    drop(holder);
    bench.same_both("free again", "disk.qcow2")?;
    bench.finish()
}

#[test]
fn image_open_for_reading_is_shared() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "disk.qcow2", &[])?;
    let mut bench = Bench::new(&scratch);
    let _holder = Holder::open(&scratch, &["-r", "-f", "qcow2"], "disk.qcow2")?;
    bench.same_both("open for reading", "disk.qcow2")?;
    bench.finish()
}

#[test]
fn data_file_open_for_writing() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_filled(&scratch, "disk.qcow2", &["data_file=disk.data"])?;
    let mut bench = Bench::new(&scratch);
    let _holder = Holder::open(&scratch, &["-f", "raw"], "disk.data")?;
    for args in [
        &["info", "disk.qcow2"][..],
        &["check", "disk.qcow2"],
        &["check", "-U", "disk.qcow2"],
    ] {
        bench.same("locked data file", args)?;
    }
    bench.finish()
}

#[test]
fn directories_sockets_and_character_devices() -> Outcome {
    let scratch = Scratch::new()?;
    std::fs::create_dir(scratch.file("folder"))?;
    let _socket = UnixListener::bind(scratch.file("socket"))?;
    let mut bench = Bench::new(&scratch);
    for name in [
        "folder",
        "folder/",
        ".",
        "/",
        "socket",
        "/dev/null",
        "/dev/zero",
    ] {
        bench.same_both(name, name)?;
        bench.same(name, &["info", "-f", "raw", name])?;
        bench.same(name, &["check", "-f", "qcow2", name])?;
    }
    bench.finish()
}

#[test]
fn a_fifo_is_refused_at_once() -> Outcome {
    let scratch = Scratch::new()?;
    let mkfifo = tools::in_path("mkfifo".as_ref())?;
    Run::new(&mkfifo, scratch.path())
        .args(["pipe"])
        .go()?
        .expect_code(0)?;
    let mut bench = Bench::new(&scratch);
    // qemu-img waits for a writer without end.
    for command in ["info", "check"] {
        bench.refused("fifo", &[command, "pipe"], &["pipe"])?;
        bench.refused("fifo", &[command, "-f", "qcow2", "pipe"], &["pipe"])?;
    }
    bench.finish()
}

#[test]
fn special_files_as_backing_files_are_refused() -> Outcome {
    let scratch = Scratch::new()?;
    let mkfifo = tools::in_path("mkfifo".as_ref())?;
    Run::new(&mkfifo, scratch.path())
        .args(["pipe"])
        .go()?
        .expect_code(0)?;
    std::fs::create_dir(scratch.file("folder"))?;
    let _socket = UnixListener::bind(scratch.file("socket"))?;
    let mut bench = Bench::new(&scratch);
    for name in ["pipe", "folder", "socket", "/dev/zero", "/dev/null"] {
        image::create_overlay(&scratch, "top.qcow2", name, "raw")?;
        bench.same_info("not opened", "top.qcow2")?;
        bench.refused(name, &["check", "top.qcow2"], &[])?;
        bench.refused(name, &["info", "--backing-chain", "top.qcow2"], &[])?;
    }
    bench.finish()
}

#[test]
fn unreadable_and_dangling_names() -> Outcome {
    let scratch = Scratch::new()?;
    image::create(&scratch, "disk.qcow2", &[], "1M")?;
    std::os::unix::fs::symlink("disk.qcow2", scratch.file("link.qcow2"))?;
    std::os::unix::fs::symlink("nowhere", scratch.file("dangling.qcow2"))?;
    std::os::unix::fs::symlink("loop.qcow2", scratch.file("loop.qcow2"))?;
    let long = "n".repeat(300);
    let mut bench = Bench::new(&scratch);
    for name in [
        "link.qcow2",
        "loop.qcow2",
        "disk.qcow2/",
        "disk.qcow2/x",
        &long,
    ] {
        bench.same_both(name, name)?;
    }
    std::fs::remove_file(scratch.file("loop.qcow2"))?;
    bench.same("file:", &["info", "file:disk.qcow2"])?;
    std::fs::remove_file(scratch.file("disk.qcow2"))?;
    bench.same("dangling", &["info", "./link.qcow2"])?;
    bench.finish()
}

#[test]
fn a_file_that_shrinks_while_it_is_read() -> Outcome {
    let scratch = Scratch::new()?;
    image::create_rich(&scratch, "disk.qcow2", &["cluster_size=512"])?;
    let whole = scratch.read("disk.qcow2")?;
    let path = scratch.file("disk.qcow2");
    let stop = AtomicBool::new(false);
    let mut bench = Bench::new(&scratch);
    let mut runs = Vec::new();
    std::thread::scope(|threads| -> Outcome {
        let (stop, path, whole) = (&stop, &path, &whole);
        threads.spawn(move || {
            let mut len = 0;
            while !stop.load(Ordering::Relaxed) {
                len = (len + 4099) % whole.len() as u64;
                if let Ok(file) = std::fs::OpenOptions::new().write(true).open(path) {
                    let _ = file.set_len(len);
                }
                std::thread::sleep(Duration::from_micros(300));
                let _ = std::fs::write(path, whole);
                std::thread::sleep(Duration::from_micros(700));
            }
        });
        for _ in 0..30 {
            for command in ["info", "check"] {
                runs.push(bench.instar(&[command, "disk.qcow2"]));
            }
        }
        stop.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    for run in runs {
        let run = run?;
        let mut complaints = manners(&run);
        if !matches!(run.code, Some(0 | 1 | 2 | 3 | 63)) {
            complaints.push(format!("exit code {:?}", run.code));
        }
        if !complaints.is_empty() {
            bench.fail(format!("{complaints:?}\n{}", run.describe()));
        }
    }
    // At rest again, the answers are the oracle's.
    scratch.write("disk.qcow2", &whole)?;
    bench.same_both("at rest", "disk.qcow2")?;
    bench.finish()
}
