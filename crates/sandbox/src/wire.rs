//! Messages between worker and broker: one packet each way.
//!
//! A request for a file is a [`FileRequest`] cut after its name; all else is a marker and what
//! belongs to it. The worker is not trusted: a packet that is
//! not exactly one of these ends it. The broker is trusted, so its reply
//! is decoded with care only to find bugs. Integers are little-endian.

pub mod passing;

use crate::locks::Conflict;
use crate::open::os_string;
use crate::output::{FailedOpen, FileFacts, OpenFailure};
use instar_shared::control::{FileAccess, FileRequest, FileRole, MAX_NAME_BYTES};
use instar_shared::device::MAX_DEVICES;
use instar_shared::zerocopy::{FromZeros, IntoBytes};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::mem::offset_of;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Bytes in front of a request's name.
const REQUEST_HEAD: usize = offset_of!(FileRequest, name);
/// Largest request.
pub const MAX_REQUEST: usize = REQUEST_HEAD + MAX_NAME_BYTES;
/// Largest reply: facts, and a few times a path.
pub const MAX_REPLY: usize = 64 << 10;

/// The two ends of a line between processes, which keeps packets apart.
///
/// # Errors
/// No more descriptors.
pub fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// What the worker asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A file that an image names.
    Open(Request),
    /// The file in this slot is about to be written: giving up what it held if it is an output, and no round follows.
    Begin(u16),
    /// The repair of an image, before the operation runs anew.
    Repair(Dirty),
    /// A repair has ended, with this complaint if it is not empty.
    Repaired(Vec<u8>),
    /// The operation has ended well; what follows it may begin.
    Done,
    /// The operation lacks a part, and its fuller program is to run; so many lines have been shown.
    Fuller(u64),
}

/// An image that must be repaired before it is changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dirty {
    /// Its slot.
    pub slot: u16,
    /// What the repair finds is not told.
    pub silent: bool,
    /// Lines that the operation has shown before; it will send them again.
    pub shown: u64,
}

/// In front of the slot of an output that begins. No request for a file starts so: no slot has such a number.
const BEGIN: [u8; 4] = *b"outp";
/// In front of what is to be repaired.
const REPAIR: [u8; 4] = *b"fix?";
/// In front of the complaint of a repair.
const REPAIRED: [u8; 4] = *b"done";
/// All of the packet that tells the good end of an operation.
pub const DONE: [u8; 4] = *b"well";
/// In front of how many lines an operation has shown that asks for its fuller program.
const FULLER: [u8; 4] = *b"more";
/// Bytes of a complaint that travel.
const MAX_COMPLAINT: usize = 1024;

/// The bytes that ask to begin the output in `slot`.
pub fn encode_begin(slot: u16) -> [u8; 6] {
    let [a, b, c, d] = BEGIN;
    let [low, high] = slot.to_le_bytes();
    [a, b, c, d, low, high]
}

/// The bytes that ask for a repair.
pub fn encode_repair(dirty: &Dirty) -> Vec<u8> {
    let mut out = Writer(REPAIR.to_vec());
    out.dirty(dirty);
    out.0
}

/// The bytes that ask for the fuller program, after so many lines.
pub fn encode_fuller(shown: u64) -> Vec<u8> {
    let mut out = Writer(FULLER.to_vec());
    out.number(shown);
    out.0
}

/// The bytes that tell the end of a repair.
pub fn encode_repaired(complaint: &[u8]) -> Vec<u8> {
    let complaint = complaint.get(..MAX_COMPLAINT).unwrap_or(complaint);
    [REPAIRED.as_slice(), complaint].concat()
}

/// Reads what the worker asks for; `None` if it is nothing that may be asked.
pub fn decode_message(packet: &[u8]) -> Option<Message> {
    let (marker, rest) = packet.split_first_chunk::<4>()?;
    match (*marker, rest) {
        (BEGIN, [low, high]) => Some(Message::Begin(u16::from_le_bytes([*low, *high]))),
        (REPAIR, rest) => {
            let mut rest = Reader(rest);
            let dirty = rest.dirty()?;
            rest.0.is_empty().then_some(Message::Repair(dirty))
        }
        (FULLER, rest) => {
            let mut rest = Reader(rest);
            let shown = rest.number()?;
            rest.0.is_empty().then_some(Message::Fuller(shown))
        }
        (DONE, []) => Some(Message::Done),
        (REPAIRED, complaint) => {
            (complaint.len() <= MAX_COMPLAINT).then(|| Message::Repaired(complaint.to_vec()))
        }
        _ => decode_request(packet).map(Message::Open),
    }
}

