//! A machine in the test process: guest memory, devices of `instar-devices`, and a host that answers
//! the control doorbells.

use crate::Platform;
use core::alloc::Layout;
use core::ptr::NonNull;
use instar_devices::blk::{BlkConfig, BlkDevice, CompletionOrder, MemBackend};
use instar_shared::abi::ABI_VERSION;
use instar_shared::blk::StatusExtent;
use instar_shared::boot::{BOOT_MAGIC, BootPage};
use instar_shared::control::{
    ControlPage, FileResponse, FileStatus, MemoryGrant, SizeAnnouncement, SizeStatus,
};
use instar_shared::device::{
    AVAIL_OFFSET, DeviceEntry, FEATURE_BLOCK_STATUS, FEATURE_BYTE_IO, FEATURE_BYTE_WRITE,
    FEATURE_COPY, FEATURE_ORDERED, FLAG_PRESENT, FLAG_READ_ONLY, QUEUE_SIZE, USED_OFFSET,
    entry_address, queue_region,
};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::{BOOT, CONTROL, DMA_START, HEAP_START, LIVE, RECORDS};
use instar_shared::live::{ANSWERS_AT, ANSWERS_END, LivePage, LiveQuery, WINDOW_BYTES};
use instar_shared::record::{RECORD_ALIGN, RecordHeader, RecordKind};
use instar_shared::zerocopy::little_endian::{U16, U32, U64};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Memory = GuestMemoryMmap<()>;

/// End of the fake machine's memory: 32 MiB of heap.
pub(crate) const HEAP_END: u64 = HEAP_START + (32 << 20);
/// Ticks per second of its clock.
pub(crate) const TICKS_PER_SECOND: u64 = 1_000_000;

/// A device and what stands behind it.
pub(crate) struct FakeDisk {
    pub device: BlkDevice,
    pub backend: MemBackend<Memory>,
}

/// An open request: slot, role, parent slot, name.
type OpenRequest = (u32, u32, u32, Vec<u8>);

/// What is behind the doorbells.
pub(crate) struct Host {
    /// All of guest memory.
    pub mem: Memory,
    /// What devices reach.
    dma: Memory,
    pub disks: RefCell<BTreeMap<u16, FakeDisk>>,
    /// Every kick, in order.
    pub kicks: RefCell<Vec<u32>>,
    pub waits: Cell<u32>,
    /// Records as they were drained, validated as a host does.
    pub records: RefCell<Vec<(RecordKind, Vec<u8>)>>,
    /// Answer to the next open request, and the content of the file if it is opened.
    pub next_file: RefCell<Option<(FileStatus, u32, Vec<u8>)>>,
    /// The last open request: slot, role, parent, name.
    pub last_file: RefCell<Option<OpenRequest>>,
    /// Pieces of answers of a resident operation, with their flags.
    pub answers: RefCell<Vec<(Vec<u8>, u32)>>,
    /// Batches that it will be asked, the last one first.
    pub queries: RefCell<Vec<Vec<LiveQuery>>>,
    pub memory_cap: Cell<u64>,
    pub clock: Cell<u64>,
    next_free: Cell<u64>,
}

/// The fake machine.
#[derive(Clone)]
pub(crate) struct FakeMachine(pub Rc<Host>);

impl core::fmt::Debug for FakeMachine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("FakeMachine")
    }
}

impl FakeMachine {
    pub(crate) fn new() -> Self {
        let len = |from: u64, to: u64| usize::try_from(to - from).unwrap();
        let low = (GuestAddress(BOOT.start), len(BOOT.start, DMA_START));
        let high = (GuestAddress(DMA_START), len(DMA_START, HEAP_END));
        let mem = Memory::from_ranges(&[low, high]).unwrap();
        let (dma, _) = mem.remove_region(low.0, low.1 as u64).unwrap();
        let boot = BootPage {
            magic: U32::new(BOOT_MAGIC),
            abi_version: U32::new(ABI_VERSION),
            heap_start: U64::new(HEAP_START),
            heap_end: U64::new(HEAP_END),
            tsc_hz: U64::new(TICKS_PER_SECOND),
            ..BootPage::zeroed()
        };
        mem.write_slice(boot.as_bytes(), GuestAddress(BOOT.start))
            .unwrap();
        Self(Rc::new(Host {
            mem,
            dma,
            disks: RefCell::default(),
            kicks: RefCell::default(),
            waits: Cell::new(0),
            records: RefCell::default(),
            next_file: RefCell::default(),
            last_file: RefCell::default(),
            answers: RefCell::default(),
            queries: RefCell::default(),
            memory_cap: Cell::new(u64::MAX),
            clock: Cell::new(0),
            next_free: Cell::new(HEAP_START),
        }))
    }

    /// Puts a read-only disk with `bytes` into `slot`.
    pub(crate) fn add_disk(&self, slot: u16, bytes: Vec<u8>, order: CompletionOrder) {
        self.add(slot, bytes, order, true);
    }

    /// Puts a disk with `bytes`, which may be changed, into `slot`.
    pub(crate) fn add_writable_disk(&self, slot: u16, bytes: Vec<u8>, order: CompletionOrder) {
        self.add(slot, bytes, order, false);
    }

