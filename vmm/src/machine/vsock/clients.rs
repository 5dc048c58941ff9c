//! Programs of the host that have connected and not yet said which port of the guest they want.

use super::stream::SocketStream;
use super::{Watch, Watched};
use rustix::net::RecvFlags;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

/// Most of them; the oldest goes if there are more.
const MAX_CLIENTS: usize = 64;
/// Longest first line in bytes: `CONNECT 4294967295\n`.
const MAX_LINE: usize = 19;
/// Accepted before others have their turn.
const MAX_ACCEPTED: usize = 64;

/// The listening socket, and who has connected.
#[derive(Debug)]
pub(super) struct Clients {
    listener: UnixListener,
    watch: Arc<Watch>,
    /// By number, which is in order of arrival.
    waiting: BTreeMap<u32, UnixStream>,
    next: u32,
}

impl Clients {
    pub fn new(listener: UnixListener, watch: Arc<Watch>) -> Self {
        Self {
            listener,
            watch,
            waiting: BTreeMap::new(),
            next: 0,
        }
    }

    /// Takes those that have connected.
    pub fn accept(&mut self) {
        for _ in 0..MAX_ACCEPTED {
            match self.listener.accept() {
                Ok((socket, _)) => self.add(socket),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                // No more, or no more descriptors: the next one to connect is heard of.
                Err(_) => return,
            }
        }
        let fd = self.listener.as_raw_fd();
        // Watched before, and so it is still.
        let _ = self.watch.change(fd, Watched::Listener);
    }

    fn add(&mut self, socket: UnixStream) {
        let client = self.next;
        let watched = || -> io::Result<()> {
            socket.set_nonblocking(true)?;
            self.watch.add(socket.as_raw_fd(), Watched::Client(client))
        };
        // One that cannot be watched is let go of.
        if watched().is_ok() {
            self.waiting.insert(client, socket);
            self.next = client.wrapping_add(1);
        }
        if self.waiting.len() > MAX_CLIENTS {
            self.waiting.pop_first();
        }
    }

    /// A client has written or gone; if it has said which port it wants, it is a client no more.
    pub fn hear(&mut self, client: u32, is_gone: bool) -> Option<(u32, SocketStream)> {
        let socket = self.waiting.get(&client)?;
        let mut line = [0; MAX_LINE];
        // What follows the line is the guest's: only the line is taken.
        let seen = rustix::net::recv(socket, &mut line, RecvFlags::PEEK).map_or(0, |(n, _)| n);
        let seen = line.get(..seen).unwrap_or_default();
        let Some(end) = seen.iter().position(|byte| *byte == b'\n') else {
            if is_gone || seen.len() == MAX_LINE {
                self.waiting.remove(&client);
            }
            return None;
        };
        let port = seen.get(..end).and_then(parse);
        let socket = self.waiting.remove(&client)?;
        let taken = end.saturating_add(1);
        let taken = line.get_mut(..taken)?;
        rustix::net::recv(&socket, taken, RecvFlags::empty()).ok()?;
        Some((port?, SocketStream::from(socket)))
    }
}

/// The port of `CONNECT <port>`.
fn parse(line: &[u8]) -> Option<u32> {
    let (word, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    (word.eq_ignore_ascii_case("CONNECT") && digits).then(|| port.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn only_a_connect_line_names_a_port() {
        assert_eq!(parse(b"CONNECT 52"), Some(52));
        assert_eq!(parse(b"connect 4294967295"), Some(u32::MAX));
        for line in [
            "CONNECT",
            "CONNECT ",
            "CONNECT +5",
            "CONNECT -1",
            "CONNECT 4294967296",
            "CONNECT 5 6",
            "CONNECT  5",
            " CONNECT 5",
            "GET 5",
            "CONNECT 5\r",
            "",
        ] {
            assert_eq!(parse(line.as_bytes()), None, "{line:?}");
        }
        assert_eq!(parse(b"CONNECT \xff"), None);
    }
}
