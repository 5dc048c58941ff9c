//! Virtqueues and requests of slot 0.

use crate::control::store;
use crate::memory::all_memory;
use crate::{check, fail};
use instar_guest_ops::{Context, Machine, Platform};
use instar_shared::blk::{RequestHeader, RequestType, Status, VendorFooter};
use instar_shared::device::{AVAIL_OFFSET, QUEUE_SIZE, USED_OFFSET, queue_region};
use instar_shared::doorbell::Kick;
use instar_shared::layout::{BOOT, HEAP_START, IMAGE, SYSTEM};
use instar_shared::ring::{DESC_F_NEXT, DESC_F_WRITE, Descriptor};
use instar_test_guests::Case;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

/// Where header, data and footer lie: in the heap, far from what the allocator has given out.
const HEADER: u64 = HEAP_START + 0x20_0000;
const FOOTER: u64 = HEADER + 0x1000;
pub(crate) const DATA: u64 = HEADER + 0x2000;
pub(crate) const DATA_BYTES: u32 = 4096;
/// VirtIO's flag of an indirect descriptor table, which the contract does not have.
const DESC_F_INDIRECT: u16 = 4;

/// A chain of header, data and footer that can be bent before it is sent.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) kind: u32,
    pub(crate) reserved: u32,
    pub(crate) start: u64,
    chain: [Descriptor; 3],
    head: u16,
    avail_step: u16,
}

fn descriptor(addr: u64, len: u32, flags: u16, next: u16) -> Descriptor {
    Descriptor {
        addr: U64::new(addr),
        len: U32::new(len),
        flags: U16::new(flags),
        next: U16::new(next),
    }
}

impl Request {
    /// A sound read.
    fn new() -> Self {
        Self {
            kind: RequestType::ReadBytes.raw(),
            reserved: 0,
            start: 0,
            chain: [
                descriptor(HEADER, 16, DESC_F_NEXT, 1),
                descriptor(DATA, DATA_BYTES, DESC_F_NEXT | DESC_F_WRITE, 2),
                descriptor(FOOTER, 8, DESC_F_WRITE, 0),
            ],
            head: 0,
            avail_step: 1,
        }
    }

    fn data(addr: u64, len: u32) -> Self {
        let mut request = Self::new();
        request.chain[1].addr.set(addr);
        request.chain[1].len.set(len);
        request
    }

    /// A request whose data, `len` bytes at `addr`, the device reads; none at all if `len` is 0.
    pub(crate) fn change(kind: RequestType, start: u64, addr: u64, len: u32) -> Self {
        let mut request = Self::data(addr, len);
        request.kind = kind.raw();
        request.start = start;
        request.chain[1].flags.set(DESC_F_NEXT);
        if len == 0 {
            request.chain[0].next.set(2);
        }
        request
    }

    /// Lets the device write the data.
    pub(crate) fn turn(&mut self) {
        self.chain[1].flags.set(DESC_F_NEXT | DESC_F_WRITE);
    }

    /// Writes everything and kicks; `sent` requests went before.
    pub(crate) fn send(&self, sent: u16) {
        let queue = base();
        let header = RequestHeader {
            request_type: U32::new(self.kind),
            reserved: U32::new(self.reserved),
            sector: U64::new(self.start),
        };
        store(HEADER, header.as_bytes());
        store(FOOTER, &[0xff; 8]);
        store(queue, self.chain.as_bytes());
        let entry = u64::from(sent % QUEUE_SIZE) * 2;
        store(
            queue + AVAIL_OFFSET + 4 + entry,
            U16::new(self.head).as_bytes(),
        );
        let index = sent.wrapping_add(self.avail_step);
        store(queue + AVAIL_OFFSET + 2, U16::new(index).as_bytes());
        Machine.kick(Kick::Queue { slot: 0, queue: 0 }.encode());
    }

    /// Sends it as the first request and returns the footer.
    fn answer(&self) -> VendorFooter {
        self.answer_after(0)
    }

