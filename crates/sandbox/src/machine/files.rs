//! Opens what the user named for a machine.

use super::nets::{Network, OpenNet};
use super::terminal::Pty;
use super::{
    BootFiles, Child, DiskFile, DiskImage, MachineFailure, MachineJob, MachineOutput, Stream,
};
use crate::input::{Access, Growth, InputFile};
use crate::live::{LiveImage, Unopened};
use crate::locks::Reads;
use crate::machine::connect::Asking;
use crate::open::{self, Opened};
use instar_vmm::HostFile;
use instar_vmm::machine::disk::store::Served;
use instar_vmm::machine::parts::{Boot, Disk, Line, Net, Parts, Vsock, Wire};
use rustix::event::epoll;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// All open files of a machine. A fork has them, too.
#[derive(Debug)]
pub struct MachineFiles {
    /// What is started, once that is known.
    boot: Option<Boot>,
    serial: Line,
    console: Option<Line>,
    disks: Vec<OpenDisk>,
    nets: Vec<OpenNet>,
    vsock: Option<Listening>,
    /// Held so that the lines do not hang up.
    terminals: Vec<OwnedFd>,
}

/// A disk whose image is open and locked.
#[derive(Debug)]
enum OpenDisk {
    Raw(Disk),
    Live {
        image: Box<LiveImage>,
        opened: Opened,
    },
}

impl OpenDisk {
    fn open(disk: &DiskImage) -> Result<Self, MachineFailure> {
        Ok(match disk {
            DiskImage::Raw(disk) => Self::Raw(open_disk(disk)?),
            DiskImage::Live(image) => Self::Live {
                opened: image.open()?,
                image: image.clone(),
            },
        })
    }

    /// The machine's part, in the worker; `unopened` are the disks whose readers have begun.
    fn into_part(
        self,
        unopened: &mut impl Iterator<Item = Unopened>,
    ) -> Result<Served, MachineFailure> {
        match self {
            Self::Raw(disk) => Ok(Served::Raw(disk)),
            Self::Live { opened, .. } => {
                let unknown = || MachineFailure::Protocol("too few disks");
                let disk = unopened.next().ok_or_else(unknown)?;
                // The worker closes what it does not keep: here it is not closed a second time.
                std::mem::forget(opened);
                Ok(Served::Live(Box::new(disk.open()?)))
            }
        }
    }
}

/// Descriptors of what is started.
fn boot_descriptors(boot: &Boot) -> Vec<RawFd> {
    match boot {
        Boot::Kernel { kernel, initrd, .. } => {
            let initrd = initrd.iter().map(AsRawFd::as_raw_fd);
            initrd.chain([kernel.as_raw_fd()]).collect()
        }
        Boot::Found { kernel, initrd, .. } => vec![kernel.as_raw_fd(), initrd.as_raw_fd()],
        Boot::Firmware(firmware) => vec![firmware.as_raw_fd()],
    }
}

/// Descriptors of a disk.
fn descriptors(disk: &Served) -> Vec<RawFd> {
    match disk {
        Served::Raw(disk) => vec![disk.file.as_raw_fd()],
        Served::Live(disk) => {
            let files = disk.files.iter().flatten();
            let files = files.map(|live| live.file.as_raw_fd());
            files.chain([disk.asker.socket().as_raw_fd()]).collect()
        }
    }
}

/// The host's vsock socket; it goes when this goes.
#[derive(Debug)]
struct Listening {
    cid: u32,
    listener: UnixListener,
    path: PathBuf,
}

impl MachineFiles {
    /// Opens all of them: disks first, whose locks say whether the machine may run at all.
    ///
    /// # Errors
    /// The first that fails.
    pub fn open(job: &MachineJob, output: &mut dyn MachineOutput) -> Result<Self, MachineFailure> {
        let disks = job.disks.iter().map(OpenDisk::open);
        let mut disks = disks.collect::<Result<Vec<_>, _>>()?;
        if let Some(seed) = &job.seed {
            disks.push(OpenDisk::Raw(in_memory("cidata", seed)?));
        }
        let boot = boot(&job.boot)?;
        let mut terminals = Vec::new();
        let serial = line("serial line", &job.serial, &mut terminals, output)?;
        let console = match &job.console {
            Stream::None => None,
            stream => Some(line("console", stream, &mut terminals, output)?),
        };
        let nets = job.nets.iter().map(OpenNet::open);
        let nets = nets.collect::<Result<_, MachineFailure>>()?;
        let vsock = match &job.vsock {
            Some(vsock) => Some(listen(vsock.cid, &vsock.path)?),
            None => None,
        };
        Ok(Self {
            boot,
            serial,
            console,
            disks,
            nets,
            vsock,
            terminals,
        })
    }

    /// What this boot starts; none frees what the one before has started with.
    pub fn set_boot(&mut self, boot: Option<Boot>) {
        self.boot = boot;
    }

    /// Path of the host's vsock socket.
    pub fn vsock_path(&self) -> Option<&Path> {
        self.vsock.as_ref().map(|vsock| vsock.path.as_path())
    }

