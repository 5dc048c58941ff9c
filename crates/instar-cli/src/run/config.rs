//! A machine as the user describes it: in a file, and by options, which go before the file.
//!
//! `--dry-run` prints what `--config` reads.

mod parts;
mod values;

pub use self::parts::{CloudInit, Disk, Format, Net, NetKind, Transport, Vsock};
pub use self::values::{Mac, Size, Stream};
use serde::{Deserialize, Serialize};
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

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests;
