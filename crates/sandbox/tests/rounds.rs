//! Images that are marked dirty: a round that finds it, one that repairs, and the operation again.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod job;

use job::{Running, command, scratch, stderr, stdout};
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// A job whose image is dirty, or `data`, which the image names.
fn job(image: &Path, how: &str, data: Option<&str>) -> Command {
    let arguments: Vec<&str> = [how].into_iter().chain(data).collect();
    let mut command = command("dirty", image, &arguments);
    command
        .env("ACCESS", "change")
        .env("HOLD", "1")
        .current_dir(image.parent().unwrap());
    command
}

fn run(image: &Path, how: &str, data: Option<&str>) -> Output {
    job(image, how, data).output().unwrap()
}

/// Lines, without what differs from run to run.
fn lines(output: &Output) -> Vec<String> {
    let text = stdout(output);
    let told = text.lines().filter(|line| !line.starts_with("landlock"));
    let told = told.map(|line| match line.starts_with("finished") {
        true => "finished".to_string(),
        false => line.to_string(),
    });
    told.collect()
}

const REPAIRS: &str = "repairs, may open: false";

#[test]
fn dirty_image_is_repaired_and_the_operation_runs_again() {
    let (_scratch, top) = scratch();
    fs::write(&top, "dirty").unwrap();
    let output = run(&top, "well", None);
    let window = 17 + 1 + (64 << 20);
    let again = format!("read-only false device false length 17 most {window} (1 files)");
    // What was shown before the repair is not shown again.
    let expected = ["before (1 files)", REPAIRS, &again, "finished"];
    assert_eq!(lines(&output), expected, "{}", stderr(&output));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn clean_image_takes_one_round() {
    let (_scratch, top) = scratch();
    let output = run(&top, "well", None);
    assert!(!lines(&output).contains(&REPAIRS.to_string()));
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
}

#[test]
fn data_file_keeps_its_locks_and_is_opened_again() {
    let (_scratch, top) = scratch();
    fs::write(top.with_file_name("data"), "dirty").unwrap();
    let output = run(&top, "well", Some("data"));
    let told = lines(&output);
    assert_eq!(told[1], REPAIRS, "{}", stderr(&output));
    assert!(told[2].contains("length 17"), "{told:?}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn repair_that_fails_is_told_as_the_operations_failure() {
    for (how, why) in [
        ("badly", "no luck"),
        ("never", "it is still marked dirty after its repair"),
    ] {
        let (_scratch, top) = scratch();
        fs::write(&top, "dirty").unwrap();
        let output = run(&top, how, None);
        let failed = format!("failed: Could not repair dirty image: {why}");
        let expected = ["before (1 files)", REPAIRS, &failed, "finished"];
        assert_eq!(lines(&output), expected, "{how}: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(1), "{how}");
        assert_eq!(fs::read(&top).unwrap(), b"dirty");
    }
}

#[test]
fn repair_of_what_may_not_be_written_is_refused() {
    let (_scratch, top) = scratch();
    fs::write(&top, "dirty").unwrap();
    for change in [true, false] {
        let mut job = job(&top, if change { "elsewhere" } else { "well" }, None);
        if !change {
            job.env_remove("ACCESS");
        }
        let output = job.output().unwrap();
        let text = stderr(&output);
        assert!(text.contains("an image that it may not change"), "{text}");
        assert!(!stdout(&output).contains(REPAIRS));
        assert_eq!(output.status.code(), Some(1));
    }
}

#[test]
fn worker_that_dies_in_a_repair_is_told_once() {
    let (_scratch, top) = scratch();
    fs::write(&top, "dirty").unwrap();
    let output = run(&top, "crash", None);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(stderr(&output).matches("SIGABRT").count(), 1);
}

/// The processes below `pid`, with theirs.
fn below(pid: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    let children = children
        .split_whitespace()
        .map(|pid| pid.parse::<i32>().unwrap());
    children
        .flat_map(|pid| [vec![pid], below(pid)].concat())
        .collect()
}

/// Those that stay: the kernel ends those of a process that has ended, each a moment later.
fn left(all: &[i32]) -> Vec<i32> {
    let began = Instant::now();
    loop {
        let left: Vec<i32> = all.iter().copied().filter(|pid| is_there(*pid)).collect();
        if left.is_empty() || began.elapsed() > Duration::from_secs(120) {
            return left;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn is_there(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z")
}

#[test]
fn signals_reach_the_repair_and_nothing_is_left() {
    for (how, signals, code) in [
        ("cancelled", &[libc::SIGINT][..], 130),
        ("cancelled", &[libc::SIGTERM], 143),
        ("stubborn", &[libc::SIGINT, libc::SIGTERM], 130),
        ("stubborn", &[libc::SIGTERM], 143),
    ] {
        let (_scratch, top) = scratch();
        fs::write(&top, "dirty").unwrap();
        let running = Running::of(job(&top, how, None));
        let all = below(running.broker());
        assert!(all.len() >= 3, "{all:?}");
        for signal in signals {
            running.tell(*signal);
        }
        let (ended, text, _) = running.end();
        assert_eq!(ended, Some(code), "{how} {signals:?}: {text}");
        let left = left(&all);
        assert!(left.is_empty(), "{how} {signals:?}: {left:?}");
        if how == "stubborn" {
            assert_eq!(text.matches("was killed").count(), 1, "{text}");
        }
    }
}

#[test]
fn image_is_locked_while_it_is_repaired() {
    let (_scratch, top) = scratch();
    fs::write(&top, "dirty").unwrap();
    let running = Running::of(job(&top, "cancelled", None));
    let writer = Command::new("qemu-io")
        .args(["-f", "raw", "-c", "write 0 512"])
        .arg(&top)
        .stdin(Stdio::null())
        .output()
        .expect("qemu-io is installed");
    let text = stderr(&writer);
    assert!(text.contains("Failed to get \"write\" lock"), "{text}");
    running.signal(running.broker(), libc::SIGTERM);
    running.end();
}

#[test]
fn broker_that_dies_takes_all_rounds_with_it() {
    let (_scratch, top) = scratch();
    fs::write(&top, "dirty").unwrap();
    let running = Running::of(job(&top, "stubborn", None));
    let all = below(running.broker());
    running.signal(running.broker(), libc::SIGKILL);
    let left = left(&all);
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn sequel_ends_the_job_once_the_operation_has_ended_well() {
    for dirty in [false, true] {
        let (_scratch, top) = scratch();
        fs::write(&top, if dirty { "dirty" } else { "longer than that" }).unwrap();
        let output = job(&top, "well", None).env("SEQUEL", "1").output().unwrap();
        let told = lines(&output);
        assert_eq!(told.len(), if dirty { 5 } else { 4 }, "{told:?}");
        assert_eq!(told.contains(&REPAIRS.to_string()), dirty);
        let length = if dirty { 17 } else { 16 };
        let follows = format!("follows on read-only false device false length {length} most");
        assert!(told[told.len() - 2].starts_with(&follows), "{told:?}");
        assert_eq!(told[told.len() - 1], "finished");
        assert_eq!(output.status.code(), Some(7), "{}", stderr(&output));
    }
}

#[test]
fn fuller_program_runs_in_place_of_one_that_lacks_a_part() {
    for dirty in [false, true] {
        let (_scratch, top) = scratch();
        fs::write(&top, if dirty { "dirty" } else { "longer than that" }).unwrap();
        let mut job = job(&top, "lacking", None);
        let output = job.env("FULLER", "1").env("SEQUEL", "1").output().unwrap();
        let told = lines(&output);
        // What was shown before is shown once, and what follows on an operation follows on this one.
        assert_eq!(told[0], "before (1 files)", "{}", stderr(&output));
        assert_eq!(told.len(), if dirty { 5 } else { 4 }, "{told:?}");
        assert_eq!(told.contains(&REPAIRS.to_string()), dirty);
        assert!(told[told.len() - 2].starts_with("follows on"), "{told:?}");
        assert_eq!(output.status.code(), Some(7));
    }
}

#[test]
fn fuller_program_is_asked_for_once_and_only_where_there_is_one() {
    for (how, there_is_one) in [("lacking", false), ("insatiable", true)] {
        let (_scratch, top) = scratch();
        fs::write(&top, "clean").unwrap();
        let mut job = job(&top, how, None);
        if there_is_one {
            job.env("FULLER", "1");
        }
        let output = job.output().unwrap();
        let text = stderr(&output);
        assert!(
            text.contains("a fuller program that there is not"),
            "{how}: {text}"
        );
        assert_eq!(output.status.code(), Some(1), "{how}");
    }
}

#[test]
fn operation_that_fails_has_no_sequel() {
    let (_scratch, top) = scratch();
    fs::write(&top, "dirty").unwrap();
    let output = job(&top, "badly", None)
        .env("SEQUEL", "1")
        .output()
        .unwrap();
    assert!(!stdout(&output).contains("follows"), "{}", stdout(&output));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn signals_reach_a_sequel_and_nothing_is_left() {
    let (_scratch, top) = scratch();
    let mut command = command("dirty", &top, &["well", "data", "stubborn-sequel"]);
    fs::write(top.with_file_name("data"), "clean").unwrap();
    command
        .env("ACCESS", "change")
        .env("HOLD", "1")
        .env("SEQUEL", "1")
        .current_dir(top.parent().unwrap());
    let running = Running::of(command);
    let all = below(running.broker());
    running.tell(libc::SIGINT);
    running.signal(running.broker(), libc::SIGTERM);
    let (ended, text, _) = running.end();
    assert_eq!(ended, Some(130), "{text}");
    assert_eq!(text.matches("was killed").count(), 1, "{text}");
    let left = left(&all);
    assert!(left.is_empty(), "{left:?}");
}
