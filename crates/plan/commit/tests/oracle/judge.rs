//! The judge: `qemu-img` and `qemu-io`.

use instar_storage::MemStorage;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output};

/// Runs the judge.
pub fn run(dir: &Path, program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).current_dir(dir).output();
    output.unwrap_or_else(|e| panic!("{program} is needed: {e}"))
}

/// Runs the judge, who has to be content.
pub fn ok(dir: &Path, program: &str, args: &[&str]) -> Vec<u8> {
    let output = run(dir, program, args);
    let said = String::from_utf8_lossy(&output.stderr);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{program} {args:?}: {said}{out}");
    output.stdout
}

/// What a guest reads.
pub fn content(dir: &Path, name: &str) -> Vec<u8> {
    ok(dir, "qemu-img", &["convert", "-O", "raw", name, "out.raw"]);
    std::fs::read(dir.join("out.raw")).unwrap()
}

/// The judge's check: 0 sound, 3 leaks.
pub fn check(dir: &Path, name: &str) -> i32 {
    let output = run(dir, "qemu-img", &["check", "-f", "qcow2", name]);
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
