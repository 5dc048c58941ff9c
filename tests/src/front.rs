//! A front end of vhost-user-blk: a driver with one ring, in memory that it reaches as a file.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

/// Requests at once.
pub const PLACES: u64 = 16;
/// Longest request in bytes.
pub const PLACE_BYTES: u64 = 1 << 20;

const RING_SIZE: u32 = 64;
/// Where things are in the memory; descriptors are at its start.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADERS: u64 = 0x3000;
const HEADER_BYTES: u64 = 32;
const DATA: u64 = 0x10_0000;
const MEMORY_BYTES: u64 = DATA + PLACES * PLACE_BYTES;
/// What the front end calls the memory's start.
const USER: u64 = 0x7000_0000_0000;

/// `VIRTIO_F_VERSION_1`, and flush of the device.
const FEATURES: u64 = 1 << 32 | 1 << 9;
/// Read only, and discard and write zeroes of the device, if it offers them.
const MORE_FEATURES: u64 = 1 << 5 | 1 << 13 | 1 << 14;
const PATIENCE: Duration = Duration::from_secs(100);

/// What a request does; offsets and lengths are in bytes.
#[derive(Clone, Debug)]
pub enum Request {
    /// Fills its place.
    Read {
        /// First byte.
        start: u64,
        /// How many.
        len: u64,
    },
    /// Writes what it has.
    Write {
        /// First byte.
        start: u64,
        /// What is written there.
        bytes: Vec<u8>,
    },
    /// Makes what was written durable.
    Flush,
    /// Gives a range back.
    Discard {
        /// First byte.
        start: u64,
        /// How many.
        len: u64,
    },
    /// Makes a range zeros.
    WriteZeroes {
        /// First byte.
        start: u64,
        /// How many.
        len: u64,
        /// It may be given back.
        unmap: bool,
    },
}

/// A connection with a running ring.
#[derive(Debug)]
pub struct Front {
    socket: UnixStream,
    memory: File,
    kick: OwnedFd,
    call: OwnedFd,
    avail: u16,
    used: u16,
}

