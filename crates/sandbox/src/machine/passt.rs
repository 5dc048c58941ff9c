//! passt, a program of the user's own: the network of a guest that has it instead of the user network.
//!
//! It runs with the user's rights and confines itself. It has one end of a socket, the machine's card the other one, and ends
//! when that is closed. Each boot has one of its own.

use super::child::{Child, EXIT_FAILED, failed, forked};
use super::{MachineFailure, PasstNet};
use crate::signals;
use instar_user_net::forward::Forward;
use instar_user_net::policy::Protocol;
use nix::sys::signal::SigSet;
use rustix::fs::Access;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The program's name.
const PROGRAM: &str = "passt";
/// What the socket may hold, if the system lets it, so that several long frames are on their way.
const SOCKET_BYTES: usize = 1 << 20;

/// passt, which has not begun.
#[derive(Debug)]
pub struct Passt {
    net: PasstNet,
    program: PathBuf,
}

impl Passt {
    /// Looks for the program, and whether the ports that it is to forward are free: what it says of one that is not would
    /// come when the machine runs already.
    ///
    /// # Errors
    /// It is not there, or a port is in use.
    pub fn find(net: &PasstNet) -> Result<Self, MachineFailure> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = find(&path).ok_or(MachineFailure::NoPasst)?;
        for forward in &net.forwards {
            forward.bind()?;
        }
        Ok(Self {
            net: net.clone(),
            program,
        })
    }

    /// Longest packet in bytes.
    pub const fn mtu(&self) -> u16 {
        self.net.mtu
    }

    /// Starts the program: its process, and the socket for the guest's card.
    ///
    /// # Errors
    /// There are no more processes or descriptors. That the program cannot be started ends its process.
    pub fn start(&self) -> Result<(Child, OwnedFd), MachineFailure> {
        let flags = SocketFlags::CLOEXEC;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (link, card) = pair.map_err(failed("socketpair"))?;
        // Only this end: passt waits for room where a frame has gone in part.
        rustix::io::ioctl_fionbio(&card, true).map_err(failed("ioctl FIONBIO"))?;
        // Less is slower, not wrong.
        let _ = rustix::net::sockopt::set_socket_send_buffer_size(&card, SOCKET_BYTES);
        if let Some(child) = forked()? {
            return Ok((child, card));
        }
        let error = self.execute(&link);
        eprintln!(
            "instar: cannot start '{}': {}",
            self.program.display(),
            super::said(&error)
        );
        std::process::exit(EXIT_FAILED.into())
    }

    /// Becomes the program, in the forked process; everything else that is open is closed by that. Returns why it does not.
    fn execute(&self, link: &OwnedFd) -> std::io::Error {
        let begun = signals::set_mask(&SigSet::empty())
            .map_err(std::io::Error::from)
            // Ctrl-C is for the guest: a program in the terminal's foreground would end at once.
            .and_then(|()| Ok(rustix::process::setsid()?))
            .and_then(|_| Ok(rustix::io::fcntl_setfd(link, FdFlags::empty())?));
        match begun {
            Ok(()) => Command::new(&self.program)
                .args(self.arguments(link.as_raw_fd()))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .exec(),
            Err(error) => error,
        }
    }

    /// The program's options. Nothing is forwarded that was not asked for (by default, a TCP port's number is forwarded for UDP,
    /// too), and the router's address does not stand for this host.
    fn arguments(&self, link: i32) -> Vec<String> {
        let mut words = vec!["--foreground".to_owned(), "--quiet".to_owned()];
        words.extend(["--fd".to_owned(), link.to_string()]);
        words.push("--no-map-gw".to_owned());
        words.extend(["--mtu".to_owned(), self.net.mtu.to_string()]);
        for server in &self.net.dns {
            words.extend(["--dns".to_owned(), server.to_string()]);
        }
        let protocols = [
            (Protocol::Tcp, "--tcp-ports"),
            (Protocol::Udp, "--udp-ports"),
        ];
        for (protocol, option) in protocols {
            let forwards = self.net.forwards.iter();
            let ports = forwards.filter(|forward| forward.protocol == protocol);
            let mut ports: Vec<String> = ports.map(specification).collect();
            if ports.is_empty() {
                ports.push("none".to_owned());
            }
            words.extend(ports.into_iter().flat_map(|port| [option.to_owned(), port]));
        }
        words
    }
}

/// A forwarded port as passt reads it.
fn specification(forward: &Forward) -> String {
    let (address, port) = (forward.listen.ip(), forward.listen.port());
    format!("{address}/{port}:{}", forward.guest_port)
}

/// The program in these folders. A relative one would be another one wherever the user is.
fn find(path: &OsStr) -> Option<PathBuf> {
    let folders = std::env::split_paths(path).filter(|folder| folder.is_absolute());
    folders
        .map(|folder| folder.join(PROGRAM))
        .find(|program| program.is_file() && rustix::fs::access(program, Access::EXEC_OK).is_ok())
}

#[cfg(test)]
mod tests;
