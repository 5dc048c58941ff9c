//! The device against a driver that writes its rings by hand, well and badly.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::*;
use crate::virtio::RestoreError;
use instar_shared::blk::{ID_BYTES, RequestHeader, RequestType, Status, VendorFooter};
use instar_shared::device::{FEATURE_BLOCK_STATUS, FEATURE_BYTE_IO, FEATURE_BYTE_WRITE};
use instar_shared::ring::{DESC_F_NEXT, DESC_F_WRITE};
use instar_shared::zerocopy::little_endian::U32;
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_INDIRECT_DESC;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

mod change;
mod copy;
mod hostile;
mod linux;

type Memory = GuestMemoryMmap<()>;

const BASE: u64 = 0x10_0000;
const SIZE: usize = 0x20_0000;
const AVAIL: u64 = BASE + 0x1000;
const USED: u64 = BASE + 0x2000;
const HEADERS: u64 = BASE + 0x4000;
const FOOTERS: u64 = BASE + 0x8000;
const DATA: u64 = BASE + 0x1_0000;
const QUEUE: u16 = 16;
const FOOTER_BYTES: u32 = 8;

/// A descriptor of a test: address, length, writable.
type Buf = (u64, u32, bool);

struct Bed {
    mem: Memory,
    device: BlkDevice,
    backend: MemBackend<Memory>,
    avail: u16,
    used: u16,
}

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i / 7 % 251) as u8 + 1).collect()
}

fn queue() -> Queue {
    let mut queue = Queue::new(QUEUE).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(BASE))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(AVAIL))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue
}

impl Bed {
    fn new(len: usize) -> Self {
        Self::with(BlkConfig {
            virtio_features: !(1 << VIRTIO_RING_F_INDIRECT_DESC),
            vendor_features: FEATURE_BYTE_IO | FEATURE_BLOCK_STATUS | FEATURE_BYTE_WRITE,
            read_only: false,
            len_bytes: len as u64,
            write_through: false,
        })
    }

    fn with(config: BlkConfig) -> Self {
        let mem = Memory::from_ranges(&[(GuestAddress(BASE), SIZE)]).unwrap();
        let bytes = content(usize::try_from(config.len_bytes).unwrap());
        Self {
            device: BlkDevice::new(config, queue()),
            backend: MemBackend::new(mem.clone(), bytes),
            mem,
            avail: 0,
            used: 0,
        }
    }

    fn descriptor(&self, index: u16, (addr, len, write): Buf, next: Option<u16>) {
        let flags = if write { DESC_F_WRITE } else { 0 } | next.map_or(0, |_| DESC_F_NEXT);
        let at = GuestAddress(BASE + u64::from(index) * 16);
        self.mem.write_obj(addr.to_le(), at).unwrap();
        self.mem
            .write_obj(len.to_le(), GuestAddress(at.0 + 8))
            .unwrap();
        self.mem
            .write_obj(flags.to_le(), GuestAddress(at.0 + 12))
            .unwrap();
        let next = next.unwrap_or(0);
        self.mem
            .write_obj(next.to_le(), GuestAddress(at.0 + 14))
            .unwrap();
    }

    /// Writes a chain from descriptor `head` on.
    fn chain(&self, head: u16, buffers: &[Buf]) {
        for (position, buffer) in (0_u16..).zip(buffers) {
            let last = usize::from(position) + 1 == buffers.len();
            self.descriptor(
                head + position,
                *buffer,
                (!last).then_some(head + position + 1),
            );
        }
    }

    fn offer(&mut self, head: u16) {
        let entry = AVAIL + 4 + u64::from(self.avail % QUEUE) * 2;
        self.mem
            .write_obj(head.to_le(), GuestAddress(entry))
            .unwrap();
        self.avail = self.avail.wrapping_add(1);
        self.set_avail(self.avail);
    }

    fn set_avail(&self, index: u16) {
        self.mem
            .write_obj(index.to_le(), GuestAddress(AVAIL + 2))
            .unwrap();
    }