impl Front {
    /// Connects, shares its memory, and starts the ring.
    ///
    /// # Errors
    /// Nobody listens there, or a message is answered with less than is needed.
    pub fn connect(path: &Path) -> Result<Self> {
        let memory = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC)?;
        let memory = File::from(memory);
        memory.set_len(MEMORY_BYTES)?;
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        let mut front = Self {
            socket: UnixStream::connect(path)?,
            memory,
            kick: event()?,
            call: event()?,
            avail: 0,
            used: 0,
        };
        front.socket.set_read_timeout(Some(PATIENCE))?;
        front.start()?;
        Ok(front)
    }

    fn start(&mut self) -> Result<()> {
        self.tell(3, &[], None)?;
        self.tell(1, &[], None)?;
        let offered = self.answer()?;
        ensure!(offered & FEATURES == FEATURES, "features {offered:#x}");
        let accepted = offered & (FEATURES | MORE_FEATURES);
        self.tell(2, &accepted.to_le_bytes(), None)?;
        let table = numbers(&[1, 0, MEMORY_BYTES, USER, 0]);
        self.tell(5, &table, Some(self.memory.as_fd()))?;
        self.tell(8, &numbers(&[u64::from(RING_SIZE) << 32]), None)?;
        let places = [0, USER, USER + USED, USER + AVAIL, 0];
        self.tell(9, &numbers(&places), None)?;
        self.tell(10, &numbers(&[0]), None)?;
        self.tell(13, &numbers(&[0]), Some(self.call.as_fd()))?;
        self.tell(12, &numbers(&[0]), Some(self.kick.as_fd()))
    }

    /// Sends a message.
    fn tell(&self, request: u32, payload: &[u8], file: Option<BorrowedFd<'_>>) -> Result<()> {
        let mut message = Vec::new();
        for word in [request, 1, u32::try_from(payload.len())?] {
            message.extend_from_slice(&word.to_le_bytes());
        }
        message.extend_from_slice(payload);
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
        if !files.is_empty() {
            control.push(SendAncillaryMessage::ScmRights(&files));
        }
        let bytes = [std::io::IoSlice::new(&message)];
        rustix::net::sendmsg(&self.socket, &bytes, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// The number that a message is answered with.
    fn answer(&mut self) -> Result<u64> {
        let mut message = [0; 20];
        self.socket.read_exact(&mut message)?;
        let (_, number) = message.split_last_chunk::<8>().context("a number")?;
        Ok(u64::from_le_bytes(*number))
    }

    /// Hands a request to the device, from a place that is free.
    pub fn submit(&mut self, place: u64, request: &Request) -> Result<()> {
        let data = DATA + place * PLACE_BYTES;
        let (kind, start, len) = match request {
            Request::Read { start, len } => (0_u32, *start, *len),
            Request::Write { start, bytes } => {
                self.memory.write_all_at(bytes, data)?;
                (1, *start, bytes.len() as u64)
            }
            Request::Flush => (4, 0, 0),
            Request::Discard { start, len } => (11, self.range(data, *start, *len, 0)?, 16),
            Request::WriteZeroes { start, len, unmap } => {
                (13, self.range(data, *start, *len, (*unmap).into())?, 16)
            }
        };
        let header = HEADERS + place * HEADER_BYTES;
        let mut bytes = [0; 17];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..16].copy_from_slice(&(start / 512).to_le_bytes());
        bytes[16] = 0xff;
        self.memory.write_all_at(&bytes, header)?;
        let head = u16::try_from(place * 3)?;
        let (more, writes) = (1, 2);
        let status = head + 2;
        let first = if len == 0 { status } else { head + 1 };
        self.describe(head, (header, 16), (more, first))?;
        if len > 0 {
            let flags = if kind == 0 { more | writes } else { more };
            self.describe(head + 1, (data, len), (flags, status))?;
        }
        self.describe(status, (header + 16, 1), (writes, 0))?;
        let entry = AVAIL + 4 + u64::from(self.avail) % u64::from(RING_SIZE) * 2;
        self.memory.write_all_at(&head.to_le_bytes(), entry)?;
        self.avail = self.avail.wrapping_add(1);
        let avail = self.avail.to_le_bytes();
        self.memory.write_all_at(&avail, AVAIL + 2)?;
        rustix::io::write(&self.kick, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Puts the range of a discard into its data; the sector of its header.
    fn range(&self, data: u64, start: u64, len: u64, flags: u32) -> Result<u64> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&(start / 512).to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::try_from(len / 512)?.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        self.memory.write_all_at(&bytes, data)?;
        Ok(0)
    }

    fn describe(&self, index: u16, (at, len): (u64, u64), (flags, next): (u16, u16)) -> Result<()> {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&at.to_le_bytes());
        bytes[8..12].copy_from_slice(&u32::try_from(len)?.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.memory
            .write_all_at(&bytes, u64::from(index) * 16)
            .context("a descriptor")
    }

    /// Waits for the next request that ends: its place, and its status.
    pub fn wait(&mut self) -> Result<(u64, u8)> {
        while self.short(USED + 2)? == self.used {
            let mut polled = [
                PollFd::new(&self.call, PollFlags::IN),
                PollFd::new(&self.socket, PollFlags::RDHUP),
            ];
            let patience = rustix::event::Timespec::try_from(PATIENCE)?;
            ensure!(poll(&mut polled, Some(&patience))? > 0, "nothing ends");
            let left = !polled[1].revents().is_empty();
            let _ = rustix::io::read(&self.call, &mut [0; 8]);
            ensure!(
                !left || self.short(USED + 2)? != self.used,
                "the server has gone"
            );
        }
        let entry = USED + 4 + u64::from(self.used) % u64::from(RING_SIZE) * 8;
        self.used = self.used.wrapping_add(1);
        let place = u64::from(self.short(entry)? / 3);
        let mut status = [0];
        let at = HEADERS + place * HEADER_BYTES + 16;
        self.memory.read_exact_at(&mut status, at)?;
        Ok((place, status[0]))
    }

    /// What a read has put into its place.
    pub fn data(&self, place: u64, len: u64) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(len)?];
        let at = DATA + place * PLACE_BYTES;
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// One request to its end.
    pub fn done(&mut self, request: &Request) -> Result<()> {
        self.submit(0, request)?;
        let ended = self.wait()?;
        ensure!(ended == (0, 0), "{ended:?} of {request:?}");
        Ok(())
    }

    fn short(&self, at: u64) -> Result<u16> {
        let mut bytes = [0; 2];
        self.memory.read_exact_at(&mut bytes, at)?;
        Ok(u16::from_le_bytes(bytes))
    }
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers
        .iter()
        .flat_map(|number| number.to_le_bytes())
        .collect()
}
