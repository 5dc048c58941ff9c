//! Standard output and standard error, written in few large writes.
//!
//! Names from images go through [`Out::name`]: a terminal shows them escaped, so
//! that no image can drive it; a pipe gets the bytes as they are.

use crate::text::push_visible;
use std::io::{ErrorKind, IsTerminal, Write};

/// Bytes that are collected before they are written.
const BATCH_BYTES: usize = 64 << 10;

/// Where output text goes.
pub trait Out {
    /// Text of our own.
    fn put(&mut self, bytes: &[u8]);
    /// Text from outside: a name or message.
    fn name(&mut self, bytes: &[u8]) {
        self.put(bytes);
    }
}

impl Out for Vec<u8> {
    fn put(&mut self, bytes: &[u8]) {
        self.extend_from_slice(bytes);
    }
}

/// One of the two standard streams.
pub struct Sink {
    stream: Box<dyn Write>,
    terminal: bool,
    buffer: Vec<u8>,
    error: Option<std::io::Error>,
}

impl Sink {
    /// Standard output. Asks the system whether it is a terminal, so call it before confinement.
    #[must_use]
    pub fn stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        Self::new(Box::new(Unbuffered(rustix::stdio::stdout())), terminal)
    }

    /// Standard error. Asks the system whether it is a terminal, so call it before confinement.
    #[must_use]
    pub fn stderr() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self::new(Box::new(Unbuffered(rustix::stdio::stderr())), terminal)
    }

    fn new(stream: Box<dyn Write>, terminal: bool) -> Self {
        Self {
            stream,
            terminal,
            buffer: Vec::new(),
            error: None,
        }
    }

    /// Whether a person's terminal is at the other end.
    #[must_use]
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Ends a line; a terminal sees it at once.
    pub fn end_line(&mut self) {
        self.put(b"\n");
        if self.terminal {
            self.flush();
        }
    }

    /// Writes what is collected. An error stays until [`Sink::finish`] and stops further writes.
    pub fn flush(&mut self) {
        if self.error.is_none()
            && let Err(error) = self.stream.write_all(&self.buffer)
        {
            self.error = Some(error);
        }
        self.buffer.clear();
    }

    /// Writes the rest.
    ///
    /// # Errors
    /// The first error of any write, except that the reader has gone away: who
    /// closes a pipe early has seen enough.
    pub fn finish(&mut self) -> std::io::Result<()> {
        self.flush();
        match self.error.take() {
            Some(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
            _ => Ok(()),
        }
    }
}

impl Out for Sink {
    fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    fn name(&mut self, bytes: &[u8]) {
        if self.terminal {
            let mut visible = Vec::with_capacity(bytes.len());
            push_visible(&mut visible, bytes);
            self.put(&visible);
        } else {
            self.put(bytes);
        }
    }
}

/// A descriptor without the buffer, lock and line splitting that the standard library adds.
struct Unbuffered(rustix::fd::BorrowedFd<'static>);

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        Ok(rustix::io::write(self.0, bytes)?)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::rc::Rc;

    /// Collects what a sink writes, or fails as told.
    #[derive(Clone, Default)]
    pub struct Capture {
        /// The bytes so far.
        pub bytes: Rc<RefCell<Vec<u8>>>,
        /// How many writes there were.
        pub writes: Rc<RefCell<usize>>,
        /// What each write answers instead.
        pub fail: Option<ErrorKind>,
    }

    impl Write for Capture {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if let Some(kind) = self.fail {
                return Err(kind.into());
            }
            self.bytes.borrow_mut().extend_from_slice(bytes);
            *self.writes.borrow_mut() += 1;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Capture {
        /// A sink that writes here.
        pub fn sink(&self, terminal: bool) -> Sink {
            Sink::new(Box::new(self.clone()), terminal)
        }

        /// The text so far.
        pub fn text(&self) -> String {
            String::from_utf8_lossy(&self.bytes.borrow()).into_owned()
        }
    }

    #[test]
    fn put_many_small_pieces_is_few_writes() {
        let capture = Capture::default();
        let mut sink = capture.sink(false);
        for _ in 0..100_000 {
            sink.put(b"ab");
        }
        sink.finish().unwrap();
        assert_eq!(capture.bytes.borrow().len(), 200_000);
        assert_eq!(*capture.writes.borrow(), 4);
    }

    #[test]
    fn name_is_escaped_for_a_terminal_only() {
        for (terminal, expected) in [(true, "\\u{1b}[2J"), (false, "\x1b[2J")] {
            let capture = Capture::default();
            let mut sink = capture.sink(terminal);
            sink.name(b"\x1b[2J");
            sink.finish().unwrap();
            assert_eq!(capture.text(), expected);
        }
    }

    #[test]
    fn finish_reports_a_full_disk_but_not_a_closed_pipe() {
        for (kind, fine) in [
            (ErrorKind::BrokenPipe, true),
            (ErrorKind::StorageFull, false),
        ] {
            let capture = Capture {
                fail: Some(kind),
                ..Capture::default()
            };
            let mut sink = capture.sink(false);
            sink.put(b"x");
            assert_eq!(sink.finish().is_ok(), fine);
        }
    }
}