    /// Starts the readers of the disks that need one, for a boot.
    ///
    /// # Errors
    /// There are no more processes or descriptors.
    pub fn start_readers(&self) -> Result<(Vec<Child>, Vec<Unopened>), MachineFailure> {
        let live = self.disks.iter().filter_map(|disk| match disk {
            OpenDisk::Raw(_) => None,
            OpenDisk::Live { image, opened } => Some(image.start(opened)),
        });
        live.collect()
    }

    /// The networks that processes make.
    pub fn networks(&self) -> impl Iterator<Item = &Network> {
        self.nets.iter().filter_map(|net| match net {
            OpenNet::Tap(_) => None,
            OpenNet::Process { network, .. } => Some(network),
        })
    }

    /// Removes what was made for the machine; in the parent, at the end.
    pub fn remove(&self) {
        if let Some(path) = self.vsock_path() {
            // Someone else may have removed it.
            let _ = std::fs::remove_file(path);
        }
    }

    /// The parts of the machine, in the worker, which asks on `line` for connections; and all descriptors of them. `cards`
    /// are the sockets of the networks that processes make, `unopened` the disks whose readers have begun.
    ///
    /// # Errors
    /// It is not known what to start, or a reader cannot say what its disk is.
    pub fn into_parts(
        self,
        job: &MachineJob,
        line: OwnedFd,
        cards: Vec<OwnedFd>,
        unopened: Vec<Unopened>,
    ) -> Result<(Parts, Vec<RawFd>), MachineFailure> {
        let boot = self
            .boot
            .ok_or_else(|| MachineFailure::Scan("there is nothing to start".to_owned()))?;
        let mut unopened = unopened.into_iter();
        let disks = self.disks.into_iter();
        let disks = disks.map(|disk| disk.into_part(&mut unopened));
        let disks: Vec<Served> = disks.collect::<Result<_, _>>()?;
        let mut kept = vec![line.as_raw_fd()];
        kept.extend(cards.iter().map(AsRawFd::as_raw_fd));
        let mut cards = cards.into_iter();
        let nets = self.nets.into_iter();
        let nets: Vec<Net> = nets.filter_map(|net| net.into_part(&mut cards)).collect();
        let mut vsock = None;
        if let Some(listening) = self.vsock {
            kept.push(listening.listener.as_raw_fd());
            vsock = Some(Vsock {
                cid: listening.cid,
                listener: listening.listener,
                connector: Box::new(Asking::new(line)),
            });
        } else {
            // The parent sees its end close when the worker is gone.
            std::mem::forget(line);
        }
        kept.extend(boot_descriptors(&boot));
        for line in [Some(&self.serial), self.console.as_ref()]
            .into_iter()
            .flatten()
        {
            kept.extend(line.output.iter().map(AsRawFd::as_raw_fd));
            kept.extend(line.input.iter().map(AsRawFd::as_raw_fd));
        }
        kept.extend(disks.iter().flat_map(descriptors));
        kept.extend(nets.iter().map(|net| match &net.wire {
            Wire::Tap(descriptor)
            | Wire::Frames {
                socket: descriptor, ..
            }
            | Wire::Stream {
                socket: descriptor, ..
            } => descriptor.as_raw_fd(),
        }));
        kept.extend(self.terminals.iter().map(AsRawFd::as_raw_fd));
        // They are open as long as the process is.
        self.terminals.into_iter().for_each(std::mem::forget);
        let parts = Parts {
            cpus: job.cpus,
            memory_bytes: job.memory_bytes,
            transport: job.transport,
            boot,
            serial: self.serial,
            console: self.console,
            disks,
            nets,
            vsock,
            rng: job.rng,
        };
        Ok((parts, kept))
    }
}

fn file(what: &'static str, path: &Path) -> Result<File, MachineFailure> {
    let failed = |source| MachineFailure::File {
        what,
        path: path.to_owned(),
        source,
    };
    // A FIFO does not block.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    let file =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
    let file = File::from(file);
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::other("it is not a regular file")));
    }
    Ok(file)
}

/// What the user has named; none if it must be looked for.
fn boot(files: &BootFiles) -> Result<Option<Boot>, MachineFailure> {
    let boot = match files {
        BootFiles::Scan(_) => return Ok(None),
        BootFiles::Kernel {
            kernel,
            initrd,
            cmdline,
        } => Boot::Kernel {
            kernel: file("kernel", kernel)?,
            initrd: initrd
                .as_deref()
                .map(|path| file("initial RAM disk", path))
                .transpose()?,
            cmdline: cmdline.clone(),
        },
        BootFiles::Firmware(path) => Boot::Firmware(file("firmware", path)?),
    };
    Ok(Some(boot))
}

/// Opens and locks a disk as operations do: one that is written is written by nobody else.
///
/// # Errors
/// It cannot be opened, is in use, or is none.
pub(crate) fn open_disk(disk: &DiskFile) -> Result<Disk, MachineFailure> {
    let opened = open::open_inputs(&[input(disk)]).map_err(MachineFailure::Disk)?;
    let none = || MachineFailure::NoDisk(disk.path.clone());
    as_disk(disk, opened.into_iter().next().ok_or_else(none)?)
}

