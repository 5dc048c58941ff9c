//! What a front end has said, and the device that it thereby has.

use super::memory::SharedMemory;
use crate::live::source::SourceGone;
use crate::machine::disk::store::Store;
use crate::machine::disk::{Made, SlotFinished};
use crate::memory::GuestSlot;
use instar_devices::blk::{
    BlockBackend, Errno, IoKind, IoRequest, QUEUE_SIZE, Submission, VirtioBlk,
};
use instar_devices::virtio::{Activation, DeviceState, Interrupt, VirtioDevice};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestMemoryMmap;

/// The feature bit for what the protocol has beyond its beginnings.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// The device, and how far the front end has come with it.
#[derive(Debug)]
pub struct Front {
    device: VirtioBlk<Store>,
    finished: Arc<SlotFinished>,
    /// Readable when a microVM has answered, if the disk asks one.
    answers: Option<Arc<OwnedFd>>,
    accepted: u64,
    memory: Option<SharedMemory>,
    ring: Ring,
}

/// The one ring.
#[derive(Debug, Default)]
struct Ring {
    size: u16,
    /// Descriptors, available and used ring, as the front end's addresses.
    places: Option<[u64; 3]>,
    base: u16,
    kick: Option<Arc<File>>,
    call: Arc<Call>,
    enabled: bool,
    /// The device has it.
    active: bool,
}

/// How the driver is told.
#[derive(Debug, Default)]
struct Call {
    used: Mutex<Option<File>>,
    broken: Mutex<Option<File>>,
}

impl Call {
    fn signal(event: &Mutex<Option<File>>) {
        let event = event.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut event) = event.as_ref() {
            // Full means signalled, which is enough.
            let _ = event.write(&1_u64.to_ne_bytes());
        }
    }

    fn set(event: &Mutex<Option<File>>, to: Option<File>) {
        *event.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }
}

impl Interrupt for Call {
    fn queue(&self, _index: u16) {
        Self::signal(&self.used);
    }

    fn config(&self) {}

    fn needs_reset(&self) {
        Self::signal(&self.broken);
    }
}

impl Front {
    /// Of nobody yet.
    pub fn new(made: Made) -> Self {
        Self {
            device: made.device,
            finished: made.finished,
            answers: made.answers,
            accepted: 0,
            memory: None,
            ring: Ring::default(),
        }
    }

    /// What threads have done.
    pub fn finished(&self) -> Arc<SlotFinished> {
        Arc::clone(&self.finished)
    }

    /// What a microVM answers at.
    pub fn answers(&self) -> Option<Arc<OwnedFd>> {
        self.answers.clone()
    }

    /// Why the disk cannot be used any more, once that is so.
    pub fn gone(&mut self) -> Option<SourceGone> {
        self.device.backend().gone().cloned()
    }

    /// Whether [`Self::complete`] is to be called after a while, though nothing has happened.
    pub fn holds(&mut self) -> bool {
        self.device.backend().holds()
    }

    /// What the driver notifies.
    pub fn kick_event(&self) -> Option<Arc<File>> {
        self.ring.kick.clone()
    }

    /// The driver has notified the ring.
    pub fn kicked(&mut self) {
        let mut read = false;
        if let Some(kick) = &self.ring.kick {
            let count = (&**kick).read(&mut [0; 8]);
            read = match count {
                Ok(bytes) => bytes > 0,
                Err(error) => error.kind() == io::ErrorKind::WouldBlock,
            };
        }
        if !read {
            // It is no event: it would be ready for ever.
            self.ring.kick = None;
        }
        self.device.kick(0);
    }

    /// Threads have finished something, or a microVM has `answered`.
    pub fn complete(&mut self, answered: bool) {
        let finished = Arc::clone(&self.finished);
        let take = |store: &mut Store| store.take_news(&finished, answered);
        self.device.complete(take);
    }

    /// The front end has gone.
    pub fn hang_up(&mut self) {
        self.stop_ring();
        self.ring = Ring::default();
        self.accepted = 0;
        self.forget_memory();
    }

    /// Makes all that was written durable.
    ///
    /// # Errors
    /// The host's.
    pub fn sync(&mut self) -> io::Result<()> {
        let request = IoRequest {
            kind: IoKind::Flush,
            buffers: Vec::new(),
        };
        let (finished, answers) = (Arc::clone(&self.finished), self.answers());
        let backend = self.device.backend();
        let result = match backend.submit(0, request) {
            Submission::Done(completion) => completion.result,
            Submission::Pending => loop {
                if let Some((_, completion)) = backend.poll() {
                    break completion.result;
                }
                let answered = await_news(&finished, answers.as_deref())?;
                backend.take_news(&finished, answered);
            },
        };
        result.map(drop).map_err(|Errno(errno)| {
            io::Error::from_raw_os_error(i32::try_from(errno).unwrap_or(libc::EIO))
        })
    }

    fn forget_memory(&mut self) {
        let nothing = GuestSlot::shared(GuestMemoryMmap::default());
        self.device.backend().set_memory(nothing);
        self.memory = None;
    }

    /// Lets what is on its way end, and takes the ring from the device; where the device was in it.
    fn stop_ring(&mut self) -> u16 {
        if !std::mem::take(&mut self.ring.active) {
            return self.ring.base;
        }
        let (finished, answers) = (Arc::clone(&self.finished), self.answers());
        let mut answered = false;
        while self
            .device
            .settle(|store| store.take_news(&finished, answered))
            > 0
        {
            match await_news(&finished, answers.as_deref()) {
                Ok(news) => answered = news,
                Err(_) => break,
            }
        }
        if let DeviceState::Blk(Some(state)) = self.device.save() {
            self.ring.base = state.queue.next_avail;
        }
        self.device.reset();
        self.ring.base
    }