    fn add(&self, slot: u16, bytes: Vec<u8>, order: CompletionOrder, read_only: bool) {
        let region = queue_region(slot).unwrap();
        let (flag, feature) = if read_only {
            (FLAG_READ_ONLY, 0)
        } else {
            (0, FEATURE_BYTE_WRITE | FEATURE_COPY)
        };
        let feature = if order == CompletionOrder::AtOnce && !read_only {
            feature | FEATURE_ORDERED
        } else {
            feature
        };
        let features = FEATURE_BYTE_IO | FEATURE_BLOCK_STATUS | feature;
        let entry = DeviceEntry {
            flags: U32::new(FLAG_PRESENT | flag),
            queue_size: U16::new(QUEUE_SIZE),
            features: U64::new(features),
            len_bytes: U64::new(bytes.len() as u64),
            desc_table: U64::new(region.start),
            avail_ring: U64::new(region.start + AVAIL_OFFSET),
            used_ring: U64::new(region.start + USED_OFFSET),
            ..DeviceEntry::zeroed()
        };
        let at = GuestAddress(entry_address(slot).unwrap());
        self.0.mem.write_slice(entry.as_bytes(), at).unwrap();
        let mut queue = Queue::new(QUEUE_SIZE).unwrap();
        let place = |offset| GuestAddress(region.start + offset);
        queue.try_set_desc_table_address(place(0)).unwrap();
        queue
            .try_set_avail_ring_address(place(AVAIL_OFFSET))
            .unwrap();
        queue.try_set_used_ring_address(place(USED_OFFSET)).unwrap();
        queue.set_ready(true);
        let config = BlkConfig {
            virtio_features: 0,
            vendor_features: features,
            read_only,
            len_bytes: bytes.len() as u64,
            write_through: false,
        };
        let mut backend = MemBackend::new(self.0.dma.clone(), bytes);
        backend.order = order;
        let device = BlkDevice::new(config, queue);
        self.0
            .disks
            .borrow_mut()
            .insert(slot, FakeDisk { device, backend });
    }

    /// Kicks of device queues so far.
    pub(crate) fn queue_kicks(&self) -> usize {
        let is_queue = |raw: &&u32| matches!(Kick::decode(**raw), Some(Kick::Queue { .. }));
        self.0.kicks.borrow().iter().filter(is_queue).count()
    }

    /// A slice of the fake heap, which devices reach.
    #[allow(clippy::mut_from_ref)]
    pub(crate) fn heap_slice(&self, len: usize) -> &mut [u8] {
        let layout = Layout::from_size_align(len.max(1), 1).unwrap();
        let pointer = self.dma_alloc(layout).expect("fake heap is used up");
        // SAFETY: the bytes were given out once, and the memory lives as long as the machine.
        unsafe { core::slice::from_raw_parts_mut(pointer.as_ptr(), len) }
    }

    fn control(&self, control: Control) {
        match control {
            Control::Drain => self.take_records(),
            Control::OpenFile => self.open_file(),
            Control::GrantMemory => {
                let at =
                    GuestAddress(CONTROL.start + core::mem::offset_of!(ControlPage, memory) as u64);
                let mut grant = MemoryGrant::zeroed();
                self.0.mem.read_slice(grant.as_mut_bytes(), at).unwrap();
                let granted = grant.wanted.get().min(self.0.memory_cap.get());
                grant.granted = U64::new(granted);
                self.0.mem.write_slice(grant.as_bytes(), at).unwrap();
            }
            Control::AnnounceSize => self.announce_size(),
            Control::Serve => self.serve(),
            Control::Exit | Control::Panic => {}
        }
    }

    /// Takes a piece of answers, and asks what is next if it was the last of a batch.
    fn serve(&self) {
        let mem = &self.0.mem;
        let [filled, flags]: [u32; 2] = mem.read_obj(GuestAddress(LIVE.start)).unwrap();
        assert!(filled <= WINDOW_BYTES);
        let mut window = vec![0; filled as usize];
        let at = GuestAddress(LIVE.start + ANSWERS_AT);
        mem.read_slice(&mut window, at).unwrap();
        self.0.answers.borrow_mut().push((window, flags));
        if flags & ANSWERS_END != 0 {
            let queries = self.0.queries.borrow_mut().pop().expect("more queries");
            let mut page = LivePage::zeroed();
            page.count = U32::new(u32::try_from(queries.len()).unwrap());
            page.queries[..queries.len()].copy_from_slice(&queries);
            mem.write_slice(page.as_bytes(), GuestAddress(LIVE.start))
                .unwrap();
        }
    }

    /// Grants whatever is announced for a disk that is there.
    fn announce_size(&self) {
        let at =
            GuestAddress(CONTROL.start + core::mem::offset_of!(ControlPage, announcement) as u64);
        let mut announced = SizeAnnouncement::zeroed();
        self.0.mem.read_slice(announced.as_mut_bytes(), at).unwrap();
        let slot = u16::try_from(announced.slot.get()).unwrap();
        let status = if self.0.disks.borrow().contains_key(&slot) {
            SizeStatus::Granted
        } else {
            SizeStatus::Invalid
        };
        announced.status = U32::new(status.raw());
        self.0.mem.write_slice(announced.as_bytes(), at).unwrap();
    }

