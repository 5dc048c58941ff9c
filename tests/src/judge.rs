//! `qemu-img` and `qemu-io` as the judges of planners that work in memory: what they make is loaded, and what was made
//! of it is saved for them to look at. A judge that is missing ends the test.

// Only tests use it, and they end where something is wrong.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use instar_storage::MemStorage;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Output};
use std::time::Duration;

/// Runs the judge.
pub fn run(dir: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(dir).output();
    output.unwrap_or_else(|e| panic!("{program} is needed: {e}"))
}

/// Runs the judge, who has to be content: its standard output.
pub fn ok(dir: &Path, program: &str, args: &[&str]) -> Vec<u8> {
    let output = run(dir, program, args);
    let said = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {said}{out}");
    output.stdout
}

/// Waits until a program listens at a socket, whose name is there before that: the flag is that of proc_net_unix(5).
pub fn wait_for_listener(program: &mut Child, path: &Path) {
    let listens = || {
        let sockets = std::fs::read_to_string("/proc/net/unix").unwrap();
        let mut lines = sockets.lines();
        lines.any(|line| line.contains(" 00010000 ") && line.ends_with(path.to_str().unwrap()))
    };
    while !listens() {
        let ended = program.try_wait().unwrap();
        assert!(ended.is_none(), "it ended: {ended:?}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Makes a qcow2 image of a raw one, compressed.
pub fn compress(dir: &Path, raw: &str, qcow2: &str) {
    let formats = ["-f", "raw", "-O", "qcow2"];
    ok(
        dir,
        "qemu-img",
        &[&["convert", "-c"], &formats[..], &[raw, qcow2]].concat(),
    );
}

/// What a guest reads.
pub fn content(dir: &Path, name: &str) -> Vec<u8> {
    read(dir, &[name])
}

/// What a guest read when the snapshot `one` was made.
pub fn frozen(dir: &Path, name: &str) -> Vec<u8> {
    read(dir, &["-l", "one", name])
}

/// What the judge reads of an image that the words name or describe.
pub fn read(dir: &Path, image: &[&str]) -> Vec<u8> {
    let to = ["-O", "raw", "out.raw"];
    ok(dir, "qemu-img", &[&["convert"], image, &to].concat());
    std::fs::read(dir.join("out.raw")).unwrap()
}

/// The judge's check: 0 sound, 3 leaks.
pub fn check(dir: &Path, name: &str) -> i32 {
    check_as(dir, &[name])
}

/// The judge's check of an image that the words name or describe. What is worse than leaks is printed.
pub fn check_as(dir: &Path, image: &[&str]) -> i32 {
    let output = run(dir, "qemu-img", &[&["check"], image].concat());
    let code = output.status.code().unwrap();
    if code != 0 && code != 3 {
        println!("{}", String::from_utf8_lossy(&output.stdout));
        println!("{}", String::from_utf8_lossy(&output.stderr));
    }
    code
}

/// A file as a store.
pub fn load(path: &Path) -> MemStorage {
    MemStorage::load(&File::open(path).unwrap()).unwrap()
}

/// A store as a file.
pub fn save(store: &MemStorage, path: &Path) {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    store.save(&file.unwrap()).unwrap();
}

/// The seed and the number of cases of a run, from the variables `PREFIX_SEED` and `PREFIX_CASES` or as given; both
/// are printed.
pub fn run_of(prefix: &str, what: &str, seed: u64, cases: u64) -> (u64, u64) {
    let number = |name: &str, default| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().expect("a number"))
    };
    let seed = number(&format!("{prefix}_SEED"), seed);
    let cases = number(&format!("{prefix}_CASES"), cases);
    println!("{what}: {prefix}_SEED={seed} {prefix}_CASES={cases}");
    (seed, cases)
}
