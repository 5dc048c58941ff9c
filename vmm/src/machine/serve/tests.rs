//! A front end of the test's own against the server, over a socket.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::memory::SharedMemory;
use super::*;
use crate::block::HostFile;
use crate::machine::parts::Disk;
use instar_devices::virtio::driver::{Buf, DRIVER_BYTES, Driver};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::thread::JoinHandle;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserMemoryRegion, VhostUserProtocolFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

const DISK_BYTES: u64 = 8 << 20;
const MEMORY_BYTES: u64 = 16 << 20;
/// The guest's memory starts somewhere, and the front end has it elsewhere.
const GUEST: u64 = 0x10_0000;
const USER: u64 = 0x7000_0000_0000;
const RINGS: u64 = GUEST;
const BUFFERS: u64 = RINGS + DRIVER_BYTES;
const RING_SIZE: u16 = 64;
const DATA: u64 = BUFFERS + 0x1000;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;

struct Bed {
    file: File,
    memory_file: File,
    memory: SharedMemory,
    stop: OwnedFd,
    path: std::path::PathBuf,
    _folder: tempfile::TempDir,
    server: JoinHandle<Result<(), VmError>>,
}

fn region(file: &File) -> (VhostUserMemoryRegion, File) {
    let region = VhostUserMemoryRegion {
        guest_phys_addr: GUEST,
        memory_size: MEMORY_BYTES,
        user_addr: USER,
        mmap_offset: 0,
    };
    (region, file.try_clone().unwrap())
}

fn new_memory() -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MEMORY_BYTES).unwrap();
    file
}

impl Bed {
    fn new(read_only: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.sock");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..DISK_BYTES).map(|at| (at / 512) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        let disk = Disk {
            file: HostFile::new(file.try_clone().unwrap(), 0),
            name: "test".into(),
            len_bytes: DISK_BYTES,
            read_only,
            block_device: false,
            serial: "served".into(),
            rate: None,
        };
        let stop = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let server = Server::new(Served::Raw(disk), listener, stop.try_clone().unwrap()).unwrap();
        let confine: Confine = Arc::new(|_| Ok(()));
        let server = std::thread::spawn(move || server.run(&confine));
        let memory_file = new_memory();
        let (shared, copy) = region(&memory_file);
        let memory = SharedMemory::map(&[shared], vec![copy]).unwrap();
        Self {
            file,
            memory_file,
            memory,
            stop,
            path,
            _folder: folder,
            server,
        }
    }

    fn end(self) {
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).unwrap();
        self.server.join().unwrap().unwrap();
    }
}

/// A connection with a running ring.
struct Guest {
    front: Frontend,
    driver: Driver,
    kick: EventFd,
    call: EventFd,
    features: u64,
}

impl Guest {
    fn connect(bed: &Bed) -> Self {
        let mut front = Frontend::connect(&bed.path, 1).unwrap();
        front.set_owner().unwrap();
        let features = front.get_features().unwrap();
        front.set_features(features).unwrap();
        let protocol = front.get_protocol_features().unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
        front
            .set_protocol_features(VhostUserProtocolFeatures::CONFIG)
            .unwrap();
        front
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: GUEST,
                memory_size: MEMORY_BYTES,
                userspace_addr: USER,
                mmap_offset: 0,
                mmap_handle: std::os::fd::AsRawFd::as_raw_fd(&bed.memory_file),
            }])
            .unwrap();
        let dma = bed.memory.slot.dma();
        let driver = Driver::new(dma, RINGS, RING_SIZE, features & !(1 << 30));
        let mut guest = Self {
            front,
            driver,
            kick: EventFd::new(0).unwrap(),
            call: EventFd::new(0).unwrap(),
            features,
        };
        guest.start(0);
        guest
    }

    fn start(&mut self, base: u16) {
        let queue = self.driver.queue();
        let user = |guest: u64| guest - GUEST + USER;
        self.front.set_vring_num(0, RING_SIZE).unwrap();
        self.front.set_vring_base(0, base).unwrap();
        let places = VringConfigData {
            queue_max_size: RING_SIZE,
            queue_size: RING_SIZE,
            flags: 0,
            desc_table_addr: user(virtio_queue::QueueT::desc_table(&queue)),
            avail_ring_addr: user(virtio_queue::QueueT::avail_ring(&queue)),
            used_ring_addr: user(virtio_queue::QueueT::used_ring(&queue)),
            log_addr: None,
        };
        self.front.set_vring_addr(0, &places).unwrap();
        self.front.set_vring_call(0, &self.call).unwrap();
        self.front.set_vring_kick(0, &self.kick).unwrap();
        self.front.set_vring_enable(0, true).unwrap();
    }

    /// One request to its end; its status.
    fn request(&mut self, bed: &Bed, kind: u32, sector: u64, data: Option<(u32, bool)>) -> u8 {
        let mem = bed.memory.slot.dma();
        let status = GuestAddress(BUFFERS + 16);
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        mem.write_slice(&header, GuestAddress(BUFFERS)).unwrap();
        mem.write_slice(&[0xff], status).unwrap();
        let mut chain: Vec<Buf> = vec![(BUFFERS, 16, false)];
        chain.extend(data.map(|(len, write)| (DATA, len, write)));
        chain.push((BUFFERS + 16, 1, true));
        let head = self.driver.add(&chain, true).unwrap();
        if self.driver.must_kick() {
            self.kick.write(1).unwrap();
        }
        for _ in 0..120_000 {
            if let Some((used, _)) = self.driver.take_used() {
                assert_eq!(used, head);
                return mem.read_obj(status).unwrap();
            }
            self.driver.sleep();
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("the request does not end");
    }

    fn read(&mut self, bed: &Bed, sector: u64, len: u32) -> Vec<u8> {
        assert_eq!(self.request(bed, IN, sector, Some((len, true))), 0);
        let mut bytes = vec![0; len as usize];
        let mem = bed.memory.slot.dma();
        mem.read_slice(&mut bytes, GuestAddress(DATA)).unwrap();
        bytes
    }

    fn write(&mut self, bed: &Bed, sector: u64, bytes: &[u8]) -> u8 {
        let mem = bed.memory.slot.dma();
        mem.write_slice(bytes, GuestAddress(DATA)).unwrap();
        self.request(bed, OUT, sector, Some((bytes.len() as u32, false)))
    }
}

