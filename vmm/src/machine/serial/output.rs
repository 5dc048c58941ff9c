//! What the guest has sent on the serial line, until whoever reads it takes it.

use super::super::output::HostOutput;
use rustix::event::{PollFd, PollFlags, poll};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// From so many bytes on that nobody has taken the line is busy: a driver that looks waits.
const BUSY: usize = 32 << 10;
/// So many are kept. What a driver that does not look sends beyond them is lost.
const MOST: usize = 64 << 10;

/// Where output goes. A guest must not stop because nobody reads what it says: errors are not told.
#[derive(Debug)]
pub(super) struct Output {
    to: Option<HostOutput>,
    waiting: VecDeque<u8>,
    /// Signalled when something begins to wait.
    waits: Arc<EventFd>,
}

impl Output {
    pub const fn new(to: Option<HostOutput>, waits: Arc<EventFd>) -> Self {
        Self {
            to,
            waiting: VecDeque::new(),
            waits,
        }
    }

    /// Whether the guest is to wait.
    pub fn is_busy(&self) -> bool {
        self.waiting.len() >= BUSY
    }

    /// Hands over what there is room for; whether that is all.
    pub fn hand_over(&mut self) -> bool {
        while let Some(to) = &self.to {
            let (front, _) = self.waiting.as_slices();
            let written = match front {
                [] => return true,
                front => to.write(front).min(front.len()),
            };
            if written == 0 {
                return false;
            }
            self.waiting.drain(..written);
        }
        true
    }
}

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let Some(to) = &self.to else {
            return Ok(data.len());
        };
        let at_once = self.waiting.is_empty();
        let written = if at_once { to.write(data) } else { 0 };
        let rest = data.get(written..).unwrap_or_default();
        // Nobody need ever open a terminal that was made for the line.
        if !rest.is_empty() && !to.is_made_terminal() {
            let room = MOST.saturating_sub(self.waiting.len());
            self.waiting.extend(rest.iter().take(room));
            if at_once {
                let _ = self.waits.write(1);
            }
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Waits until `to` has room, or its other end is gone.
pub(super) fn wait_for_room(to: &HostOutput) {
    let mut ready = [PollFd::new(to, PollFlags::OUT)];
    // A signal is as good a reason to look as any.
    let _ = poll(&mut ready, None);
}
