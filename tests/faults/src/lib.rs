//! Stands between the program under test and the C library: `LD_PRELOAD` this library, and the calls with
//! which a worker changes an image can fail, end the process, or be recorded.
//!
//! | variable | meaning |
//! |---|---|
//! | `INSTAR_TEST_FAULT=N:ERRNO` | the Nth call, from 0, fails with ERRNO (a number); `N+:ERRNO`: all from the Nth on |
//! | `INSTAR_TEST_FAULT=N:kill` | the process ends at the Nth call, before it has an effect |
//! | `INSTAR_TEST_FAULT=N:tear` | the process ends half way through the Nth call, if it is a write |
//! | `INSTAR_TEST_RECORD=FILE` | all calls are written to FILE, in the format of [`read_recording`] |
//!
//! Counted and recorded are `pwritev`, `fdatasync`, `ftruncate` and `fallocate`; `copy_file_range` is only counted.
//! Several threads may make them. The recording is memory that is mapped before the worker is confined, so that it
//! costs no system call.

#![allow(clippy::expect_used)] // a wrong variable is to end the test

mod calls;
mod recording;

pub use recording::{Call, read_recording};
