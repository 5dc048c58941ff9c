//! The process of a user network: it has the guest's frames, sockets of the host, and nothing else.
//!
//! Each boot has one of its own, as it has a worker. Forwarded ports are bound once, before the first boot, and stay so.

use super::child::{Child, EXIT_FAILED, failed, forked, use_small_pages};
use super::{MachineFailure, UserNet};
use crate::confine;
use crate::jail::Filter;
use instar_user_net::forward::Listener;
use instar_user_net::policy::Policy;
use instar_user_net::{Network, Settings, servers};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

/// How long a network may take to end once its guest is gone.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// A user network whose ports and files are open.
#[derive(Debug)]
pub struct UserNetwork {
    net: UserNet,
    mac: [u8; 6],
    listeners: Vec<Listener>,
    servers: Vec<SocketAddr>,
    log: Option<OwnedFd>,
}

impl UserNetwork {
    /// Binds the ports, reads the policy and the host's DNS servers.
    ///
    /// # Errors
    /// A port is in use, a rule is none, the log cannot be opened.
    pub fn open(net: &UserNet, mac: [u8; 6]) -> Result<Self, MachineFailure> {
        // The rules are read again by the network; here nothing is open yet.
        Policy::new(&net.allow, &net.deny)?;
        let listeners = net.forwards.iter().map(|forward| forward.bind());
        let listeners = listeners.collect::<Result<_, _>>()?;
        let log = net.log.as_deref().map(|path| {
            let file = std::fs::File::options()
                .append(true)
                .create(true)
                .open(path);
            file.map(OwnedFd::from)
                .map_err(|source| MachineFailure::File {
                    what: "network log",
                    path: path.to_owned(),
                    source,
                })
        });
        let servers = if net.dns.is_empty() {
            servers::of_host()
        } else {
            net.dns.clone()
        };
        Ok(Self {
            net: net.clone(),
            mac,
            listeners,
            servers,
            log: log.transpose()?,
        })
    }

    /// Longest packet in bytes.
    pub const fn mtu(&self) -> u16 {
        self.net.mtu
    }

    /// Forks the network's process: it, and the socket for the guest's card.
    pub fn start(&self) -> Result<(Child, OwnedFd), MachineFailure> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None);
        let (link, card) = pair.map_err(failed("socketpair"))?;
        let parent = rustix::process::getpid();
        if let Some(child) = forked()? {
            return Ok((child, card));
        }
        drop(card);
        use_small_pages();
        let code = match self.serve(link, parent) {
            Ok(()) => 0,
            Err(error) => {
                eprintln!("instar: {error}");
                EXIT_FAILED
            }
        };
        std::process::exit(code.into())
    }

    /// Gives up everything but what the network needs, and serves the guest until it is gone. In the forked process.
    fn serve(
        &self,
        link: OwnedFd,
        parent: rustix::process::Pid,
    ) -> Result<(), Box<dyn std::error::Error>> {
        confine::bind_network_to(parent)?;
        let copy = |listener: &Listener| {
            let socket = listener.socket.try_clone()?;
            let forward = listener.forward;
            Ok(Listener { forward, socket })
        };
        let listeners: std::io::Result<Vec<Listener>> = self.listeners.iter().map(copy).collect();
        let listeners = listeners?;
        let log = self.log.as_ref().map(OwnedFd::try_clone).transpose()?;
        let mut kept = vec![link.as_raw_fd()];
        kept.extend(listeners.iter().map(|listener| listener.socket.as_raw_fd()));
        kept.extend(log.iter().map(AsRawFd::as_raw_fd));
        // This process ends without dropping what the parent has opened.
        confine::close_others(&kept)?;
        let mut network = Network::new(Settings {
            link,
            guest_mac: self.mac,
            mtu: self.net.mtu,
            policy: Policy::new(&self.net.allow, &self.net.deny)?,
            listeners,
            servers: self.servers.clone(),
            log,
        })?;
        confine::give_up_all_but_sockets()?;
        Filter::Network.install()?;
        Ok(network.run()?)
    }
}

#[cfg(test)]
mod tests;
