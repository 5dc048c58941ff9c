//! The options of `run`.

use super::config::{Config, Disk, Format, Mac, Net, NetKind, Size, Stream, Transport, Vsock};
use crate::cli::LimitOptions;
use crate::opts::keyval;
use clap::{Args, ValueEnum};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::Duration;

/// Options of `run`.
#[derive(Args, Debug)]
pub struct RunOptions {
    /// Disk image to boot: the first disk; its boot loader's entry is started
    #[arg(value_name = "IMAGE")]
    pub image: Option<PathBuf>,
    /// The image's format (default: qcow2 if its name ends in .qcow2, else raw)
    #[arg(short = 'f', long, value_name = "FORMAT")]
    pub format: Option<Format>,
    /// Only read the image: what the guest writes goes to a file without a name in TMPDIR (default: /var/tmp)
    #[arg(long)]
    pub ephemeral: bool,
    /// Start this entry of the image's boot loader: its index, ID or title (default: the boot loader's default)
    #[arg(long, value_name = "ENTRY", allow_hyphen_values = true)]
    pub entry: Option<String>,
    /// Put these words behind the entry's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub append: Option<String>,
    /// A file that cloud-init gets as user-data
    #[arg(long, value_name = "FILE", help_heading = "Cloud-init")]
    pub user_data: Option<PathBuf>,
    /// A file that cloud-init gets as meta-data
    #[arg(long, value_name = "FILE", help_heading = "Cloud-init")]
    pub meta_data: Option<PathBuf>,
    /// A file that cloud-init gets as network-config
    #[arg(long, value_name = "FILE", help_heading = "Cloud-init")]
    pub network_config: Option<PathBuf>,
    /// A public key, or a file of them, by which one may log in as the image's default user
    #[arg(long, value_name = "KEY", help_heading = "Cloud-init")]
    pub ssh_key: Vec<String>,
    /// Name of the host
    #[arg(long, value_name = "NAME", help_heading = "Cloud-init")]
    pub hostname: Option<String>,
    /// Kernel: an ELF vmlinux, or a bzImage
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line (default: the console that there is)
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub cmdline: Option<String>,
    /// Firmware with a PVH entry, which finds the rest itself
    #[arg(long, value_name = "FILE")]
    pub firmware: Option<PathBuf>,
    /// A disk, as FILE[,format=raw|qcow2][,readonly][,direct][,serial=ID][,bytes-per-second=SIZE][,requests-per-second=N]
    #[arg(long, value_name = "DISK")]
    pub disk: Vec<OsString>,
    /// A network device, as user[,mtu=N][,dns=ADDRESS][,mac=ADDRESS], passt (the same), tap:NAME[,mac=ADDRESS] or none
    #[arg(long, value_name = "NET")]
    pub net: Vec<String>,
    /// A port of this host that leads into the guest, as tcp:[ADDRESS:]HOSTPORT:GUESTPORT, or udp (default: 127.0.0.1)
    #[arg(long, value_name = "PORTS")]
    pub forward: Vec<String>,
    /// What the guest may reach through --net user, beside the internet
    #[arg(long, value_name = "RULE")]
    pub allow: Vec<String>,
    /// What the guest may not reach through --net user; all: nothing that is not allowed
    #[arg(long, value_name = "RULE")]
    pub deny: Vec<String>,
    /// A file that gets a line for each flow that --net user denies
    #[arg(long, value_name = "FILE")]
    pub net_log: Option<PathBuf>,
    /// vsock, as CID:PATH or cid=CID,socket=PATH
    #[arg(long, value_name = "VSOCK")]
    pub vsock: Option<OsString>,
    /// vCPUs (default: 1; for an image 2, or as many as the host has)
    #[arg(long, value_name = "N")]
    pub cpus: Option<u8>,
    /// How virtio devices are found (default: pci)
    #[arg(long, value_name = "KIND")]
    pub transport: Option<Transport>,
    /// Where the serial line goes: stdio, pty, none, or a file
    #[arg(long, value_name = "WHERE")]
    pub serial: Option<PathBuf>,
    /// Where the virtio console goes: stdio, pty, none, or a file (default: none)
    #[arg(long, value_name = "WHERE")]
    pub console: Option<PathBuf>,
    /// Give the guest a source of random bytes
    #[arg(long)]
    pub rng: bool,
    /// End when the guest reboots
    #[arg(long)]
    pub no_reboot: bool,
    /// Seconds that the guest has to shut down after SIGINT or SIGTERM (default: 30)
    #[arg(long, value_name = "SECS")]
    pub shutdown_timeout: Option<u64>,
    /// Report each boot, its phases and times, as a line of JSON
    #[arg(long)]
    pub json: bool,
    /// Print the machine as TOML and start nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Take the machine from a TOML file; options go before what it says
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Not possible yet
    #[arg(long, hide = true)]
    pub snapshot_on_exit: bool,
    /// Save, reset and restore all devices again and again, after so many milliseconds
    #[arg(long, value_name = "MILLISECONDS", hide = true)]
    pub recycle_devices: Option<u64>,
}