#[test]
fn what_a_front_end_writes_is_in_the_file() {
    let bed = Bed::new(false);
    let mut guest = Guest::connect(&bed);
    let (_, config) = guest
        .front
        .get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8])
        .unwrap();
    assert_eq!(config, (DISK_BYTES / 512).to_le_bytes());
    assert_eq!(guest.read(&bed, 5, 1024)[..512], [5; 512]);
    assert_eq!(guest.write(&bed, 100, &[0xab; 4096]), 0);
    // Long enough for the threads.
    assert_eq!(guest.write(&bed, 2048, &vec![0xcd; 1 << 20]), 0);
    assert_eq!(guest.request(&bed, FLUSH, 0, None), 0);
    let mut seen = vec![0; 4096];
    bed.file.read_exact_at(&mut seen, 100 * 512).unwrap();
    assert_eq!(seen, [0xab; 4096]);
    assert_eq!(guest.read(&bed, 2048 + 2047, 512), [0xcd; 512]);
    assert_ne!(guest.write(&bed, DISK_BYTES / 512, &[1; 512]), 0);
    drop(guest);
    bed.end();
}

#[test]
fn a_ring_goes_on_where_it_was_stopped() {
    let bed = Bed::new(false);
    let mut guest = Guest::connect(&bed);
    for round in 1..40_u16 {
        assert_eq!(guest.write(&bed, u64::from(round), &[round as u8; 512]), 0);
        let base = guest.front.get_vring_base(0).unwrap();
        assert_eq!(base, u32::from(round));
        guest.start(base as u16);
    }
    for round in 1..40_u64 {
        let mut seen = [0; 512];
        bed.file.read_exact_at(&mut seen, round * 512).unwrap();
        assert_eq!(seen, [round as u8; 512]);
    }
    // The next front end begins anew.
    drop(guest);
    let mut other = Guest::connect(&bed);
    assert_eq!(other.read(&bed, 39, 512), [39; 512]);
    bed.end();
}

#[test]
fn a_disk_that_is_only_read_refuses_writes() {
    let bed = Bed::new(true);
    let mut guest = Guest::connect(&bed);
    assert_ne!(guest.features & (1 << 5), 0, "VIRTIO_BLK_F_RO");
    assert_eq!(guest.write(&bed, 0, &[1; 512]), 1);
    assert_eq!(guest.read(&bed, 1, 512), [1; 512]);
    drop(guest);
    bed.end();
}

#[test]
fn memory_that_is_not_there_and_rings_outside_of_it_are_refused() {
    let file = new_memory();
    let (good, copy) = region(&file);
    let long = VhostUserMemoryRegion {
        memory_size: MEMORY_BYTES + 4096,
        ..good
    };
    assert!(SharedMemory::map(&[long], vec![copy]).is_err());
    let copies = || vec![file.try_clone().unwrap(), file.try_clone().unwrap()];
    assert!(SharedMemory::map(&[good, good], copies()).is_err());
    let memory = SharedMemory::map(&[good], copies()).unwrap();
    assert_eq!(memory.guest_address(USER), Some(GUEST));
    assert_eq!(memory.guest_address(USER + MEMORY_BYTES), None);
    assert_eq!(memory.guest_address(USER - 1), None);

    // A ring that lies elsewhere ends the connection, and the server serves the next one.
    let bed = Bed::new(false);
    let guest = Guest::connect(&bed);
    guest.front.get_vring_base(0).unwrap();
    let outside = VringConfigData {
        queue_max_size: RING_SIZE,
        queue_size: RING_SIZE,
        flags: 0,
        desc_table_addr: 0x10_0000_0000,
        avail_ring_addr: USER,
        used_ring_addr: USER,
        log_addr: None,
    };
    let _ = guest.front.set_vring_addr(0, &outside);
    let _ = guest.front.set_vring_kick(0, &guest.kick);
    assert!(guest.front.get_vring_base(0).is_err());
    drop(guest);
    let mut other = Guest::connect(&bed);
    assert_eq!(other.read(&bed, 7, 512), [7; 512]);
    bed.end();
}

#[test]
fn what_is_no_message_ends_the_connection_only() {
    let bed = Bed::new(false);
    let mut seed = 11_u64;
    for _ in 0..50 {
        let mut stream = UnixStream::connect(&bed.path).unwrap();
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            })
            .collect();
        let _ = stream.write_all(&bytes);
        drop(stream);
    }
    let mut guest = Guest::connect(&bed);
    assert_eq!(guest.read(&bed, 3, 512), [3; 512]);
    drop(guest);
    bed.end();
}
