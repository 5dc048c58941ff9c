//! What a machine has: disks, network devices and the rest.

use super::is_default;
use super::values::{Mac, Size};
use instar_shared::op::ImageFormat;
use instar_user_net::servers::DNS_PORT;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

/// What the guest's cloud-init is told, on a disk of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct CloudInit {
    /// A file that is `user-data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user_data: Option<PathBuf>,
    /// A file that is `meta-data`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meta_data: Option<PathBuf>,
    /// A file that is `network-config`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network_config: Option<PathBuf>,
    /// Public keys of the image's default user, or files of them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh_key: Vec<String>,
    /// Name of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
}

/// How virtio devices are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// virtio-pci.
    Pci,
    /// virtio-mmio, described by ACPI.
    Mmio,
}

/// A disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Disk {
    /// An image or block device.
    pub file: PathBuf,
    /// Its format; raw by default, whatever its name is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Nothing is written.
    #[serde(default, skip_serializing_if = "is_default")]
    pub readonly: bool,
    /// What the guest reads as its identifier.
    #[serde(default, skip_serializing_if = "is_default")]
    pub serial: String,
    /// The page cache is passed by.
    #[serde(default, skip_serializing_if = "is_default")]
    pub direct: bool,
    /// Most bytes in a second; 0: any.
    #[serde(default, skip_serializing_if = "is_default")]
    pub bytes_per_second: Size,
    /// Most requests in a second; 0: any.
    #[serde(default, skip_serializing_if = "is_default")]
    pub requests_per_second: u64,
}

/// Format of a disk image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Its bytes are the disk's.
    Raw,
    /// qcow2.
    Qcow2,
}

impl Format {
    /// The same for operations.
    #[must_use]
    pub const fn image_format(self) -> ImageFormat {
        match self {
            Self::Raw => ImageFormat::Raw,
            Self::Qcow2 => ImageFormat::Qcow2,
        }
    }
}

/// A network device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Net {
    /// What it is connected to, if it is not a tap device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<NetKind>,
    /// Name of the tap device.
    #[serde(default, skip_serializing_if = "is_default")]
    pub tap: String,
    /// Longest packet of a user network, or of passt's, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// DNS servers of a user network, as ADDRESS or ADDRESS:PORT, or of passt's, as ADDRESS; the host's by default.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dns: Vec<String>,
    /// Ports of the host that lead into the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forward: Vec<String>,
    /// What the guest may reach.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// What it may not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// Gets a line for each flow that is denied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<PathBuf>,
    /// The guest's address; by default one that follows from the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<Mac>,
}

/// What a network device is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetKind {
    /// A user network.
    User,
    /// The network of passt, a program that the user has installed.
    Passt,
    /// Nothing: there is no device.
    None,
}

impl Net {
    /// A device on a user network, or none.
    #[must_use]
    pub fn of_kind(kind: NetKind) -> Self {
        Self {
            kind: Some(kind),
            ..Self::default()
        }
    }

    /// The guest's address: as given, or one that is always the same.
    #[must_use]
    pub fn mac(&self) -> Mac {
        let name = if self.kind.is_some() {
            "user network"
        } else {
            &self.tap
        };
        self.mac.unwrap_or_else(|| Mac::of_name(name))
    }

    /// Where passt's DNS servers are: their port is always the usual one.
    ///
    /// # Errors
    /// One sentence: one of them is no address.
    pub fn server_addresses(&self) -> Result<Vec<IpAddr>, String> {
        let server = |text: &String| {
            let wrong = |_| format!("'{text}' is not the address of a DNS server for passt");
            text.parse().map_err(wrong)
        };
        self.dns.iter().map(server).collect()
    }

    /// Where the user network's DNS servers are.
    ///
    /// # Errors
    /// One sentence: one of them is no address.
    pub fn servers(&self) -> Result<Vec<SocketAddr>, String> {
        let server = |text: &String| {
            let address = text
                .parse()
                .map(|address| SocketAddr::new(address, DNS_PORT));
            let address = address.or_else(|_| text.parse());
            address.map_err(|_| format!("'{text}' is not the address of a DNS server"))
        };
        self.dns.iter().map(server).collect()
    }
}

/// vsock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Vsock {
    /// The guest's address.
    pub cid: u32,
    /// Where the host's programs reach the guest; the guest reaches `SOCKET_PORT`.
    pub socket: PathBuf,
}