fn input(disk: &DiskFile) -> InputFile {
    InputFile {
        path: disk.path.clone(),
        described: None,
        secrets: Vec::new(),
        share: false,
        direct: disk.direct,
        access: if disk.read_only {
            Access::Read(Reads::Source)
        } else {
            Access::Change
        },
        growth: Growth::AtMost { extra_bytes: 0 },
    }
}

fn as_disk(disk: &DiskFile, opened: Opened) -> Result<Disk, MachineFailure> {
    if opened.facts.character_device {
        return Err(MachineFailure::NoDisk(disk.path.clone()));
    }
    Ok(Disk {
        file: HostFile::new(opened.file, opened.facts.direct_align),
        name: disk.path.clone(),
        len_bytes: opened.facts.len_bytes,
        read_only: disk.read_only,
        block_device: opened.facts.block_device,
        serial: disk.serial.clone(),
        rate: disk.rate,
    })
}

/// A disk of these bytes, which nobody can change.
fn in_memory(name: &str, bytes: &[u8]) -> Result<Disk, MachineFailure> {
    let failed = |source| MachineFailure::Start {
        step: "memfd_create",
        source,
    };
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(name, flags).map_err(|errno| failed(errno.into()))?;
    let mut file = File::from(file);
    file.write_all(bytes).map_err(failed)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    rustix::fs::fcntl_add_seals(&file, seals).map_err(|errno| failed(errno.into()))?;
    Ok(Disk {
        file: HostFile::new(file, 0),
        name: name.into(),
        len_bytes: bytes.len() as u64,
        read_only: true,
        block_device: false,
        serial: name.to_owned(),
        rate: None,
    })
}

/// The ends of a line.
fn line(
    what: &'static str,
    stream: &Stream,
    terminals: &mut Vec<OwnedFd>,
    output: &mut dyn MachineOutput,
) -> Result<Line, MachineFailure> {
    let failed = |source: io::Error| MachineFailure::Start {
        step: "dup",
        source,
    };
    let nowhere = Line {
        output: None,
        input: None,
        terminal: false,
    };
    match stream {
        Stream::None => Ok(nowhere),
        Stream::File(path) => Ok(Line {
            output: Some(new_file(path)?),
            ..nowhere
        }),
        Stream::Pty => {
            let made = Pty::new()?;
            output.terminal_made(what, &made.path);
            let copy = made.machine.try_clone().map_err(failed)?;
            terminals.push(made.user);
            Ok(Line {
                output: Some(made.machine),
                input: Some(copy),
                terminal: false,
            })
        }
        Stream::Stdio => {
            let stdin = io::stdin();
            let input = if can_be_waited_for(stdin.as_fd())? {
                Some(stdin.as_fd().try_clone_to_owned().map_err(failed)?)
            } else {
                None
            };
            let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
            Ok(Line {
                output: Some(stdout),
                input,
                terminal: io::IsTerminal::is_terminal(&stdin),
            })
        }
    }
}

/// Whether input can come later: an empty device never has any.
///
/// # Errors
/// It is a file with bytes, of which it cannot be told when they come.
fn can_be_waited_for(input: BorrowedFd<'_>) -> Result<bool, MachineFailure> {
    let failed = |errno: rustix::io::Errno| MachineFailure::Start {
        step: "epoll",
        source: errno.into(),
    };
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed)?;
    match epoll::add(
        &epoll,
        input,
        epoll::EventData::new_u64(0),
        epoll::EventFlags::IN,
    ) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::PERM) => {
            let stat = rustix::fs::fstat(input).map_err(failed)?;
            if stat.st_size > 0 {
                return Err(MachineFailure::InputIsFile);
            }
            Ok(false)
        }
        // It is closed.
        Err(rustix::io::Errno::BADF) => Ok(false),
        Err(errno) => Err(failed(errno)),
    }
}

/// A file that gets a line's output: made if it is not there, emptied if it is.
fn new_file(path: &Path) -> Result<OwnedFd, MachineFailure> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path);
    file.map(OwnedFd::from)
        .map_err(|source| MachineFailure::File {
            what: "output file",
            path: path.to_owned(),
            source,
        })
}

/// Makes the host's vsock socket. One that a machine has left behind is removed.
fn listen(cid: u32, path: &Path) -> Result<Listening, MachineFailure> {
    let failed = |reason: String| MachineFailure::Socket {
        path: path.to_owned(),
        reason,
    };
    // The sockets of all ports must have a name.
    rustix::net::SocketAddrUnix::new(super::connect::beside(path, u32::MAX)).map_err(|_| {
        failed("the path is too long for a socket, with a port behind it".to_owned())
    })?;
    let bind = || UnixListener::bind(path);
    let listener = bind().or_else(|error| {
        let left = error.kind() == io::ErrorKind::AddrInUse
            && UnixStream::connect(path)
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused);
        if !left {
            return Err(error);
        }
        std::fs::remove_file(path)?;
        bind()
    });
    let listener = listener.and_then(|listener| {
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    Ok(Listening {
        cid,
        listener: listener.map_err(|error| failed(super::said(&error)))?,
        path: path.to_owned(),
    })
}