    fn header(&self, head: u16, kind: u32, start: u64) -> Buf {
        let header = RequestHeader {
            request_type: U32::new(kind),
            reserved: U32::new(0),
            sector: U64::new(start),
        };
        let at = HEADERS + u64::from(head) * 16;
        self.mem
            .write_slice(header.as_bytes(), GuestAddress(at))
            .unwrap();
        (at, 16, false)
    }

    fn footer_at(head: u16) -> u64 {
        FOOTERS + u64::from(head) * 8
    }

    /// A whole request in descriptors from `head` on, offered.
    fn request(&mut self, head: u16, kind: RequestType, start: u64, data: &[Buf]) {
        let mut buffers = vec![self.header(head, kind.raw(), start)];
        buffers.extend_from_slice(data);
        let footer = if kind.is_vendor() { FOOTER_BYTES } else { 1 };
        buffers.push((Self::footer_at(head), footer, true));
        self.mem
            .write_slice(&[0xee; 8], GuestAddress(Self::footer_at(head)))
            .unwrap();
        self.chain(head, &buffers);
        self.offer(head);
    }

    fn kick(&mut self) -> Result<u32, DeviceFault> {
        self.device.kick(&self.mem, &mut self.backend)
    }

    fn complete(&mut self) -> Result<u32, DeviceFault> {
        self.device.complete(&self.mem, &mut self.backend)
    }

    /// The next used element: head and length.
    fn used(&mut self) -> Option<(u32, u32)> {
        let index: u16 = self.mem.read_obj(GuestAddress(USED + 2)).unwrap();
        if index == self.used {
            return None;
        }
        let at = USED + 4 + u64::from(self.used % QUEUE) * 8;
        self.used = self.used.wrapping_add(1);
        let element: [u32; 2] = self.mem.read_obj(GuestAddress(at)).unwrap();
        Some((element[0], element[1]))
    }

    fn vendor_footer(&self, head: u16) -> VendorFooter {
        VendorFooter::read_from_bytes(&self.read(Self::footer_at(head), 8)).unwrap()
    }

    fn status(&self, head: u16) -> u8 {
        self.read(Self::footer_at(head), 1)[0]
    }

    fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
        bytes
    }

    /// One request at head 0, done at once: its used length.
    fn one(&mut self, kind: RequestType, start: u64, data: &[Buf]) -> u32 {
        self.request(0, kind, start, data);
        assert_eq!(self.kick(), Ok(1));
        let (head, len) = self.used().expect("a used element");
        assert_eq!(head, 0);
        len
    }

    /// The fault of a chain of raw buffers at head 0.
    fn fault(buffers: &[Buf]) -> DeviceFault {
        let mut bed = Self::new(8192);
        bed.header(0, RequestType::ReadBytes.raw(), 0);
        bed.chain(0, buffers);
        bed.offer(0);
        let fault = bed.kick().expect_err("a fault");
        assert_eq!(bed.used(), None, "nothing is published after a fault");
        assert_eq!(bed.kick(), Err(fault), "a fault stays");
        assert_eq!(bed.complete(), Err(fault), "a fault stays");
        fault
    }
}

const HEADER: Buf = (HEADERS, 16, false);
const FOOTER: Buf = (FOOTERS, FOOTER_BYTES, true);

#[test]
fn in_reads_sectors() {
    let mut bed = Bed::new(8192);
    assert_eq!(
        bed.one(
            RequestType::In,
            3,
            &[(DATA, 512, true), (DATA + 4096, 1024, true)]
        ),
        1537
    );
    assert_eq!(bed.status(0), Status::Ok.raw());
    assert_eq!(bed.read(DATA, 512), content(8192)[1536..2048]);
    assert_eq!(bed.read(DATA + 4096, 1024), content(8192)[2048..3072]);
}

#[test]
fn in_of_a_last_partial_sector_is_padded() {
    let mut bed = Bed::new(700);
    bed.one(RequestType::In, 1, &[(DATA, 512, true)]);
    assert_eq!(bed.status(0), Status::Ok.raw());
    assert_eq!(bed.read(DATA, 188), content(700)[512..]);
    assert_eq!(bed.read(DATA + 188, 324), vec![0; 324]);
}

