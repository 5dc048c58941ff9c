//! What a stream has to do, said in another way: moves of a guest and of the program at the other end, each of which has one
//! right result. A test makes the moves at random, a fuzzer as it likes.

#![allow(clippy::cast_possible_truncation, clippy::panic, clippy::unwrap_used)] // it judges

use super::{HEADER_BYTES, LENGTH_BYTES, MAX_FRAME_BYTES, MIN_FRAME_BYTES, Stream};
use instar_devices::net::NetBackend;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use std::io::{self, ErrorKind};
use vm_memory::VolatileSlice;

/// Bytes of a move, before those that it brings along.
const MOVE_BYTES: usize = 4;
/// Bytes that wait for the program at the other end at most, about: few, so that frames are taken in many parts.
const ROOM_BYTES: usize = 10_000;
/// What the guest's buffers hold before a frame comes.
const UNTOUCHED: u8 = 0xa5;

struct Model {
    stream: Stream,
    /// The other end, until its program closes it.
    other: Option<OwnedFd>,
    /// What its program will write.
    planned: Vec<u8>,
    /// What it has written and the guest has not got.
    written: Vec<u8>,
    /// What the guest has sent and the program has not read.
    sent: Vec<u8>,
    /// The stream was ended, for what was written is no frame.
    ended: bool,
}

/// Does the moves, and judges each.
pub fn run(moves: &[u8]) {
    let mut model = Model::new();
    let mut rest = moves;
    while let Some(([kind, piece, low, high], more)) = rest.split_first_chunk::<MOVE_BYTES>() {
        rest = more;
        let (piece, value) = (usize::from(*piece), u16::from_le_bytes([*low, *high]));
        match kind % 16 {
            0 | 1 => model.plan_frame(value.into(), *kind),
            // Empty and short ones, and seldom one that is too long by as much as this.
            2 if piece > 2 => model.plan_frame(u32::from(value) % 64, *kind),
            2 => model.plan_frame((MAX_FRAME_BYTES as u32).saturating_add(value.into()), *kind),
            // Anything, which is mostly the end: seldom.
            3 if piece < 16 => {
                let (bytes, more) = rest.split_at(rest.len().min(piece));
                model.planned.extend(bytes);
                rest = more;
            }
            4..7 => model.write(piece << (kind >> 4)),
            7..10 => model.receive(piece, usize::from(value)),
            10..13 => model.send(piece, usize::from(value), *kind),
            13 => model.read(usize::from(value)),
            14 => model.flush(),
            // Programs seldom end.
            _ if piece == 255 => model.other = None,
            _ => {}
        }
    }
    model.finish();
}

/// Slices of so many bytes each, the last one shorter.
fn slices(bytes: &mut [u8], piece: usize) -> Vec<VolatileSlice<'_>> {
    bytes
        .chunks_mut(1 + piece * 8)
        .map(VolatileSlice::from)
        .collect()
}

fn pattern(len: usize, seed: u8) -> impl Iterator<Item = u8> {
    (0..len).map(move |at| (at / 7) as u8 ^ seed)
}

impl Model {
    fn new() -> Self {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (own, other) = pair.unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(&own, ROOM_BYTES).unwrap();
        Self {
            stream: Stream::new(own),
            other: Some(other),
            planned: Vec::new(),
            written: Vec::new(),
            sent: Vec::new(),
            ended: false,
        }
    }

    /// The program is about to write a frame of a length.
    fn plan_frame(&mut self, len: u32, seed: u8) {
        self.planned.extend(len.to_be_bytes());
        self.planned.extend(pattern(len as usize, seed));
    }

    /// The program writes a part of what it is about to write.
    fn write(&mut self, most: usize) {
        let Some(other) = &self.other else { return };
        let part = self.planned.get(..most.min(self.planned.len())).unwrap();
        match rustix::net::send(other, part, SendFlags::NOSIGNAL) {
            Ok(count) => self.written.extend(self.planned.drain(..count)),
            Err(Errno::AGAIN) => {}
            Err(errno) => assert!(self.ended && errno == Errno::PIPE, "{errno}"),
        }
    }