impl RunOptions {
    /// The machine that the options make of `config`.
    ///
    /// # Errors
    /// An option's value is wrong.
    pub fn over(&self, mut config: Config, limits: &LimitOptions) -> Result<Config, String> {
        if self.snapshot_on_exit {
            return Err(
                "--snapshot-on-exit is not possible yet: when the machine is off, `instar snapshot -c NAME IMAGE` makes one of a qcow2 image"
                    .into(),
            );
        }
        self.over_image(&mut config);
        let over = |to: &mut Option<PathBuf>, from: &Option<PathBuf>| {
            if from.is_some() {
                to.clone_from(from);
            }
        };
        over(&mut config.kernel, &self.kernel);
        over(&mut config.initrd, &self.initrd);
        over(&mut config.firmware, &self.firmware);
        if self.cmdline.is_some() {
            config.cmdline.clone_from(&self.cmdline);
        }
        if !self.disk.is_empty() {
            let disks = self.disk.iter().map(|text| disk(text));
            config.disk = disks.collect::<Result<_, _>>()?;
        }
        if !self.net.is_empty() {
            let nets = self.net.iter().map(|text| net(text));
            config.net = nets.collect::<Result<_, _>>()?;
        }
        self.over_user_net(&mut config)?;
        if let Some(text) = &self.vsock {
            config.vsock = Some(vsock(text)?);
        }
        config.cpus = self.cpus.or(config.cpus);
        config.memory = limits.memory.map(Size).or(config.memory);
        config.transport = self.transport.unwrap_or(config.transport);
        if let Some(stream) = &self.serial {
            config.serial = Some(Stream::from(stream.as_path()));
        }
        if let Some(stream) = &self.console {
            config.console = Stream::from(stream.as_path());
        }
        config.rng |= self.rng;
        config.reboot &= !self.no_reboot;
        config.shutdown_timeout = self.shutdown_timeout.unwrap_or(config.shutdown_timeout);
        Ok(config)
    }

    /// What the options say of an image that is booted, and of its cloud-init.
    fn over_image(&self, config: &mut Config) {
        fn over<T: Clone>(to: &mut Option<T>, from: &Option<T>) {
            if from.is_some() {
                to.clone_from(from);
            }
        }
        over(&mut config.image, &self.image);
        over(&mut config.format, &self.format);
        config.ephemeral |= self.ephemeral;
        over(&mut config.entry, &self.entry);
        over(&mut config.append, &self.append);
        let cloud = &mut config.cloud_init;
        over(&mut cloud.user_data, &self.user_data);
        over(&mut cloud.meta_data, &self.meta_data);
        over(&mut cloud.network_config, &self.network_config);
        over(&mut cloud.hostname, &self.hostname);
        if !self.ssh_key.is_empty() {
            cloud.ssh_key.clone_from(&self.ssh_key);
        }
    }

    /// What the options say of the user network, which is there if they do, or if an image is booted, and no other network is; or
    /// of passt's, to which only ports that are forwarded belong, as is checked later.
    fn over_user_net(&self, config: &mut Config) -> Result<(), String> {
        let lists = [&self.forward, &self.allow, &self.deny];
        let said = lists.iter().any(|list| !list.is_empty()) || self.net_log.is_some();
        if config.net.is_empty() && (said || config.image.is_some()) {
            config.net.push(Net::of_kind(NetKind::User));
        }
        if !said {
            return Ok(());
        }
        let mut nets = config.net.iter_mut();
        let net = nets.find(|net| matches!(net.kind, Some(NetKind::User | NetKind::Passt)));
        let net = net.ok_or("--forward, --allow, --deny and --net-log belong to --net user")?;
        for (to, from) in [&mut net.forward, &mut net.allow, &mut net.deny]
            .into_iter()
            .zip(lists)
        {
            if !from.is_empty() {
                to.clone_from(from);
            }
        }
        if self.net_log.is_some() {
            net.log.clone_from(&self.net_log);
        }
        Ok(())
    }

    /// The time after which devices are recycled.
    #[must_use]
    pub fn recycle(&self) -> Option<Duration> {
        let period = self.recycle_devices.map(Duration::from_millis);
        period.filter(|period| !period.is_zero())
    }
}

/// The words of a list, which commas part; two commas stand for one.
fn words(text: &[u8]) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = text;
    loop {
        let (word, after) = keyval::value(rest);
        words.push(word);
        if after.is_empty() {
            return words;
        }
        rest = after;
    }
}

/// A word as key and value.
fn pair(word: &[u8]) -> (String, Option<&[u8]>) {
    let split = word.iter().position(|byte| *byte == b'=');
    let (key, value) = word.split_at(split.unwrap_or(word.len()));
    (String::from_utf8_lossy(key).into_owned(), value.get(1..))
}

