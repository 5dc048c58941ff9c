//! Where lines go: a descriptor of the user's, written without ever waiting for whoever reads it.

use rustix::fs::{FileType, Mode, OFlags};
use std::fs::File;
use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

/// A descriptor for output; clones write to the same.
#[derive(Clone, Debug)]
pub struct HostOutput {
    file: Arc<File>,
    made_terminal: bool,
}

impl HostOutput {
    /// Writes to `fd`.
    ///
    /// A terminal or pipe is opened once more: that it does not block here must not be seen by others that have it open,
    /// such as the shell.
    #[must_use]
    pub fn new(fd: OwnedFd) -> Self {
        let made_terminal = makes_terminals(&fd);
        let file = match kind(&fd) {
            FileType::RegularFile | FileType::BlockDevice => fd,
            FileType::Fifo | FileType::CharacterDevice if !made_terminal => {
                reopen(&fd).unwrap_or_else(|| alone(fd))
            }
            _ => alone(fd),
        };
        Self {
            file: Arc::new(file.into()),
            made_terminal,
        }
    }

    /// Whether it is a terminal that was made for the line: nobody may ever have it open.
    #[must_use]
    pub const fn is_made_terminal(&self) -> bool {
        self.made_terminal
    }

    /// Writes bytes from the front; how many, 0 if there is no room. Bytes that nobody can ever get, because the other
    /// end is gone or the disk is full, count as written.
    pub fn write(&self, bytes: &[u8]) -> usize {
        loop {
            match (&*self.file).write(bytes) {
                Ok(written) => return written,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return 0,
                Err(_) => return bytes.len(),
            }
        }
    }
}

impl AsFd for HostOutput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl AsRawFd for HostOutput {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl instar_devices::console::Output for HostOutput {
    fn write(&mut self, bytes: &[u8]) -> usize {
        Self::write(self, bytes)
    }
}

fn kind(fd: &OwnedFd) -> FileType {
    let stat = rustix::fs::fstat(fd);
    stat.map_or(FileType::Unknown, |stat| {
        FileType::from_raw_mode(stat.st_mode)
    })
}

/// Whether it is the machine's end of a terminal that was made for a line: opening that once more makes another one.
fn makes_terminals(fd: &OwnedFd) -> bool {
    // `/dev/ptmx`. Linux Documentation/admin-guide/devices.txt
    let device = rustix::fs::makedev(5, 2);
    rustix::fs::fstat(fd).is_ok_and(|stat| stat.st_rdev == device)
}

/// The same file with a state of its own, which does not block.
fn reopen(fd: &OwnedFd) -> Option<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).ok()
}

/// The descriptor itself, which does not block from now on.
fn alone(fd: OwnedFd) -> OwnedFd {
    if let Ok(flags) = rustix::fs::fcntl_getfl(&fd) {
        let _ = rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK);
    }
    fd
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    /// Writes until there is no room; what was written.
    fn fill(output: &HostOutput) -> usize {
        let mut total = 0;
        loop {
            match output.write(&[b'x'; 1000]) {
                0 => return total,
                written => total += written,
            }
            assert!(total < 16 << 20, "it never gets full");
        }
    }

    #[test]
    fn a_full_pipe_or_socket_does_not_block() {
        let (mut from, to) = std::io::pipe().unwrap();
        let kept = to.try_clone().unwrap();
        let output = HostOutput::new(to.into());
        let total = fill(&output);
        let mut bytes = vec![0; total];
        from.read_exact(&mut bytes).unwrap();
        assert_eq!(output.write(b"more"), 4);
        let flags = rustix::fs::fcntl_getfl(&kept).unwrap();
        assert!(
            !flags.contains(OFlags::NONBLOCK),
            "others see nothing of it"
        );
        drop(from);
        assert_eq!(output.write(b"nobody reads"), 12);

        let (mut from, to) = UnixStream::pair().unwrap();
        let output = HostOutput::new(to.into());
        let total = fill(&output);
        from.read_exact(&mut vec![0; total]).unwrap();
        assert_eq!(output.write(b"more"), 4);
    }

    #[test]
    fn a_file_gets_everything() {
        let mut file = tempfile::tempfile().unwrap();
        let output = HostOutput::new(file.try_clone().unwrap().into());
        assert_eq!(output.write(b"one"), 3);
        assert_eq!(output.clone().write(b"two"), 3);
        let mut text = String::new();
        std::io::Seek::rewind(&mut file).unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "onetwo");
    }
}