    /// The first frame of what was written, or why there is none.
    fn expected(&self) -> Result<&[u8], ErrorKind> {
        let end = match self.other {
            Some(_) => ErrorKind::WouldBlock,
            None => ErrorKind::BrokenPipe,
        };
        let (length, rest) = self.written.split_at_checked(LENGTH_BYTES).ok_or(end)?;
        let length = u32::from_be_bytes(length.try_into().unwrap()) as usize;
        if length > MAX_FRAME_BYTES {
            return Err(ErrorKind::InvalidData);
        }
        rest.get(..length).ok_or(end)
    }

    /// The guest takes a frame into buffers of `room` bytes.
    fn receive(&mut self, piece: usize, room: usize) {
        let mut buffers = vec![UNTOUCHED; room];
        let got = self.stream.receive(&slices(&mut buffers, piece));
        let frame = match (got, self.expected()) {
            (Ok(len), Ok(frame)) => {
                assert_eq!(len, HEADER_BYTES + frame.len());
                frame
            }
            (Err(error), Err(kind)) => {
                // Bytes that nobody read are an error of their own when a program ends.
                let reset =
                    kind == ErrorKind::BrokenPipe && error.kind() == ErrorKind::ConnectionReset;
                assert!(reset || error.kind() == kind, "{error}, not {kind:?}");
                assert!(kind != ErrorKind::WouldBlock || self.stream.tells_again());
                self.ended |= kind == ErrorKind::InvalidData;
                return;
            }
            (got, expected) => panic!("{got:?}, not {expected:?}"),
        };
        let packet = [&[0; HEADER_BYTES], frame].concat();
        let (packet, len) = (&packet[..room.min(packet.len())], frame.len());
        let (whole, untouched) = buffers.split_at(packet.len());
        assert!(whole == packet, "a frame of {len} bytes, otherwise");
        assert!(untouched.iter().all(|byte| *byte == UNTOUCHED));
        self.written.drain(..LENGTH_BYTES + len);
        self.is_told_of_the_next();
    }

    /// Of a frame that has come, and of the end, either the socket tells or the stream says that nobody does.
    fn is_told_of_the_next(&self) {
        if self.expected().err() != Some(ErrorKind::WouldBlock) && self.stream.tells_again() {
            let mut polled = [PollFd::new(&self.stream.socket, PollFlags::IN)];
            let told = rustix::event::poll(&mut polled, Some(&Timespec::default()));
            assert_eq!(told, Ok(1), "a frame that nobody tells of");
        }
    }

    /// The guest sends a frame, as a device does: when nothing is left of the last one.
    fn send(&mut self, piece: usize, len: usize, seed: u8) {
        // Longer ones than there may be, too.
        let len = len + usize::from(seed >> 4);
        let mut packet = vec![UNTOUCHED; HEADER_BYTES];
        packet.extend(pattern(len, seed));
        let flushed = self.stream.flush();
        let sent = flushed.and_then(|()| self.stream.send(&slices(&mut packet, piece)));
        match sent {
            Ok(()) => {
                assert!((MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&len));
                self.sent.extend((len as u32).to_be_bytes());
                self.sent.extend(pattern(len, seed));
            }
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                assert!(!(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&len));
            }
            Err(error) => self.is_blocked_or_over(&error),
        }
    }

    fn flush(&mut self) {
        if let Err(error) = self.stream.flush() {
            self.is_blocked_or_over(&error);
        }
    }

    fn is_blocked_or_over(&self, error: &io::Error) {
        let over = self.ended || self.other.is_none();
        match error.kind() {
            ErrorKind::WouldBlock => assert!(!self.sent.is_empty()),
            ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => assert!(over, "{error}"),
            _ => panic!("{error}"),
        }
    }

    /// The program reads up to so many bytes: what the guest has sent.
    fn read(&mut self, most: usize) {
        let Some(other) = &self.other else { return };
        let mut bytes = vec![0; most + 1];
        match rustix::net::recv(other, bytes.as_mut_slice(), RecvFlags::empty()) {
            Ok((_, 0)) => assert!(self.ended),
            Ok((_, count)) => {
                let read = self.sent.drain(..count);
                assert!(read.eq(bytes.into_iter().take(count)), "other bytes");
            }
            Err(errno) => assert_eq!(errno, Errno::AGAIN),
        }
    }

    /// Everything arrives that was sent, if both ends are as they were.
    fn finish(mut self) {
        while self.other.is_some() && !self.ended && !self.sent.is_empty() {
            let before = self.sent.len();
            self.flush();
            self.read(MAX_FRAME_BYTES);
            assert!(self.sent.len() < before, "{before} bytes are not sent");
        }
    }
}