    /// Sends it after `sent` others, all of which are done, and returns the footer.
    pub(crate) fn answer_after(&self, sent: u16) -> VendorFooter {
        self.send(sent);
        let used = base() + USED_OFFSET + 2;
        while load::<U16>(used).get() == sent {
            Machine.wait(0);
        }
        load(FOOTER)
    }
}

pub(crate) fn base() -> u64 {
    queue_region(0).map_or(0, |region| region.start)
}

pub(crate) fn load<T: zerocopy::FromBytes + Copy>(addr: u64) -> T {
    // SAFETY: the address is in a mapped region, and any bytes are a wire value.
    unsafe {
        Machine
            .pointer(addr, size_of::<T>())
            .cast::<T>()
            .read_volatile()
    }
}

pub(crate) fn run(ctx: &mut Context, case: Case) {
    match case {
        Case::SameChainTwice => {
            Request::new().send(0);
            Request::new().send(1);
        }
        Case::RequestUnknown => {
            let mut request = Request::new();
            request.kind = 0x8000_7777;
            check(
                request.answer().status == Status::Unsupported.raw(),
                "an unknown request was done",
            );
        }
        Case::RequestWrite => {
            let mut request = Request::new();
            request.kind = RequestType::Out.raw();
            request.chain[1].flags.set(DESC_F_NEXT);
            request.chain[2].len.set(1);
            request.send(0);
            check(
                load::<u8>(FOOTER) == Status::IoErr.raw(),
                "a read-only disk was written",
            );
        }
        Case::RequestFarOffset => {
            let mut request = Request::new();
            request.start = u64::MAX;
            check(
                request.answer().status == Status::IoErr.raw(),
                "a read past all offsets was done",
            );
        }
        Case::ReadIntoQueue => Request::data(base(), 8192).send(0),
        Case::RingRubbish => ring_rubbish(ctx.boot().entropy),
        _ => {
            bent(ctx, case).send(0);
            fail("the host took the chain");
        }
    }
}

/// A request that no device may take.
fn bent(ctx: &mut Context, case: Case) -> Request {
    let mut request = Request::new();
    match case {
        Case::AvailJump => request.avail_step = QUEUE_SIZE + 1,
        Case::HeadPastTable => request.head = QUEUE_SIZE,
        Case::ChainLoop => {
            request.chain[2].flags.set(DESC_F_NEXT | DESC_F_WRITE);
            request.chain[2].next.set(1);
        }
        Case::NextPastTable => request.chain[0].next.set(u16::MAX),
        Case::BufferInPageTables => return Request::data(SYSTEM.start, DATA_BYTES),
        Case::BufferInText => return Request::data(IMAGE.start, DATA_BYTES),
        Case::BufferInBootPage => return Request::data(BOOT.start, DATA_BYTES),
        Case::BufferPastSlot => return Request::data(all_memory(ctx) - 8, DATA_BYTES),
        Case::BufferWraps => return Request::data(u64::MAX - 16, DATA_BYTES),
        Case::BufferEmpty => request.chain[1].len.set(0),
        Case::BufferDirection => request.chain[1].flags.set(DESC_F_NEXT),
        Case::IndirectTable => request.chain[0].flags.set(DESC_F_INDIRECT),
        Case::HeaderShort => request.chain[0].len.set(15),
        _ => {
            // Only a footer, and one byte too short.
            request.chain[0].next.set(2);
            request.chain[2].len.set(7);
        }
    }
    request
}

/// A queue full of random bytes, and a kick.
fn ring_rubbish(entropy: [u8; 64]) {
    let mut bytes = entropy;
    for (chunk, addr) in (base()..base() + 8192).step_by(64).enumerate() {
        for byte in &mut bytes {
            *byte = byte.wrapping_mul(167).wrapping_add(chunk as u8);
        }
        store(addr, &bytes);
    }
    // An index that the device cannot refuse for its distance.
    store(base() + AVAIL_OFFSET + 2, U16::new(QUEUE_SIZE).as_bytes());
    Machine.kick(Kick::Queue { slot: 0, queue: 0 }.encode());
}
