//! The file of a recording: how many bytes it has, then one entry per call.

use std::fs::File;
use std::io::Result;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

/// Room for entries, sparse until used.
const CAPACITY: usize = 1 << 30;
/// Bytes before the entries: how many bytes of entries there are.
const HEAD: usize = 8;
/// Kind, file, offset and length of an entry.
const ENTRY_HEAD: usize = 32;

/// A call that changed a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `pwritev`.
    Write {
        /// First byte.
        offset: u64,
        /// What was written.
        bytes: Vec<u8>,
    },
    /// `fdatasync`.
    Flush,
    /// `ftruncate`.
    SetLen(u64),
    /// `fallocate`.
    Reserve {
        /// `FALLOC_FL_*`.
        mode: u64,
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}

const WRITE: u64 = 1;
const FLUSH: u64 = 2;
const SET_LEN: u64 = 3;
const RESERVE: u64 = 1 << 32;

static MAP: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
static FILLED: AtomicU64 = AtomicU64::new(0);
static BUSY: AtomicBool = AtomicBool::new(false);

/// Makes the file and maps it; the mapping outlives the descriptor.
pub(crate) fn start(path: &str) -> Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.set_len(CAPACITY as u64)?;
    // SAFETY: a new mapping at an address of the kernel's choice; nothing else refers to it.
    let map = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            CAPACITY,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if map == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    MAP.store(map.cast(), Ordering::Release);
    Ok(())
}

pub(crate) fn write(fd: i32, offset: u64, parts: &[&[u8]]) {
    let len: usize = parts.iter().map(|part| part.len()).sum();
    append([WRITE, fd_word(fd), offset, len as u64], parts);
}

pub(crate) fn flush(fd: i32) {
    append([FLUSH, fd_word(fd), 0, 0], &[]);
}

pub(crate) fn set_len(fd: i32, len: u64) {
    append([SET_LEN, fd_word(fd), len, 0], &[]);
}

pub(crate) fn reserve(fd: i32, mode: u64, offset: u64, len: u64) {
    append([RESERVE | mode, fd_word(fd), offset, len], &[]);
}

fn fd_word(fd: i32) -> u64 {
    u64::from(fd.unsigned_abs())
}

/// Adds an entry; the threads of a worker take turns. They spin: a lock of the standard library makes system calls.
fn append(head: [u64; 4], parts: &[&[u8]]) {
    let map = MAP.load(Ordering::Acquire);
    if map.is_null() {
        return;
    }
    while BUSY.swap(true, Ordering::Acquire) {
        std::hint::spin_loop();
    }
    append_alone(map, head, parts);
    BUSY.store(false, Ordering::Release);
}

fn append_alone(map: *mut u8, head: [u64; 4], parts: &[&[u8]]) {
    let filled = usize::try_from(FILLED.load(Ordering::Relaxed)).unwrap_or(CAPACITY);
    let data: usize = parts.iter().map(|part| part.len()).sum();
    let needed = HEAD + filled + ENTRY_HEAD + data;
    assert!(needed <= CAPACITY, "the recording is full");
    // SAFETY: the mapping has CAPACITY bytes, and the range was just found to lie in it.
    let room = unsafe { std::slice::from_raw_parts_mut(map, needed) };
    let (front, entry) = room.split_at_mut(HEAD + filled);
    let mut at = 0;
    let words = head.map(u64::to_ne_bytes);
    for part in words
        .iter()
        .map(|word| word.as_slice())
        .chain(parts.iter().copied())
    {
        entry[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    let filled = (filled + at) as u64;
    front[..HEAD].copy_from_slice(&filled.to_ne_bytes());
    FILLED.store(filled, Ordering::Relaxed);
}

/// The calls in a recording, each with its file descriptor, in order.
///
/// # Panics
/// If the bytes are no recording.
#[must_use]
pub fn read_recording(bytes: &[u8]) -> Vec<(u64, Call)> {
    let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap_or_default());
    let end = HEAD + usize::try_from(word(0)).unwrap_or(0);
    let mut calls = Vec::new();
    let mut at = HEAD;
    while at < end {
        let [kind, fd, offset, len] = [0, 8, 16, 24].map(|field| word(at + field));
        at += ENTRY_HEAD;
        let call = match kind {
            WRITE => {
                let data = &bytes[at..at + usize::try_from(len).unwrap_or(0)];
                at += data.len();
                Call::Write {
                    offset,
                    bytes: data.to_vec(),
                }
            }
            FLUSH => Call::Flush,
            SET_LEN => Call::SetLen(offset),
            _ => Call::Reserve {
                mode: kind & !RESERVE,
                offset,
                len,
            },
        };
        calls.push((fd, call));
    }
    calls
}