fn text_of(option: &str, key: &str, value: Option<&[u8]>) -> Result<String, String> {
    let value = value.ok_or_else(|| format!("{option}: '{key}' needs a value, as in {key}=…"))?;
    String::from_utf8(value.to_vec()).map_err(|_| format!("{option}: '{key}' is not text"))
}

fn switch(option: &str, key: &str, value: Option<&[u8]>) -> Result<bool, String> {
    match value {
        None | Some(b"on" | b"true") => Ok(true),
        Some(b"off" | b"false") => Ok(false),
        Some(_) => Err(format!("{option}: '{key}' is on or off")),
    }
}

fn path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

fn disk(text: &OsStr) -> Result<Disk, String> {
    const OPTION: &str = "--disk";
    let words = words(text.as_bytes());
    let mut disk = Disk::default();
    for (index, word) in words.iter().enumerate() {
        let (key, value) = pair(word);
        match (index, key.as_str(), value) {
            (_, "file", Some(name)) => disk.file = path(name),
            // A name may hold a sign of equality.
            (0, _, _) => disk.file = path(word),
            (_, "readonly", value) => disk.readonly = switch(OPTION, "readonly", value)?,
            (_, "direct", value) => disk.direct = switch(OPTION, "direct", value)?,
            (_, "format", value) => {
                let name = text_of(OPTION, "format", value)?;
                let format = Format::from_str(&name, false);
                disk.format = Some(format.map_err(|_| {
                    format!("{OPTION}: '{name}' is no format of a disk: raw or qcow2")
                })?);
            }
            (_, "serial", value) => disk.serial = text_of(OPTION, "serial", value)?,
            (_, "bytes-per-second", value) => {
                let size = text_of(OPTION, "bytes-per-second", value)?;
                disk.bytes_per_second = Size(crate::size::parse(&size)?);
            }
            (_, "requests-per-second", value) => {
                let number = text_of(OPTION, "requests-per-second", value)?;
                disk.requests_per_second = number
                    .parse()
                    .map_err(|_| format!("{OPTION}: '{number}' is not a number"))?;
            }
            _ => return Err(unknown(OPTION, &key)),
        }
    }
    Ok(disk)
}

fn unknown(option: &str, key: &str) -> String {
    format!("{option} knows no '{key}'; in a name, two commas stand for one")
}

fn net(text: &str) -> Result<Net, String> {
    const OPTION: &str = "--net";
    let mut net = Net::default();
    for (index, word) in words(text.as_bytes()).iter().enumerate() {
        let (key, value) = pair(word);
        let text = String::from_utf8_lossy(word);
        match (index, key.as_str(), value) {
            (0, "user", None) => net.kind = Some(NetKind::User),
            (0, "passt", None) => net.kind = Some(NetKind::Passt),
            (0, "none", None) => net.kind = Some(NetKind::None),
            (0, _, _) => match text.strip_prefix("tap:").or(text.strip_prefix("tap=")) {
                Some(name) => net.tap = name.to_owned(),
                None => {
                    return Err(format!(
                        "{OPTION} expects user, passt, tap:NAME or none, not '{text}'"
                    ));
                }
            },
            (_, "mtu", value) => {
                let number = text_of(OPTION, "mtu", value)?;
                let mtu = number.parse();
                net.mtu = Some(mtu.map_err(|_| format!("{OPTION}: '{number}' is not a number"))?);
            }
            (_, "dns", value) => net.dns.push(text_of(OPTION, "dns", value)?),
            (_, "mac", value) => net.mac = Some(Mac::parse(&text_of(OPTION, "mac", value)?)?),
            _ => return Err(unknown(OPTION, &key)),
        }
    }
    Ok(net)
}

fn vsock(text: &OsStr) -> Result<Vsock, String> {
    const OPTION: &str = "--vsock";
    let number = |text: &str| {
        text.parse::<u32>()
            .map_err(|_| format!("{OPTION}: '{text}' is not a number"))
    };
    let bytes = text.as_bytes();
    let digits = bytes
        .iter()
        .take_while(|byte| byte.is_ascii_digit())
        .count();
    if let (cid, [b':', socket @ ..]) = bytes.split_at(digits) {
        return Ok(Vsock {
            cid: number(&String::from_utf8_lossy(cid))?,
            socket: path(socket),
        });
    }
    let mut vsock = Vsock::default();
    for word in words(bytes) {
        let (key, value) = pair(&word);
        match (key.as_str(), value) {
            ("cid", value) => vsock.cid = number(&text_of(OPTION, "cid", value)?)?,
            ("socket", Some(name)) => vsock.socket = path(name),
            _ => {
                return Err(format!(
                    "{OPTION} expects CID:PATH or cid=CID,socket=PATH, not '{}'",
                    text.display()
                ));
            }
        }
    }
    Ok(vsock)
}

#[cfg(test)]
mod tests;
