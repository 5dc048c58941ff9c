//! Network devices: what they are connected to, opened for a machine and started for each boot.

use super::network::UserNetwork;
use super::passt::Passt;
use super::{Child, MachineFailure, NetName, NetTo};
use instar_vmm::machine::parts::{Net, Wire};
use instar_vmm::machine::tap::open_tap;
use std::os::fd::OwnedFd;

/// A network device whose other end is open.
#[derive(Debug)]
pub enum OpenNet {
    /// A tap device, which is there.
    Tap(Net),
    /// A process that each boot has of its own.
    Process {
        /// What is started.
        network: Network,
        /// The guest's address.
        mac: [u8; 6],
    },
}

/// The network that a process makes.
#[derive(Debug)]
pub enum Network {
    /// Ours.
    User(UserNetwork),
    /// passt's.
    Passt(Passt),
}

impl Network {
    /// Starts the process: it, and the socket for the guest's card.
    ///
    /// # Errors
    /// There are no more processes or descriptors.
    pub fn start(&self) -> Result<(Child, OwnedFd), MachineFailure> {
        match self {
            Self::User(network) => network.start(),
            Self::Passt(passt) => passt.start(),
        }
    }

    const fn name(&self) -> &'static str {
        match self {
            Self::User(_) => "user",
            Self::Passt(_) => "passt",
        }
    }

    fn wire(&self, socket: OwnedFd) -> Wire {
        match self {
            Self::User(network) => Wire::Frames {
                socket,
                mtu: network.mtu(),
            },
            Self::Passt(passt) => Wire::Stream {
                socket,
                mtu: passt.mtu(),
            },
        }
    }
}

impl OpenNet {
    /// Opens what is open for all boots.
    ///
    /// # Errors
    /// It cannot be opened, or is not there.
    pub fn open(net: &NetName) -> Result<Self, MachineFailure> {
        let mac = net.mac;
        let network = match &net.to {
            NetTo::Tap(name) => {
                return Ok(Self::Tap(Net {
                    wire: Wire::Tap(open_tap(name)?),
                    name: name.clone(),
                    mac,
                }));
            }
            NetTo::User(user) => Network::User(UserNetwork::open(user, mac)?),
            NetTo::Passt(passt) => Network::Passt(Passt::find(passt)?),
        };
        Ok(Self::Process { network, mac })
    }

    /// The machine's part, in the worker; `cards` are the sockets of the processes.
    pub fn into_part(self, cards: &mut impl Iterator<Item = OwnedFd>) -> Option<Net> {
        match self {
            Self::Tap(net) => Some(net),
            Self::Process { network, mac } => {
                let wire = network.wire(cards.next()?);
                let name = network.name().to_owned();
                // The worker closes what it does not keep: here it is not closed a second time.
                std::mem::forget(network);
                Some(Net { wire, name, mac })
            }
        }
    }
}