/// A request that makes sense by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Slot for the file.
    pub slot: u16,
    /// Slot of the image that names it.
    pub parent_slot: u16,
    /// What it is to that image.
    pub role: FileRole,
    /// It is to be written, too.
    pub writable: bool,
    /// The name in the image.
    pub name: Vec<u8>,
}

/// The bytes of `request` that travel; `None` if its length is out of range.
pub fn encode_request(request: &FileRequest) -> Option<&[u8]> {
    let name_len = usize::try_from(request.name_len.get())
        .ok()
        .filter(|len| *len <= MAX_NAME_BYTES)?;
    request
        .as_bytes()
        .get(..REQUEST_HEAD.checked_add(name_len)?)
}

/// Reads a request; `None` if it is not exactly one.
fn decode_request(packet: &[u8]) -> Option<Request> {
    let name_len = packet.len().checked_sub(REQUEST_HEAD)?;
    let mut request = FileRequest::new_zeroed();
    request
        .as_mut_bytes()
        .get_mut(..packet.len())?
        .copy_from_slice(packet);
    let slot = |raw: u32| u16::try_from(raw).ok().filter(|slot| *slot < MAX_DEVICES);
    let sound =
        usize::try_from(request.name_len.get()).ok()? == name_len && request.reserved.get() == 0;
    if !sound {
        return None;
    }
    Some(Request {
        slot: slot(request.slot.get())?,
        parent_slot: slot(request.parent_slot.get())?,
        role: FileRole::try_from(request.role.get()).ok()?,
        writable: FileAccess::try_from(request.access.get()).ok()? == FileAccess::ReadWrite,
        name: request.name.get(..name_len)?.to_vec(),
    })
}

/// What the broker answers; a descriptor travels with [`Reply::Opened`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The file, and a conflict that counts unless it is raw.
    Opened(FileFacts, Option<Conflict>),
    /// The file, which may be written.
    OpenedToWrite(FileFacts),
    /// Why not.
    Failed(FailedOpen),
    /// Slot, parent or access make no sense.
    Invalid,
    /// The output is empty now, or the errno that kept it from that. With the errno that kept it from the layout that
    /// the user asked for; 0 if none did.
    Begun(Result<i32, i32>),
    /// It will be done when the worker has ended.
    Noted,
    /// The image was repaired before, with this complaint.
    Tried(Vec<u8>),
}

const TAG_OPENED: u64 = 1;
const TAG_FAILED: u64 = 2;
const TAG_INVALID: u64 = 3;
const TAG_BEGUN: u64 = 4;
const TAG_TO_WRITE: u64 = 5;
const TAG_NOTED: u64 = 6;
const TAG_TRIED: u64 = 7;