#[test]
fn sector_requests_past_the_capacity_fail() {
    for (kind, write) in [(RequestType::In, true), (RequestType::Out, false)] {
        for start in [16, 15, u64::MAX, u64::MAX / 512, 1 << 54] {
            let mut bed = Bed::new(8192);
            bed.one(kind, start, &[(DATA, 1024, write)]);
            assert_eq!(bed.status(0), Status::IoErr.raw(), "{kind:?} {start}");
            assert!(bed.backend.log.is_empty());
        }
    }
}

#[test]
fn out_writes_and_flush_reaches_the_backend() {
    let mut bed = Bed::new(8192);
    bed.mem
        .write_slice(&[0x5a; 1024], GuestAddress(DATA))
        .unwrap();
    assert_eq!(
        bed.one(
            RequestType::Out,
            2,
            &[(DATA, 1000, false), (DATA + 1000, 24, false)]
        ),
        1
    );
    assert_eq!(bed.status(0), Status::Ok.raw());
    assert_eq!(bed.backend.bytes[1024..2048], [0x5a; 1024]);
    assert_eq!(bed.backend.bytes[2048..], content(8192)[2048..]);
    bed.one(RequestType::Flush, 0, &[]);
    assert_eq!(
        bed.backend.log,
        [IoKind::Write { offset: 1024 }, IoKind::Flush]
    );
}

#[test]
fn read_only_device_refuses_every_change() {
    let mut config = *Bed::new(8192).device.config();
    config.read_only = true;
    for kind in [
        RequestType::Out,
        RequestType::Discard,
        RequestType::WriteZeroes,
    ] {
        let len = if kind == RequestType::Out { 512 } else { 16 };
        let mut bed = Bed::with(config);
        bed.one(kind, 0, &[(DATA, len, false)]);
        assert_eq!(bed.status(0), Status::IoErr.raw(), "{kind:?}");
        assert!(bed.backend.log.is_empty());
        assert_eq!(bed.backend.bytes, content(8192));
    }
    let mut bed = Bed::with(config);
    bed.one(RequestType::In, 0, &[(DATA, 512, true)]);
    assert_eq!(bed.status(0), Status::Ok.raw());
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    let mut bytes = sector.to_le_bytes().to_vec();
    bytes.extend(sectors.to_le_bytes());
    bytes.extend(flags.to_le_bytes());
    bytes
}

#[test]
fn discard_and_write_zeroes_parse_their_segment() {
    let cases = [
        (RequestType::WriteZeroes, segment(1, 2, 1), Status::Ok),
        (
            RequestType::WriteZeroes,
            segment(1, 2, 2),
            Status::Unsupported,
        ),
        (RequestType::WriteZeroes, segment(15, 2, 0), Status::IoErr),
        (
            RequestType::WriteZeroes,
            segment(u64::MAX, u32::MAX, 0),
            Status::IoErr,
        ),
        (RequestType::Discard, segment(1, 2, 0), Status::Ok),
        (RequestType::Discard, segment(1, 2, 1), Status::Unsupported),
    ];
    for (kind, bytes, status) in cases {
        let mut bed = Bed::new(8192);
        bed.mem.write_slice(&bytes, GuestAddress(DATA)).unwrap();
        bed.one(kind, 0, &[(DATA, 16, false)]);
        assert_eq!(bed.status(0), status.raw(), "{kind:?} {bytes:?}");
        let (offset, len) = (512, 1024);
        let expected = match (status, kind) {
            (Status::Ok, RequestType::Discard) => vec![IoKind::Discard { offset, len }],
            (Status::Ok, _) => vec![IoKind::WriteZeroes {
                offset,
                len,
                unmap: true,
            }],
            _ => vec![],
        };
        assert_eq!(bed.backend.log, expected);
    }
}