    /// Validates the window and takes its records.
    pub(crate) fn take_records(&self) {
        let at = CONTROL.start + core::mem::offset_of!(ControlPage, record_bytes) as u64;
        let filled: u32 = self.0.mem.read_obj(GuestAddress(at)).unwrap();
        assert!(u64::from(filled) <= RECORDS.size);
        let mut window = vec![0; filled as usize];
        self.0
            .mem
            .read_slice(&mut window, GuestAddress(RECORDS.start))
            .unwrap();
        let mut rest = &window[..];
        while !rest.is_empty() {
            let (header, after) = RecordHeader::read_from_prefix(rest).expect("a whole header");
            let len = header.len.get() as usize;
            let kind = RecordKind::try_from(header.kind.get()).expect("a known kind");
            self.0
                .records
                .borrow_mut()
                .push((kind, after[..len].to_vec()));
            rest = &after[len.next_multiple_of(RECORD_ALIGN)..];
        }
    }

    fn open_file(&self) {
        let mut page = ControlPage::zeroed();
        self.0
            .mem
            .read_slice(page.as_mut_bytes(), GuestAddress(CONTROL.start))
            .unwrap();
        let request = page.file_request;
        let name = request.name[..request.name_len.get() as usize].to_vec();
        let slot = request.slot.get();
        *self.0.last_file.borrow_mut() =
            Some((slot, request.role.get(), request.parent_slot.get(), name));
        let (status, errno, bytes) = self
            .0
            .next_file
            .borrow_mut()
            .take()
            .expect("no file is expected");
        if status == FileStatus::Opened {
            self.add_disk(u16::try_from(slot).unwrap(), bytes, CompletionOrder::AtOnce);
        }
        let response = FileResponse {
            status: U32::new(status.raw()),
            errno: U32::new(errno),
        };
        let at = CONTROL.start + core::mem::offset_of!(ControlPage, file_response) as u64;
        self.0
            .mem
            .write_slice(response.as_bytes(), GuestAddress(at))
            .unwrap();
    }
}

// SAFETY: pointers lead into the mapped memory, whose mapping lives as long as the machine; the fake
// heap gives each byte out once.
unsafe impl Platform for FakeMachine {
    fn kick(&self, value: u32) {
        self.0.kicks.borrow_mut().push(value);
        match Kick::decode(value).expect("a known kick") {
            Kick::Control(control) => self.control(control),
            Kick::Vcpu(index) => panic!("there is no vCPU {index}"),
            Kick::Queue { slot, .. } => {
                let mut disks = self.0.disks.borrow_mut();
                let disk = disks.get_mut(&slot).expect("a device in the slot");
                disk.device.kick(&self.0.dma, &mut disk.backend).unwrap();
            }
        }
    }

    fn wait(&self, _value: u32) {
        self.0.waits.set(self.0.waits.get() + 1);
        let mut done = 0;
        for disk in self.0.disks.borrow_mut().values_mut() {
            // A few at a time, so that the driver sees a ring that fills slowly.
            disk.backend.release(disk.backend.held().div_ceil(3));
            done += disk
                .device
                .complete(&self.0.dma, &mut disk.backend)
                .unwrap();
        }
        assert!(done > 0, "the driver waits for nothing");
    }

    fn pointer(&self, addr: u64, len: usize) -> NonNull<u8> {
        let slice = self
            .0
            .mem
            .get_slice(GuestAddress(addr), len)
            .expect("guest memory");
        NonNull::new(slice.ptr_guard_mut().as_ptr()).unwrap()
    }

    fn dma_address(&self, pointer: *const u8, len: usize) -> Option<u64> {
        let base = self
            .0
            .dma
            .get_host_address(GuestAddress(DMA_START))
            .unwrap()
            .cast_const();
        let offset = (pointer.addr() as u64).checked_sub(base.addr() as u64)?;
        let addr = DMA_START + offset;
        (addr + len as u64 <= HEAP_END).then_some(addr)
    }

    fn dma_alloc(&self, layout: Layout) -> Option<NonNull<u8>> {
        let start = self
            .0
            .next_free
            .get()
            .next_multiple_of(layout.align() as u64);
        let end = start + layout.size() as u64;
        if layout.size() == 0 || end > HEAP_END {
            return None;
        }
        self.0.next_free.set(end);
        Some(self.pointer(start, layout.size()))
    }

    unsafe fn dma_free(&self, _pointer: NonNull<u8>, _layout: Layout) {}

    fn heap_grew(&self, _heap_end: u64) {}

    fn ticks(&self) -> u64 {
        self.0.clock.get()
    }
}

/// Extents of a block status answer.
pub(crate) fn answer(runs: &[(u64, bool)]) -> Vec<StatusExtent> {
    let extent = |(len, data): &(u64, bool)| StatusExtent {
        len: U64::new(*len),
        flags: U64::new(u64::from(*data)),
    };
    runs.iter().map(extent).collect()
}