    /// Gives the ring to the device, if all is said that it needs.
    fn start_ring(&mut self) -> Result<()> {
        let ring = &mut self.ring;
        let (Some(places), Some(memory), true) = (ring.places, &self.memory, ring.enabled) else {
            return Ok(());
        };
        if ring.active || ring.kick.is_none() {
            return Ok(());
        }
        let [descriptors, available, used] = places.map(|user| memory.guest_address(user));
        let mut queue = Queue::new(QUEUE_SIZE).map_err(|_| Error::BackendInternalError)?;
        queue.set_size(ring.size);
        queue.set_event_idx(self.accepted & (1 << VIRTIO_RING_F_EVENT_IDX) != 0);
        let places = (descriptors, available, used);
        let (Some(descriptors), Some(available), Some(used)) = places else {
            return Err(Error::InvalidParam);
        };
        queue
            .try_set_desc_table_address(vm_memory::GuestAddress(descriptors))
            .and_then(|()| queue.try_set_avail_ring_address(vm_memory::GuestAddress(available)))
            .and_then(|()| queue.try_set_used_ring_address(vm_memory::GuestAddress(used)))
            .map_err(|_| Error::InvalidParam)?;
        queue.set_ready(true);
        let dma = memory.slot.dma();
        let next_used = queue.used_idx(dma, Ordering::Acquire);
        queue.set_next_used(next_used.map_err(|_| Error::InvalidParam)?.0);
        queue.set_next_avail(ring.base);
        self.device.backend().set_memory(Arc::clone(&memory.slot));
        self.device.activate(Activation {
            features: self.accepted & !PROTOCOL_FEATURES,
            memory: dma.clone(),
            queues: vec![Some(queue)],
            interrupt: Arc::clone(&ring.call) as Arc<dyn Interrupt>,
        });
        ring.active = true;
        // What the driver has put there before.
        self.device.kick(0);
        Ok(())
    }

    const fn offered(device_features: u64) -> u64 {
        device_features | 1 << VIRTIO_F_VERSION_1 | PROTOCOL_FEATURES
    }

    fn of_ring(index: u32) -> Result<()> {
        if index == 0 {
            Ok(())
        } else {
            Err(Error::InvalidParam)
        }
    }
}

/// Sleeps until threads have finished something, or there are answers; whether there are.
fn await_news(finished: &SlotFinished, answers: Option<&OwnedFd>) -> io::Result<bool> {
    // SAFETY: the event is open as long as it is borrowed.
    let event = unsafe { BorrowedFd::borrow_raw(finished.event().as_raw_fd()) };
    let [done, answered] = super::wait([Some(event), answers.map(AsFd::as_fd)], None)?;
    if done {
        let _ = finished.event().read();
    }
    Ok(answered)
}

/// Nothing of the kind is offered.
fn not_offered<T>() -> Result<T> {
    Err(Error::InvalidOperation("this back end does not offer it"))
}

impl VhostUserBackendReqHandlerMut for Front {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.stop_ring();
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.stop_ring();
        self.ring.base = 0;
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(Self::offered(self.device.features()))
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !Self::offered(self.device.features()) != 0 || self.ring.active {
            return Err(Error::InvalidParam);
        }
        self.accepted = features;
        // Without protocol features a ring is enabled by its kick.
        self.ring.enabled = features & PROTOCOL_FEATURES == 0;
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<Option<Vec<u64>>> {
        self.stop_ring();
        self.forget_memory();
        self.memory = Some(SharedMemory::map(regions, files)?);
        self.start_ring()?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        Self::of_ring(index)?;
        let size = u16::try_from(num).map_err(|_| Error::InvalidParam)?;
        if !size.is_power_of_two() || size > QUEUE_SIZE || self.ring.active {
            return Err(Error::InvalidParam);
        }
        self.ring.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        Self::of_ring(index)?;
        let places = [descriptor, available, used];
        if self.ring.active && self.ring.places != Some(places) {
            return Err(Error::InvalidParam);
        }
        self.ring.places = Some(places);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        Self::of_ring(index)?;
        if self.ring.active {
            return Err(Error::InvalidParam);
        }
        self.ring.base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        Self::of_ring(index)?;
        let base = self.stop_ring();
        self.ring.kick = None;
        Call::set(&self.ring.call.used, None);
        Ok(VhostUserVringState::new(index, base.into()))
    }

    fn set_vring_kick(&mut self, index: u8, event: Option<File>) -> Result<()> {
        Self::of_ring(index.into())?;
        self.ring.kick = event.map(Arc::new);
        self.start_ring()
    }

    fn set_vring_call(&mut self, index: u8, event: Option<File>) -> Result<()> {
        Self::of_ring(index.into())?;
        Call::set(&self.ring.call.used, event);
        // What was completed before it could be told.
        self.ring.call.queue(0);
        Ok(())
    }

    fn set_vring_err(&mut self, index: u8, event: Option<File>) -> Result<()> {
        Self::of_ring(index.into())?;
        Call::set(&self.ring.call.broken, event);
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(1)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        Self::of_ring(index)?;
        self.ring.enabled = enable;
        if enable {
            return self.start_ring();
        }
        self.stop_ring();
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(size).map_err(|_| Error::InvalidParam)?];
        self.device.read_config(offset, &mut bytes);
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        // There is nothing to write.
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _object: VhostUserSharedMsg) -> Result<File> {
        not_offered()
    }

    fn get_inflight_fd(&mut self, _: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _: &VhostUserInflight, _: File) -> Result<()> {
        not_offered()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        not_offered()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        not_offered()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> Result<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        not_offered()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        not_offered()
    }
}