/// The bytes of a reply.
pub fn encode_reply(reply: &Reply) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(256));
    match reply {
        Reply::OpenedToWrite(facts) => {
            out.number(TAG_TO_WRITE);
            out.facts(facts);
        }
        Reply::Opened(facts, conflict) => {
            out.number(TAG_OPENED);
            out.facts(facts);
            let (kind, byte, name) = match conflict {
                None => (0, 0, ""),
                Some(Conflict::Byte(byte)) => (1, *byte, ""),
                Some(Conflict::InUse(name)) => (2, 0, *name),
                Some(Conflict::NotShared(name)) => (3, 0, *name),
            };
            out.number(kind);
            out.number(byte.cast_unsigned());
            out.bytes(name.as_bytes());
        }
        Reply::Failed(failed) => {
            out.number(TAG_FAILED);
            out.number(failed.slot.into());
            out.number(failed.parent_slot.map_or(u64::MAX, u64::from));
            out.number(failed.role.map_or(0, |role| role.raw().into()));
            out.number(failed.output.into());
            let (kind, errno) = match failed.kind {
                OpenFailure::Failed(errno) => (0, errno),
                OpenFailure::Refused => (1, 0),
                OpenFailure::Loop => (2, 0),
                OpenFailure::InUse => (3, 0),
            };
            out.number(kind);
            out.number(i64::from(errno).cast_unsigned());
            out.bytes(failed.given_name.as_bytes());
            out.bytes(failed.reason.as_bytes());
        }
        Reply::Invalid => out.number(TAG_INVALID),
        Reply::Begun(result) => {
            out.number(TAG_BEGUN);
            let (refused, errno) = match result {
                Ok(refused) => (*refused, 0),
                Err(errno) => (0, *errno),
            };
            out.number(i64::from(errno).cast_unsigned());
            out.number(i64::from(refused).cast_unsigned());
        }
        Reply::Noted => out.number(TAG_NOTED),
        Reply::Tried(complaint) => {
            out.number(TAG_TRIED);
            out.bytes(complaint);
        }
    }
    out.0
}

/// The bytes that tell of a file in `slot` to the process that uses it beside the worker.
pub fn encode_shared(slot: u16, reply: &Reply) -> Vec<u8> {
    [slot.to_le_bytes().as_slice(), &encode_reply(reply)].concat()
}

/// Reads of a file that was opened: its slot, what is known of it, and whether it may be written; `None` if it is not
/// exactly that.
#[cfg(target_arch = "x86_64")]
pub fn decode_shared(packet: &[u8]) -> Option<(u16, FileFacts, bool)> {
    let (slot, reply) = packet.split_first_chunk::<2>()?;
    let slot = u16::from_le_bytes(*slot);
    match decode_reply(reply)? {
        Reply::Opened(facts, _) => Some((slot, facts, false)),
        Reply::OpenedToWrite(facts) => Some((slot, facts, true)),
        _ => None,
    }
}

/// Reads a reply; `None` if it is not exactly one.
pub fn decode_reply(packet: &[u8]) -> Option<Reply> {
    let mut rest = Reader(packet);
    let reply = match rest.number()? {
        TAG_OPENED => decode_opened(&mut rest)?,
        TAG_TO_WRITE => Reply::OpenedToWrite(decode_facts(&mut rest)?),
        TAG_FAILED => Reply::Failed(decode_failed(&mut rest)?),
        TAG_INVALID => Reply::Invalid,
        TAG_NOTED => Reply::Noted,
        TAG_TRIED => Reply::Tried(rest.bytes()?.to_vec()),
        TAG_BEGUN => {
            let errno = i32::try_from(rest.number()?.cast_signed()).ok()?;
            let refused = i32::try_from(rest.number()?.cast_signed()).ok()?;
            Reply::Begun(if errno == 0 { Ok(refused) } else { Err(errno) })
        }
        _ => return None,
    };
    rest.0.is_empty().then_some(reply)
}

fn decode_facts(rest: &mut Reader<'_>) -> Option<FileFacts> {
    let (len_bytes, disk_bytes, flags) = (rest.number()?, rest.number()?, rest.number()?);
    Some(FileFacts {
        len_bytes,
        disk_bytes,
        block_device: flags & 1 != 0,
        character_device: flags & 2 != 0,
        start_bytes: 0,
        direct_align: u32::try_from(rest.number()?).ok()?,
        parent_slot: rest.slot()?,
        name: os_string(rest.bytes()?),
        given_name: os_string(rest.bytes()?),
    })
}

fn decode_opened(rest: &mut Reader<'_>) -> Option<Reply> {
    let facts = decode_facts(rest)?;
    let (kind, byte, name) = (rest.number()?, rest.number()?, rest.bytes()?);
    let name = ["consistent read", "write", "resize"]
        .into_iter()
        .find(|known| known.as_bytes() == name);
    let conflict = match kind {
        0 => None,
        1 => Some(Conflict::Byte(byte.cast_signed())),
        2 => Some(Conflict::InUse(name?)),
        3 => Some(Conflict::NotShared(name?)),
        _ => return None,
    };
    Some(Reply::Opened(facts, conflict))
}