#[test]
fn requests_that_are_not_offered_are_unsupported() {
    let mut config = *Bed::new(8192).device.config();
    config.virtio_features = 0;
    for kind in [RequestType::Discard, RequestType::WriteZeroes] {
        let mut bed = Bed::with(config);
        bed.one(kind, 0, &[(DATA, 16, false)]);
        assert_eq!(bed.status(0), Status::Unsupported.raw());
    }
    // Without vendor features a vendor type is a foreign type with a one-byte status.
    config.vendor_features = 0;
    let mut bed = Bed::with(config);
    assert_eq!(bed.one(RequestType::ReadBytes, 0, &[(DATA, 16, true)]), 1);
    assert_eq!(
        bed.read(Bed::footer_at(0) + 7, 1),
        [Status::Unsupported.raw()]
    );
    let mut bed = Bed::new(8192);
    let header = bed.header(0, 0x8000_1234, 0);
    bed.chain(0, &[header, FOOTER]);
    bed.offer(0);
    assert_eq!(bed.kick(), Ok(1));
    assert_eq!(bed.vendor_footer(0).status, Status::Unsupported.raw());
}

#[test]
fn get_id_and_get_length_fill_their_buffer() {
    let mut bed = Bed::new(8191);
    assert_eq!(bed.one(RequestType::GetId, 0, &[(DATA, 20, true)]), 21);
    assert_eq!(bed.read(DATA, ID_BYTES), bed.backend.id());
    assert_eq!(
        bed.one(
            RequestType::GetLength,
            0,
            &[(DATA, 3, true), (DATA + 99, 5, true)]
        ),
        16
    );
    let mut length = bed.read(DATA, 3);
    length.extend(bed.read(DATA + 99, 5));
    assert_eq!(length, 8191_u64.to_le_bytes());
}

#[test]
fn read_bytes_is_exact_to_the_byte_and_zero_past_the_end() {
    let mut bed = Bed::new(1000);
    assert_eq!(
        bed.one(RequestType::ReadBytes, 997, &[(DATA + 1, 7, true)]),
        15
    );
    assert_eq!(bed.vendor_footer(0), VendorFooter::zeroed());
    let mut expected = content(1000)[997..].to_vec();
    expected.extend([0; 4]);
    assert_eq!(bed.read(DATA + 1, 7), expected);
    bed.one(RequestType::ReadBytes, u64::MAX - 8, &[(DATA, 7, true)]);
    assert_eq!(bed.vendor_footer(0).errno.get(), Errno::EINVAL.0);
    bed.one(RequestType::ReadBytes, MAX_OFFSET - 7, &[(DATA, 7, true)]);
    assert_eq!(bed.vendor_footer(0).status, Status::Ok.raw());
}

#[test]
fn block_status_lists_runs_and_ends_them() {
    let mut bed = Bed::new(20_000);
    bed.backend.bytes[4096..12_288].fill(0);
    bed.mem
        .write_slice(&[0xcc; 64], GuestAddress(DATA))
        .unwrap();
    assert_eq!(
        bed.one(RequestType::BlockStatus, 100, &[(DATA, 64, true)]),
        72
    );
    let words: Vec<u64> = bed
        .read(DATA, 64)
        .chunks(8)
        .map(|c| u64::from_le_bytes(c.try_into().unwrap()))
        .collect();
    assert_eq!(words, [3996, 1, 8192, 0, 7712, 1, 0, 0]);
    for len in [8, 24, 16 * 4097] {
        bed.one(RequestType::BlockStatus, 0, &[(DATA, len, true)]);
        assert_eq!(bed.vendor_footer(0).errno.get(), Errno::EINVAL.0, "{len}");
    }
}

