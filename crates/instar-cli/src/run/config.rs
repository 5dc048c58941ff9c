//! A machine as the user describes it: in a file, and by options, which go before the file.
//!
//! `--dry-run` prints what `--config` reads.

use instar_shared::op::ImageFormat;
use instar_user_net::servers::DNS_PORT;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

/// Memory of a machine that nobody gave a size, and of one that boots a disk image.
const DEFAULT_MEMORY: u64 = 512 << 20;
const IMAGE_MEMORY: u64 = 1 << 30;
/// vCPUs of one that boots a disk image, where the host has as many.
const IMAGE_CPUS: u8 = 2;
/// How long a guest may take to shut down.
const DEFAULT_SHUTDOWN_SECONDS: u64 = 30;

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Config {
    /// Disk image that is booted: the first disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<PathBuf>,
    /// Its format; by default qcow2 if its name ends in `.qcow2`, which no guest can change, and else raw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// What the guest writes to the image is thrown away at the end.
    #[serde(skip_serializing_if = "is_default")]
    pub ephemeral: bool,
    /// The boot loader's entry that is booted, if not its default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entry: Option<String>,
    /// Words behind the entry's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub append: Option<String>,
    /// Kernel: ELF or bzImage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Firmware with a PVH entry, instead of a kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// vCPUs; by default one, or two for a disk image where the host has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<u8>,
    /// Memory; by default 512 MiB, or 1 GiB for a disk image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Size>,
    /// How virtio devices are found.
    pub transport: Transport,
    /// Where the serial line goes; by default to the terminal unless the console does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<Stream>,
    /// Where the virtio console goes.
    pub console: Stream,
    /// A source of random bytes; a disk image always has one.
    pub rng: bool,
    /// Start again when the guest reboots.
    pub reboot: bool,
    /// Seconds from the power button to the end.
    pub shutdown_timeout: u64,
    /// Disks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub disk: Vec<Disk>,
    /// Network devices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<Net>,
    /// vsock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<Vsock>,
    /// What the guest's cloud-init is told.
    #[serde(skip_serializing_if = "is_default")]
    pub cloud_init: CloudInit,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            image: None,
            format: None,
            ephemeral: false,
            entry: None,
            append: None,
            kernel: None,
            initrd: None,
            cmdline: None,
            firmware: None,
            cpus: None,
            memory: None,
            transport: Transport::Pci,
            serial: None,
            console: Stream::None,
            rng: false,
            reboot: true,
            shutdown_timeout: DEFAULT_SHUTDOWN_SECONDS,
            disk: Vec::new(),
            net: Vec::new(),
            vsock: None,
            cloud_init: CloudInit::default(),
        }
    }
}

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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// A size in bytes; written with the largest unit that it is a multiple of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size(pub u64);

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let unit = [("G", 30_u32), ("M", 20), ("K", 10)];
        let unit = unit
            .iter()
            .find(|(_, shift)| self.0 > 0 && self.0.trailing_zeros() >= *shift);
        match unit {
            Some((letter, shift)) => {
                serializer.serialize_str(&format!("{}{letter}", self.0 >> shift))
            }
            None => serializer.serialize_u64(self.0),
        }
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a size: a number of bytes, or a text such as \"512M\""
        )]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => crate::size::parse(&text)
                .map(Self)
                .map_err(serde::de::Error::custom),
        }
    }
}

/// Where a line goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stream {
    /// Nowhere.
    #[default]
    None,
    /// Standard input and output.
    Stdio,
    /// A terminal that is made for it.
    Pty,
    /// A file gets the output.
    File(PathBuf),
}

impl From<&Path> for Stream {
    fn from(word: &Path) -> Self {
        match word.to_str() {
            Some("none") => Self::None,
            Some("stdio") => Self::Stdio,
            Some("pty") => Self::Pty,
            _ => Self::File(word.to_owned()),
        }
    }
}

