//! The block devices of a run, by slot, over the operation transport.

use super::OperationFile;
use crate::VmError;
use crate::block::{
    ChangeLimits, FileBackend, Files, Finished, Handover, HostFile, IoPool, Shared,
};
use crate::memory::GuestSlot;
use instar_devices::blk::{BlkConfig, BlkDevice, DeviceFault};
use instar_shared::device::{
    AVAIL_OFFSET, DeviceEntry, FEATURE_BLOCK_STATUS, FEATURE_BYTE_IO, FEATURE_BYTE_WRITE,
    FEATURE_COPY, FEATURE_ORDERED, FLAG_BLOCK_DEVICE, FLAG_PRESENT, FLAG_READ_ONLY, MAX_DEVICES,
    QUEUE_SIZE, USED_OFFSET, entry_address, queue_region,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// What every device offers; one that may be written has [`WRITE_FEATURES`] as well.
const FEATURES: u64 = FEATURE_BYTE_IO | FEATURE_BLOCK_STATUS;

/// What a device that may be written offers besides.
const WRITE_FEATURES: u64 = FEATURE_BYTE_WRITE | FEATURE_COPY;

/// One device and what stands behind it.
#[derive(Debug)]
struct Slot {
    device: BlkDevice,
    backend: FileBackend,
}

/// All devices of a run.
#[derive(Debug)]
pub struct Devices {
    slots: BTreeMap<u16, Slot>,
    memory: Arc<GuestSlot>,
    shared: Shared,
}

impl Devices {
    /// No devices yet, and no threads.
    #[cfg(feature = "fuzzing")]
    pub fn new(memory: Arc<GuestSlot>) -> Self {
        Self::with_threads(memory, None)
    }

    /// No devices yet; `pool` does what takes long.
    pub fn with_threads(memory: Arc<GuestSlot>, pool: Option<Arc<IoPool>>) -> Self {
        let files = Files::default();
        Self {
            slots: BTreeMap::new(),
            memory,
            shared: Shared {
                files,
                pool,
                handover: Handover::Operation,
            },
        }
    }

    /// Whether `slot` exists and is empty.
    pub fn is_free(&self, slot: u16) -> bool {
        slot < MAX_DEVICES && !self.slots.contains_key(&slot)
    }

    /// Whether `slot` holds a device.
    pub fn is_present(&self, slot: u16) -> bool {
        self.slots.contains_key(&slot)
    }

    /// Makes `file` the device of `slot` and announces it in the device table.
    ///
    /// # Errors
    /// [`VmError`] if there is no such slot.
    pub fn add(&mut self, slot: u16, file: OperationFile) -> Result<(), VmError> {
        let no_slot = || VmError::Image(format!("there is no device slot {slot}"));
        let region = queue_region(slot).ok_or_else(no_slot)?;
        let address = entry_address(slot).ok_or_else(no_slot)?;
        let parts = [
            region.start,
            region.start + AVAIL_OFFSET,
            region.start + USED_OFFSET,
        ];
        let queue =
            queue_at(parts).map_err(|e| VmError::Image(format!("queue of slot {slot}: {e}")))?;
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = FLAG_PRESENT
            | flag(file.read_only, FLAG_READ_ONLY)
            | flag(file.block_device, FLAG_BLOCK_DEVICE);
        let [desc_table, avail_ring, used_ring] = parts;
        // Threads do requests in any order.
        let ordered = if self.shared.pool.is_none() {
            FEATURE_ORDERED
        } else {
            0
        };
        let write = if file.read_only {
            0
        } else {
            WRITE_FEATURES | ordered
        };
        let features = FEATURES | write;
        let entry = DeviceEntry {
            flags: flags.into(),
            queue_size: QUEUE_SIZE.into(),
            features: features.into(),
            len_bytes: file.len_bytes.into(),
            desc_table: desc_table.into(),
            avail_ring: avail_ring.into(),
            used_ring: used_ring.into(),
            allocated_bytes: allocated_bytes(&file.file).into(),
            below: file.said.below.into(),
            encryption: file.said.encryption.into(),
            ..DeviceEntry::zeroed()
        };
        let config = BlkConfig {
            virtio_features: 0,
            vendor_features: features,
            read_only: file.read_only,
            len_bytes: file.len_bytes,
            write_through: false,
        };
        let limits = ChangeLimits {
            read_only: file.read_only,
            block_device: file.block_device,
            max_len_bytes: file.max_len_bytes,
        };
        let memory = Arc::clone(&self.memory);
        let shared = self.shared.clone();
        let host = HostFile::new(file.file, file.direct_align).part(file.said.start, file.said.end);
        let backend = FileBackend::new(slot, host, memory, limits, shared);
        self.slots.insert(
            slot,
            Slot {
                device: BlkDevice::new(config, queue),
                backend,
            },
        );
        self.memory.store(address, &entry)
    }

    /// Lets the file in `slot` be changed up to `max_len_bytes`; false if the slot is empty.
    pub fn set_max_len(&mut self, slot: u16, max_len_bytes: u64) -> bool {
        let slot = self.slots.get_mut(&slot);
        slot.map(|slot| slot.backend.set_max_len(max_len_bytes))
            .is_some()
    }

    /// Looks at the queue of `slot`; how many requests were completed at once.
    ///
    /// # Errors
    /// What the guest did wrong.
    pub fn kick(&mut self, slot: u16) -> Result<u32, String> {
        let memory = Arc::clone(&self.memory);
        let Slot { device, backend } = self.get(slot)?;
        device
            .kick(memory.dma(), backend)
            .map_err(|e| fault(slot, e))
    }

    /// Sleeps until the oldest request of some device is done and publishes it, with those of that
    /// device that are done by then. Says how many requests that were, 0 if the sleep was interrupted;
    /// `None` if no request is pending.
    ///
    /// # Errors
    /// What the guest did wrong.
    pub fn complete_next(&mut self) -> Result<Option<u32>, String> {
        let memory = Arc::clone(&self.memory);
        let mut slots = self.slots.iter_mut();
        let pending =
            slots.find_map(|(number, slot)| slot.backend.allow_sleep().then_some((number, slot)));
        let Some((number, Slot { device, backend })) = pending else {
            return Ok(None);
        };
        let completed = device.complete(memory.dma(), backend);
        completed.map(Some).map_err(|e| fault(*number, e))
    }

    /// Publishes what threads have finished; how many requests that were.
    ///
    /// # Errors
    /// What the guest did wrong.
    pub fn finish(&mut self, finished: Vec<Finished>) -> Result<u32, String> {
        let memory = Arc::clone(&self.memory);
        let mut published = 0_u32;
        for done in finished {
            let Slot { device, backend } = self.get(done.slot)?;
            backend.take_finished(done.token, done.completion);
            let completed = device.complete(memory.dma(), backend);
            let completed = completed.map_err(|e| fault(done.slot, e))?;
            published = published.saturating_add(completed);
        }
        Ok(published)
    }

    /// Whether threads have requests.
    pub fn is_in_flight(&self) -> bool {
        let mut slots = self.slots.values();
        slots.any(|slot| slot.backend.on_threads() > 0)
    }

    fn get(&mut self, slot: u16) -> Result<&mut Slot, String> {
        self.slots
            .get_mut(&slot)
            .ok_or_else(|| format!("it rang for device {slot}, which is not there"))
    }
}

/// What the file system has allocated for `file`, in bytes; 0 if it does not say.
fn allocated_bytes(file: &std::fs::File) -> u64 {
    let blocks = rustix::fs::fstat(file).map_or(0, |stat| stat.st_blocks);
    u64::try_from(blocks).unwrap_or(0).saturating_mul(512)
}

fn fault(slot: u16, fault: DeviceFault) -> String {
    format!("device {slot}: {fault}")
}

fn queue_at([desc, avail, used]: [u64; 3]) -> Result<Queue, virtio_queue::Error> {
    let mut queue = Queue::new(QUEUE_SIZE)?;
    queue.try_set_desc_table_address(GuestAddress(desc))?;
    queue.try_set_avail_ring_address(GuestAddress(avail))?;
    queue.try_set_used_ring_address(GuestAddress(used))?;
    queue.set_size(QUEUE_SIZE);
    queue.set_ready(true);
    Ok(queue)
}