#[test]
fn backend_error_reaches_the_footer() {
    let mut bed = Bed::new(8192);
    bed.backend.fail_next = Some(Errno(28));
    assert_eq!(
        bed.one(RequestType::ReadBytes, 0, &[(DATA, 16, true)]),
        FOOTER_BYTES
    );
    let footer = bed.vendor_footer(0);
    assert_eq!(
        (footer.errno.get(), footer.status, footer.reserved),
        (28, 1, [0; 3])
    );
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let cases: [(RequestType, &[Buf]); 6] = [
        (RequestType::In, &[(DATA, 511, true)]),
        (RequestType::In, &[]),
        (RequestType::ReadBytes, &[]),
        (RequestType::GetId, &[(DATA, 19, true)]),
        (RequestType::GetLength, &[(DATA, 4, true)]),
        (RequestType::Flush, &[(DATA, 512, true)]),
    ];
    for (kind, data) in cases {
        let mut bed = Bed::new(8192);
        bed.one(kind, 0, data);
        let at = if kind.is_vendor() { 7 } else { 0 };
        let status = bed.read(Bed::footer_at(0) + at, 1);
        assert_eq!(status, [Status::IoErr.raw()], "{kind:?}");
        assert!(bed.backend.log.is_empty());
    }
}

#[test]
fn request_of_more_than_the_cap_is_refused() {
    let mut bed = Bed::new(8192);
    // The same 2 MiB again and again, as a hostile driver may.
    let mut buffers = vec![bed.header(0, RequestType::ReadBytes.raw(), 0)];
    let len = u32::try_from(SIZE - 0x2_0000).unwrap();
    let mut bed2 = Bed {
        device: BlkDevice::new(*bed.device.config(), large_queue()),
        ..bed
    };
    for _ in 0..40 {
        buffers.push((DATA, len, true));
    }
    buffers.push(FOOTER);
    bed2.chain(0, &buffers);
    bed2.offer(0);
    assert_eq!(bed2.kick(), Ok(1));
    assert_eq!(bed2.vendor_footer(0).errno.get(), Errno::EINVAL.0);
    bed = bed2;
    assert!(bed.backend.log.is_empty());
}

fn large_queue() -> Queue {
    let mut queue = Queue::new(64).unwrap();
    queue
        .try_set_desc_table_address(GuestAddress(BASE))
        .unwrap();
    queue
        .try_set_avail_ring_address(GuestAddress(AVAIL))
        .unwrap();
    queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
    queue.set_ready(true);
    queue
}

/// VirtIO 1.3 §2.7.4.1: the device assumes nothing about message framing.
#[test]
fn framing_means_nothing() {
    let mut bed = Bed::new(8192);
    bed.header(0, RequestType::ReadBytes.raw(), 5);
    let f = Bed::footer_at(0);
    let chain = [
        (HEADERS, 3, false),
        (HEADERS + 3, 13, false),
        (DATA, 4, true),
        (f - 2, 5, true),
        (f + 3, 1, true),
        (f + 4, 4, true),
    ];
    bed.chain(0, &chain);
    bed.offer(0);
    assert_eq!(bed.kick(), Ok(1));
    assert_eq!(bed.used(), Some((0, 14)));
    assert_eq!(bed.vendor_footer(0), VendorFooter::zeroed());
    assert_eq!(bed.read(DATA, 4), content(8192)[5..9]);
    assert_eq!(bed.read(f - 2, 2), content(8192)[9..11]);
}

#[test]
fn held_requests_complete_in_any_order_and_touch_nothing_before() {
    let mut bed = Bed::new(8192);
    bed.backend.order = CompletionOrder::Shuffled(7);
    for n in 0..5_u16 {
        bed.request(
            n * 3,
            RequestType::ReadBytes,
            u64::from(n) * 100,
            &[(DATA + u64::from(n) * 64, 64, true)],
        );
    }
    assert_eq!(bed.kick(), Ok(0));
    assert_eq!((bed.device.in_flight(), bed.backend.held()), (5, 5));
    assert_eq!(bed.complete(), Ok(0));
    assert_eq!(bed.used(), None);
    assert_eq!(bed.status(0), 0xee, "no status before completion");
    bed.backend.release(2);
    assert_eq!(bed.complete(), Ok(2));
    bed.backend.release(3);
    assert_eq!(bed.complete(), Ok(3));
    let mut heads: Vec<u32> = std::iter::from_fn(|| bed.used())
        .map(|(head, len)| {
            assert_eq!(len, 72);
            head
        })
        .collect();
    assert_ne!(heads, [0, 3, 6, 9, 12], "the seed gives another order");
    heads.sort_unstable();
    assert_eq!(heads, [0, 3, 6, 9, 12]);
    for n in 0..5_u16 {
        let at = usize::from(n) * 100;
        assert_eq!(
            bed.read(DATA + u64::from(n) * 64, 64),
            content(8192)[at..at + 64]
        );
    }
}

