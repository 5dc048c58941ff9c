//! A guest that writes what it likes to queues, control page, records and heap, and rings: the host's
//! side of the contract without a vCPU. Nothing below the devices' window may change but what the host
//! answers there.
#![no_main]

use instar_devices::blk::Errno;
use instar_shared::control::{FileRequest, FileResponse, FileStatus};
use instar_shared::device::QUEUE_STRIDE;
use instar_shared::layout::{BOOT, CONTROL, HEAP_START, IMAGE, QUEUES, RECORDS, SYSTEM};
use instar_shared::record::{MAX_PAYLOAD, RecordKind};
use instar_vmm::memory::GuestSlot;
use instar_vmm::operation::seam::{
    Devices, Heap, RecordStream, answer_memory, memory_wanted, open_file, take_record_bytes,
};
use instar_vmm::operation::{OperationFile, OperationHost, Said};
use libfuzzer_sys::fuzz_target;
use std::sync::Arc;

const HEAP_BYTES: u64 = 8 << 20;
const FILE_BYTES: u64 = 64 << 10;

struct Host;

impl OperationHost for Host {
    fn open_file(&mut self, request: &FileRequest) -> Result<OperationFile, FileResponse> {
        // The host's own check has been through these.
        assert!(request.name_len.get() <= 4096 && request.slot.get() < 1024);
        if request.name[0] & 1 == 0 {
            return Ok(file(true));
        }
        Err(FileResponse {
            status: FileStatus::Failed.raw().into(),
            errno: Errno::EIO.0.into(),
        })
    }

    fn record(&mut self, _: RecordKind, payload: &[u8]) -> Result<(), String> {
        assert!(payload.len() <= MAX_PAYLOAD);
        Ok(())
    }
}

/// A file of zeros, read-only or one that may double.
fn file(read_only: bool) -> OperationFile {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(FILE_BYTES).expect("a length");
    OperationFile {
        direct_align: 0,
        said: Said::default(),
        file,
        read_only,
        block_device: false,
        len_bytes: FILE_BYTES,
        max_len_bytes: 2 * FILE_BYTES,
    }
}

/// One machine and the guest's next moves.
struct Machine<'a> {
    slot: Arc<GuestSlot>,
    devices: Devices,
    records: RecordStream,
    moves: &'a [u8],
}

impl Machine<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (now, later) = self.moves.split_first_chunk::<N>()?;
        self.moves = later;
        Some(*now)
    }

    /// One move; `None` when the guest is done or is stopped.
    fn step(&mut self) -> Option<()> {
        let [kind] = self.take()?;
        match kind % 8 {
            0..4 => self.store(kind),
            4 => {
                let [device] = self.take()?;
                self.devices.kick(u16::from(device % 4)).ok().map(drop)
            }
            5 => self.drain(),
            6 => open_file(&self.slot, &mut self.devices, &mut Host).ok(),
            _ => {
                let wanted = memory_wanted(&self.slot).ok()?;
                let heap = Heap {
                    end: HEAP_START + HEAP_BYTES / 2,
                    limit: HEAP_START + HEAP_BYTES,
                };
                let grant = heap.grant(wanted);
                answer_memory(&self.slot, wanted, grant).ok()?;
                let granted = grant.bytes;
                assert!(granted <= HEAP_BYTES);
                self.devices.complete_next().ok().flatten().map(drop)
            }
        }
    }

    fn store(&mut self, kind: u8) -> Option<()> {
        let [low, high, len] = self.take()?;
        let offset = u64::from(u16::from_le_bytes([low, high]));
        let region = match kind % 8 {
            0 => CONTROL.start + offset % (CONTROL.size - 256),
            1 => RECORDS.start + offset,
            2 => QUEUES.start + offset % (4 * QUEUE_STRIDE - 256),
            _ => HEAP_START + offset,
        };
        let len = usize::from(len).min(self.moves.len());
        let (bytes, later) = self.moves.split_at(len);
        self.moves = later;
        self.slot.write(region, bytes).ok()
    }

    fn drain(&mut self) -> Option<()> {
        let filled = take_record_bytes(&self.slot).ok()?;
        let mut window = vec![0; RecordStream::window_bytes(filled).ok()?];
        self.slot.read(RECORDS.start, &mut window).ok()?;
        let take = |kind, payload: &[u8]| Host.record(kind, payload);
        self.records.split(&window, take).ok()
    }
}

fuzz_target!(|moves: &[u8]| {
    let slot = GuestSlot::new(HEAP_START + HEAP_BYTES).expect("memory");
    let mut devices = Devices::new(Arc::clone(&slot));
    let disk = file(false);
    let written = disk.file.try_clone().expect("a descriptor");
    devices.add(0, disk).expect("a device");
    let mut machine = Machine {
        slot,
        devices,
        records: RecordStream::default(),
        moves,
    };
    while machine.step().is_some() {}
    let mut page = [0; 4096];
    for start in [SYSTEM.start, IMAGE.start, BOOT.start] {
        machine.slot.read(start, &mut page).expect("memory");
        assert!(page.iter().all(|byte| *byte == 0), "{start:#x} was written");
    }
    let len = written.metadata().expect("a length").len();
    assert!(len <= 2 * FILE_BYTES, "the file has {len} bytes");
});