impl Serialize for Stream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::None => serializer.serialize_str("none"),
            Self::Stdio => serializer.serialize_str("stdio"),
            Self::Pty => serializer.serialize_str("pty"),
            Self::File(path) => path.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Stream {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::from(PathBuf::deserialize(deserializer)?.as_path()))
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Reads six bytes such as `02:00:5e:10:00:01`.
    ///
    /// # Errors
    /// One sentence: it is none, or one of a group.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "'{text}' is not a MAC address: write six bytes such as 02:00:5e:10:00:01, the first of them even"
            )
        };
        let bytes = text.split(':').map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        });
        let bytes: Vec<u8> = bytes.collect::<Option<_>>().ok_or_else(wrong)?;
        let bytes: [u8; 6] = bytes.try_into().map_err(|_| wrong())?;
        match bytes {
            [first, ..] if first & 1 != 0 => Err(wrong()),
            [0, 0, 0, 0, 0, 0] => Err(wrong()),
            _ => Ok(Self(bytes)),
        }
    }

    /// A local address that is always the same for a tap device: FNV-1a of its name.
    #[must_use]
    pub fn of_name(name: &str) -> Self {
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let [a, b, c, d, e, ..] = hash.to_le_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl std::fmt::Display for Mac {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Serialize for Mac {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Mac {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl Config {
    /// Reads a file's text; `name` is the file's.
    ///
    /// # Errors
    /// One sentence with the line.
    pub fn parse(text: &str, name: &Path) -> Result<Self, String> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            let before = text.get(..start).unwrap_or_default();
            let line = before.matches('\n').count() + 1;
            let said = error.message().replace('\n', " ");
            format!("{}:{line}: {said}", name.display())
        })
    }

    /// The text that [`Config::parse`] reads as this.
    ///
    /// # Errors
    /// A name in it is not Unicode.
    pub fn text(&self) -> Result<String, String> {
        toml::to_string(self)
            .map_err(|error| format!("the machine cannot be written as TOML: {error}"))
    }

    /// The format of the image.
    #[must_use]
    pub fn disk_format(&self) -> Format {
        let by_name = || match self.image.as_ref().and_then(|image| image.extension()) {
            Some(extension) if extension == "qcow2" => Format::Qcow2,
            _ => Format::Raw,
        };
        self.format.unwrap_or_else(by_name)
    }

    /// Whether the kernel is what the image boots.
    #[must_use]
    pub const fn scans(&self) -> bool {
        self.image.is_some() && self.kernel.is_none() && self.firmware.is_none()
    }

    /// vCPUs.
    #[must_use]
    pub fn cpus(&self) -> u8 {
        let of_host = || {
            let count = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            u8::try_from(count).unwrap_or(u8::MAX).min(IMAGE_CPUS)
        };
        match (self.cpus, &self.image) {
            (Some(cpus), _) => cpus,
            (None, Some(_)) => of_host(),
            (None, None) => 1,
        }
    }

    /// Memory in bytes.
    #[must_use]
    pub fn memory(&self) -> u64 {
        match (self.memory, &self.image) {
            (Some(memory), _) => memory.0,
            (None, Some(_)) => IMAGE_MEMORY,
            (None, None) => DEFAULT_MEMORY,
        }
    }

    /// Where the serial line goes.
    #[must_use]
    pub fn serial(&self) -> Stream {
        match (&self.serial, &self.console) {
            (Some(stream), _) => stream.clone(),
            (None, Stream::Stdio) => Stream::None,
            (None, _) => Stream::Stdio,
        }
    }

    /// The kernel's command line: as given, or one that names the console.
    #[must_use]
    pub fn cmdline(&self) -> String {
        let console = || match self.console() {
            Some(console) => format!("console={console}"),
            None => String::new(),
        };
        self.cmdline.clone().unwrap_or_else(console)
    }

    /// The kernel's name of the console that there is.
    #[must_use]
    pub fn console(&self) -> Option<&'static str> {
        match (self.serial(), &self.console) {
            (Stream::None, Stream::None) => None,
            (Stream::None, _) => Some("hvc0"),
            _ => Some("ttyS0"),
        }
    }

    /// Fills in what follows from the rest.
    #[must_use]
    pub fn complete(mut self) -> Self {
        self.serial = Some(self.serial());
        self.cpus = Some(self.cpus());
        self.memory = Some(Size(self.memory()));
        self.rng |= self.image.is_some();
        if self.kernel.is_some() {
            self.cmdline = Some(self.cmdline());
        }
        for net in &mut self.net {
            if net.kind != Some(NetKind::None) {
                net.mac = Some(net.mac());
            }
        }
        self
    }
}

#[cfg(test)]
mod tests;