#[test]
fn indices_wrap_around() {
    let mut bed = Bed::new(8192);
    for round in 0..70_000_u64 {
        let at = round % 8000;
        assert_eq!(bed.one(RequestType::ReadBytes, at, &[(DATA, 8, true)]), 16);
        if round % 997 == 0 {
            let at = usize::try_from(at).unwrap();
            assert_eq!(bed.read(DATA, 8), content(8192)[at..at + 8]);
        }
    }
}

#[test]
fn save_and_restore_in_the_middle_of_io() {
    let mut bed = Bed::new(8192);
    bed.one(RequestType::ReadBytes, 0, &[(DATA, 8, true)]);
    bed.backend.order = CompletionOrder::Held;
    for n in 0..4_u16 {
        bed.request(
            n * 3,
            RequestType::ReadBytes,
            u64::from(n) * 10,
            &[(DATA + u64::from(n) * 64, 64, true)],
        );
    }
    bed.kick().unwrap();
    bed.backend.release(1);
    bed.complete().unwrap();
    assert_eq!(bed.used(), Some((0, 72)));
    // One more is offered but not seen when the device is saved.
    bed.request(12, RequestType::ReadBytes, 99, &[(DATA + 999, 8, true)]);
    let state = bed.device.save();
    assert_eq!(
        (state.version, &state.queue.in_flight[..]),
        (STATE_VERSION, &[3, 6, 9][..])
    );
    bed.backend.stop();

    bed.device = BlkDevice::restore(*bed.device.config(), queue(), &state).unwrap();
    assert_eq!(bed.device.save(), state, "saved again before it went on");
    assert_eq!(bed.kick(), Ok(0));
    assert_eq!(bed.device.in_flight(), 4);
    bed.backend.release(4);
    assert_eq!(bed.complete(), Ok(4));
    let heads: Vec<u32> = std::iter::from_fn(|| bed.used())
        .map(|(head, _)| head)
        .collect();
    assert_eq!(heads, [3, 6, 9, 12]);
    assert_eq!(bed.read(DATA + 64, 64), content(8192)[10..74]);
    assert_eq!(bed.read(DATA + 999, 8), content(8192)[99..107]);
}

#[test]
fn state_that_cannot_be_is_refused() {
    let good = Bed::new(8192).device.save();
    let refused = |change: fn(&mut BlkState)| {
        let mut state = good.clone();
        change(&mut state);
        let config = *Bed::new(8192).device.config();
        BlkDevice::restore(config, queue(), &state)
            .map(|_| ())
            .unwrap_err()
    };
    let device = "block device";
    let (found, known) = (1, STATE_VERSION);
    assert_eq!(
        refused(|s| s.version = 1),
        RestoreError::Version {
            device,
            found,
            known
        }
    );
    let what = "a descriptor chain in flight";
    let impossible = RestoreError::Impossible { device, what };
    assert_eq!(refused(|s| s.queue.in_flight = vec![QUEUE]), impossible);
    assert_eq!(refused(|s| s.queue.in_flight = vec![4, 5, 4]), impossible);
    let mut state = good.clone();
    state.needs_reset = true;
    let mut bed = Bed::new(8192);
    bed.device = BlkDevice::restore(*bed.device.config(), queue(), &state).unwrap();
    assert_eq!(bed.kick(), Err(DeviceFault::NeedsReset));
    assert!(bed.device.save().needs_reset);
}
