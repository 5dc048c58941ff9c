//! A line for each flow that was denied, at a bounded rate.

use rustix::fd::OwnedFd;
use std::fmt;
use std::time::{Duration, Instant};

/// Lines in each second at most.
const LINES_PER_SECOND: u32 = 50;
const SECOND: Duration = Duration::from_secs(1);

/// Where lines go; nowhere without a file.
#[derive(Debug)]
pub struct Log {
    file: Option<OwnedFd>,
    began: Instant,
    /// When the current second began.
    second: Instant,
    lines: u32,
    left_out: u64,
}

impl Log {
    /// Lines go to `file`, with the seconds since `now` before them.
    pub fn new(file: Option<OwnedFd>, now: Instant) -> Self {
        Self {
            file,
            began: now,
            second: now,
            lines: 0,
            left_out: 0,
        }
    }

    /// Writes a line, if the second has room for it.
    pub fn line(&mut self, now: Instant, what: fmt::Arguments<'_>) {
        if self.file.is_none() {
            return;
        }
        if now.saturating_duration_since(self.second) >= SECOND {
            self.second = now;
            self.lines = 0;
            if self.left_out > 0 {
                let count = std::mem::take(&mut self.left_out);
                self.write(now, format_args!("{count} lines were left out"));
            }
        }
        if self.lines >= LINES_PER_SECOND {
            self.left_out = self.left_out.saturating_add(1);
            return;
        }
        self.lines = self.lines.saturating_add(1);
        self.write(now, what);
    }

    fn write(&self, now: Instant, what: fmt::Arguments<'_>) {
        let at = now.saturating_duration_since(self.began);
        let line = format!("{:.3} {what}\n", at.as_secs_f64());
        if let Some(file) = &self.file {
            // A log that is full stays as it is.
            let _ = rustix::io::write(file, line.as_bytes());
        }
    }
}