fn decode_failed(rest: &mut Reader<'_>) -> Option<FailedOpen> {
    let slot = u16::try_from(rest.number()?).ok()?;
    let parent_slot = rest.slot()?;
    let role = match u32::try_from(rest.number()?).ok()? {
        0 => None,
        raw => Some(FileRole::try_from(raw).ok()?),
    };
    let output = rest.number()? != 0;
    let (kind, errno) = (rest.number()?, rest.number()?);
    let kind = match kind {
        0 => OpenFailure::Failed(i32::try_from(errno.cast_signed()).ok()?),
        1 => OpenFailure::Refused,
        2 => OpenFailure::Loop,
        3 => OpenFailure::InUse,
        _ => return None,
    };
    let given_name = os_string(rest.bytes()?);
    let reason = std::ffi::OsString::from_vec(rest.bytes()?.to_vec());
    Some(FailedOpen {
        slot,
        parent_slot,
        role,
        output,
        kind,
        given_name,
        reason,
    })
}

/// What the process that holds the next round of a job is told; descriptors travel with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// To repair an image, on which nothing else works now.
    Repair {
        /// What the worker said.
        dirty: Dirty,
        /// Slot of the typed image that it hangs on.
        root: u16,
        /// What is known about it.
        facts: FileFacts,
    },
    /// To run the operation anew; the repair's complaint, if it is not empty.
    Again(Vec<u8>),
    /// To run what follows the operation.
    Sequel,
    /// To run the operation's fuller program; so many lines have been shown.
    Fuller(u64),
}

/// The bytes of `next`.
pub fn encode_next(next: &Next) -> Vec<u8> {
    let mut out = Writer(Vec::new());
    match next {
        Next::Repair { dirty, root, facts } => {
            out.number(1);
            out.dirty(dirty);
            out.number((*root).into());
            out.facts(facts);
        }
        Next::Again(complaint) => {
            out.number(2);
            out.bytes(complaint);
        }
        Next::Sequel => out.number(3),
        Next::Fuller(shown) => {
            out.number(4);
            out.number(*shown);
        }
    }
    out.0
}

/// Reads what is next; `None` if it is not exactly that.
pub fn decode_next(packet: &[u8]) -> Option<Next> {
    let mut rest = Reader(packet);
    let next = match rest.number()? {
        1 => Next::Repair {
            dirty: rest.dirty()?,
            root: u16::try_from(rest.number()?).ok()?,
            facts: decode_facts(&mut rest)?,
        },
        2 => Next::Again(rest.bytes()?.to_vec()),
        3 => Next::Sequel,
        4 => Next::Fuller(rest.number()?),
        _ => return None,
    };
    rest.0.is_empty().then_some(next)
}

struct Writer(Vec<u8>);

impl Writer {
    fn number(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn bytes(&mut self, value: &[u8]) {
        self.number(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn dirty(&mut self, dirty: &Dirty) {
        self.number(dirty.slot.into());
        self.number(dirty.silent.into());
        self.number(dirty.shown);
    }

    fn facts(&mut self, facts: &FileFacts) {
        self.number(facts.len_bytes);
        self.number(facts.disk_bytes);
        self.number(u64::from(facts.block_device) | u64::from(facts.character_device) << 1);
        self.number(facts.direct_align.into());
        self.number(facts.parent_slot.map_or(u64::MAX, u64::from));
        self.bytes(facts.name.as_bytes());
        self.bytes(facts.given_name.as_bytes());
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn number(&mut self) -> Option<u64> {
        let (head, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*head))
    }

    fn dirty(&mut self) -> Option<Dirty> {
        Some(Dirty {
            slot: u16::try_from(self.number()?).ok()?,
            silent: match self.number()? {
                0 => false,
                1 => true,
                _ => return None,
            },
            shown: self.number()?,
        })
    }

    fn slot(&mut self) -> Option<Option<u16>> {
        match self.number()? {
            u64::MAX => Some(None),
            slot => u16::try_from(slot).ok().map(Some),
        }
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }
}

#[cfg(test)]
mod tests;
