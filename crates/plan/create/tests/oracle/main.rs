//! `qemu-img` as the judge of new images: empty ones beside its own, filled ones by their check and every byte,
//! measured sizes, and power cuts.
//!
//! `CREATE_SEED` and `CREATE_CASES` choose other cases and more of them.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation)]

mod crash;
mod empty;
mod filled;
mod measured;
mod words;

use instar_plan_create::Options;
use instar_plan_txn::{Cancelled, Monitor};
use instar_qcow2::header::CompressionType;
use instar_storage::{FileStorage, Read, Storage, StorageError};
use std::path::Path;
use std::process::{Command, Output};

/// A small generator of random numbers (xorshift64*).
pub struct Rng(u64);

impl Rng {
    /// The generator of one case of a run.
    pub fn of(seed: u64, case: u64) -> Self {
        Self(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1)
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    pub fn below(&mut self, n: u64) -> u64 {
        (self.number() >> 16) % n.max(1)
    }

    /// One of a few.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// The seed and the number of cases of this run; both are printed.
pub fn run_of(what: &str, cases: u64) -> (u64, u64) {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .map(|text| text.parse().expect("a number"))
    };
    let seed = number("CREATE_SEED").unwrap_or(20_261_121);
    let cases = number("CREATE_CASES").unwrap_or(cases);
    println!("{what}: CREATE_SEED={seed} CREATE_CASES={cases}");
    (seed, cases)
}

/// Never wants the end.
pub struct Patient;

impl Monitor for Patient {
    fn progress(&mut self, done: u64, total: u64) -> Result<(), Cancelled> {
        assert!(done <= total);
        Ok(())
    }

    fn grant(&mut self, bytes: u64) -> u64 {
        bytes
    }
}

/// Runs `qemu-img` in `folder`.
pub fn qemu_img(folder: &Path, words: &[&str]) -> Output {
    Command::new("qemu-img")
        .current_dir(folder)
        .args(words)
        .env("LC_ALL", "C")
        .output()
        .expect("qemu-img runs")
}

/// What `qemu-img` prints, which has to go well.
pub fn said(folder: &Path, words: &[&str]) -> String {
    let output = qemu_img(folder, words);
    assert!(output.status.success(), "{words:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The options in `qemu-img`'s words.
pub fn typed(options: &Options<'_>) -> String {
    let switch = |on: bool| if on { "on" } else { "off" };
    let mut words = vec![
        format!("cluster_size={}", options.cluster_bytes),
        format!("refcount_bits={}", options.refcount_bits),
        format!(
            "compat={}",
            if options.version < 3 { "0.10" } else { "1.1" }
        ),
        format!("preallocation={}", options.preallocation.name()),
    ];
    if options.compression != CompressionType::Zlib {
        words.push("compression_type=zstd".into());
    }
    for (name, on) in [
        ("extended_l2", options.extended_l2),
        ("lazy_refcounts", options.lazy_refcounts),
        ("data_file_raw", options.data_file_raw),
    ] {
        if on {
            words.push(format!("{name}={}", switch(on)));
        }
    }
    for (name, value) in [
        ("backing_file", options.backing_file),
        ("backing_fmt", options.backing_format),
        ("data_file", options.data_file),
    ] {
        if let Some(value) = value {
            words.push(format!("{name}={}", String::from_utf8_lossy(value)));
        }
    }
    words.join(",")
}

/// A store whose length is given, as a device's is, and that is full of what was there before.
#[derive(Debug)]
pub struct Device(pub instar_storage::MemStorage);

impl Storage for Device {
    fn len_bytes(&self) -> u64 {
        self.0.len_bytes()
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), StorageError> {
        self.0.read_at(offset, buf)
    }
    fn read_batch(&self, reads: &mut [Read<'_>]) -> Result<(), StorageError> {
        self.0.read_batch(reads)
    }
}

impl instar_storage::StorageMut for Device {
    fn can_grow(&self) -> bool {
        false
    }
    fn write_at(&self, offset: u64, buf: &[u8]) -> Result<(), StorageError> {
        if offset + buf.len() as u64 > self.len_bytes() {
            return Err(StorageError { errno: 28, offset });
        }
        self.0.write_at(offset, buf)
    }
    fn write_zeroes(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.0.write_zeroes(offset, len)
    }
    fn discard(&self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.0.discard(offset, len)
    }
    fn allocate(
        &self,
        offset: u64,
        len: u64,
        how: instar_storage::Reserve,
    ) -> Result<(), StorageError> {
        self.0.allocate(offset, len, how)
    }
    fn set_len(&self, _: u64) -> Result<(), StorageError> {
        Err(StorageError {
            errno: 22,
            offset: 0,
        })
    }
    fn flush(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Opens a new, empty file.
pub fn new_file(path: &Path) -> FileStorage {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .unwrap();
    FileStorage::new(file).unwrap()
}
