//! The device: takes chains off the queue, submits them, publishes what completed.

use super::DeviceFault;
use super::backend::{BlockBackend, Completion, Errno, IoKind, IoRequest, Submission, Token};
use super::request::{Action, Footer, Request, parse};
use super::state::{BlkState, STATE_VERSION};
use crate::rate::RateLimiter;
use crate::virtio::chain::{scatter, total_len};
use crate::virtio::{Chain, DeviceQueue, RestoreError};
use instar_shared::blk::{RequestHeader, SECTOR_SIZE, Status, VendorFooter};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::{U32, U64};
use virtio_queue::Queue;
use vm_memory::GuestMemory;

/// What a block device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlkConfig {
    /// `VIRTIO_BLK_F_*` that the driver has accepted, as bits; 0 over the operation transport.
    pub virtio_features: u64,
    /// [`instar_shared::device`]'s `FEATURE_*` bits; 0 for a Linux guest.
    pub vendor_features: u64,
    /// Requests that change anything are refused.
    pub read_only: bool,
    /// Length in bytes when the device was made; bounds the requests that count in sectors.
    pub len_bytes: u64,
    /// A change is durable when it is completed: the driver knows no flush. VirtIO 1.3 §5.2.6.2.
    pub write_through: bool,
}

impl BlkConfig {
    /// Sectors of the device; a last partial one counts.
    #[must_use]
    pub const fn capacity_sectors(&self) -> u64 {
        self.len_bytes.div_ceil(SECTOR_SIZE)
    }

    /// Whether bit `feature` (a `VIRTIO_BLK_F_*` number) was accepted.
    #[must_use]
    pub fn has_virtio_feature(&self, feature: u32) -> bool {
        1_u64
            .checked_shl(feature)
            .is_some_and(|bit| self.virtio_features & bit != 0)
    }
}

/// A request that the device owns.
#[derive(Debug)]
struct InFlight {
    token: Token,
    footer: Footer,
    /// Parts that the backend has.
    pending: usize,
    /// Of the parts that are done: bytes written to the guest, or the first error.
    result: Result<u32, Errno>,
    /// When all parts are done they are to be made durable.
    sync: bool,
}

impl InFlight {
    /// A part ends, or is on its way.
    fn take(&mut self, submission: Submission) {
        match submission {
            Submission::Pending => self.pending = self.pending.saturating_add(1),
            Submission::Done(Completion { result }) => {
                self.result = match (self.result, result) {
                    (Ok(all), Ok(part)) => Ok(all.saturating_add(part)),
                    (Err(errno), _) | (_, Err(errno)) => Err(errno),
                }
            }
        }
    }
}

/// A virtio block device with one queue.
#[derive(Debug)]
pub struct BlkDevice {
    config: BlkConfig,
    queue: DeviceQueue,
    /// By head descriptor: what the backend has. As long as the queue.
    in_flight: Vec<Option<InFlight>>,
    next_sequence: u64,
    fault: Option<DeviceFault>,
}

impl BlkDevice {
    /// A device over `queue`, which the caller has sized, placed and made ready.
    #[must_use]
    pub fn new(config: BlkConfig, queue: Queue) -> Self {
        Self::with(config, DeviceQueue::new(queue, config.virtio_features))
    }

    fn with(config: BlkConfig, queue: DeviceQueue) -> Self {
        let mut in_flight = Vec::new();
        in_flight.resize_with(usize::from(queue.size()), || None);
        Self {
            config,
            queue,
            in_flight,
            next_sequence: 0,
            fault: None,
        }
    }

    /// What the device was made with.
    #[must_use]
    pub const fn config(&self) -> &BlkConfig {
        &self.config
    }

    /// Requests that are submitted and not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.in_flight.iter().flatten().count()
    }

    /// Looks at the queue: submits every chain that is available and publishes what is done at once.
    ///
    /// Returns how many completions were published.
    ///
    /// # Errors
    /// What the driver did wrong. The device does nothing more then; this error comes back each time.
    pub fn kick<M: GuestMemory>(
        &mut self,
        mem: &M,
        backend: &mut dyn BlockBackend,
    ) -> Result<u32, DeviceFault> {
        self.guarded(|device| device.submit_available(mem, backend, None))
    }

    /// As [`Self::kick`], and takes no more chains than `limiter` lets through.
    ///
    /// # Errors
    /// As [`Self::kick`].
    pub fn kick_limited<M: GuestMemory>(
        &mut self,
        mem: &M,
        backend: &mut dyn BlockBackend,
        limiter: Option<&mut RateLimiter>,
    ) -> Result<u32, DeviceFault> {
        self.guarded(|device| device.submit_available(mem, backend, limiter))
    }

    /// Publishes every request that the backend has finished since; returns how many.
    ///
    /// # Errors
    /// As [`Self::kick`].
    pub fn complete<M: GuestMemory>(
        &mut self,
        mem: &M,
        backend: &mut dyn BlockBackend,
    ) -> Result<u32, DeviceFault> {
        self.guarded(|device| device.publish_finished(mem, backend))
    }

    /// The queue, for what its driver is told and asked.
    pub(super) const fn queue(&mut self) -> &mut DeviceQueue {
        &mut self.queue
    }

    /// The device as plain data. Requests in flight stay the backend's: stop it before the state is used.
    #[must_use]
    pub fn save(&self) -> BlkState {
        BlkState {
            version: STATE_VERSION,
            queue: self.queue.save(),
            needs_reset: self.fault.is_some(),
        }
    }

    /// A device over `queue` that goes on where `state` was saved; what was in flight is submitted again by the next
    /// [`Self::kick`].
    ///
    /// # Errors
    /// Says what no device can have.
    pub fn restore(
        config: BlkConfig,
        queue: Queue,
        state: &BlkState,
    ) -> Result<Self, RestoreError> {
        const DEVICE: &str = "block device";
        RestoreError::unless_version(DEVICE, state.version, STATE_VERSION)?;
        let queue = DeviceQueue::restore(DEVICE, queue, config.virtio_features, &state.queue)?;
        let mut device = Self::with(config, queue);
        device.fault = state.needs_reset.then_some(DeviceFault::NeedsReset);
        Ok(device)
    }

    /// Runs `work` unless the device has faulted, and remembers a fault.
    pub(super) fn guarded<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, DeviceFault>,
    ) -> Result<T, DeviceFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let result = work(self);
        self.fault = result.as_ref().err().copied();
        result
    }

    fn submit_available<M: GuestMemory>(
        &mut self,
        mem: &M,
        backend: &mut dyn BlockBackend,
        mut limiter: Option<&mut RateLimiter>,
    ) -> Result<u32, DeviceFault> {
        let mut published = 0_u32;
        // What comes meanwhile waits for the next look: a guest cannot hold the thread for ever.
        for _ in 0..self.queue.available(mem)? {
            if limiter.as_ref().is_some_and(|limiter| !limiter.is_open()) {
                break;
            }
            let Some(chain) = self.queue.pop(mem)? else {
                break;
            };
            if let Some(limiter) = &mut limiter {
                limiter.charge(data_len(&chain));
            }
            published = published.saturating_add(self.submit(mem, backend, chain)?);
        }
        Ok(published)
    }

    /// Parses and submits one chain; returns 1 if it was completed at once.
    fn submit<M: GuestMemory>(
        &mut self,
        mem: &M,
        backend: &mut dyn BlockBackend,
        chain: Chain,
    ) -> Result<u32, DeviceFault> {
        let head = chain.head;
        let Request { action, footer } = parse(mem, &self.config, chain)?;
        let settled = |result: Result<u32, Errno>| (status_of(result), result);
        let (status, result) = match action {
            Action::Refuse(status, errno) => (status, Err(errno)),
            Action::GetId(buffers) => {
                let written = scatter(mem, &buffers, &backend.id());
                settled(written.map_err(|_| Errno::EIO))
            }
            Action::GetLength(buffers) => settled(backend.len_bytes().and_then(|len| {
                scatter(mem, &buffers, U64::new(len).as_bytes()).map_err(|_| Errno::EIO)
            })),
            Action::Io(io) => {
                let mut entry = self.entry(head, footer, io.kind);
                entry.take(backend.submit(entry.token, io));
                return self.go_on(mem, backend, head, entry);
            }
            Action::Several(kinds) => {
                let mut entry = self.entry(head, footer, IoKind::Flush);
                entry.sync = self.config.write_through;
                for kind in kinds {
                    let buffers = Vec::new();
                    entry.take(backend.submit(entry.token, IoRequest { kind, buffers }));
                }
                return self.go_on(mem, backend, head, entry);
            }
        };
        self.publish(mem, head, &footer, status, result)?;
        Ok(1)
    }

    fn entry(&mut self, head: u16, footer: Footer, kind: IoKind) -> InFlight {
        let changes = matches!(kind, IoKind::Write { .. } | IoKind::WriteZeroes { .. });
        InFlight {
            token: self.token_for(head),
            footer,
            pending: 0,
            result: Ok(0),
            sync: self.config.write_through && changes,
        }
    }

    /// Publishes a request if all of it is done; returns 1 then.
    fn go_on<M: GuestMemory>(
        &mut self,
        mem: &M,
        backend: &mut dyn BlockBackend,
        head: u16,
        mut entry: InFlight,
    ) -> Result<u32, DeviceFault> {
        if entry.pending == 0 && entry.result.is_ok() && std::mem::take(&mut entry.sync) {
            let (kind, buffers) = (IoKind::Flush, Vec::new());
            entry.take(backend.submit(entry.token, IoRequest { kind, buffers }));
        }
        if entry.pending > 0 {
            let place = self.in_flight.get_mut(usize::from(head));
            *place.ok_or(DeviceFault::UnknownToken)? = Some(entry);
            return Ok(0);
        }
        let InFlight { footer, result, .. } = entry;
        self.publish(mem, head, &footer, status_of(result), result)?;
        Ok(1)
    }

    /// A token that no other request of this device has had.
    fn token_for(&mut self, head: u16) -> Token {
        self.next_sequence = self.next_sequence.wrapping_add(1);
        self.next_sequence.wrapping_shl(16) | u64::from(head)
    }

    fn publish_finished<M: GuestMemory>(
        &mut self,
        mem: &M,
        backend: &mut dyn BlockBackend,
    ) -> Result<u32, DeviceFault> {
        let mut published = 0_u32;
        while let Some((token, completion)) = backend.poll() {
            let head = u16::try_from(token & 0xffff).map_err(|_| DeviceFault::UnknownToken)?;
            let mut entry = self
                .in_flight
                .get_mut(usize::from(head))
                .and_then(|entry| entry.take_if(|owned| owned.token == token))
                .ok_or(DeviceFault::UnknownToken)?;
            entry.pending = entry.pending.saturating_sub(1);
            entry.take(Submission::Done(completion));
            published = published.saturating_add(self.go_on(mem, backend, head, entry)?);
        }
        Ok(published)
    }

    /// Writes the footer, then gives the chain back. VirtIO 1.3 §2.7.8 "The Virtqueue Used Ring".
    fn publish<M: GuestMemory>(
        &mut self,
        mem: &M,
        head: u16,
        footer: &Footer,
        status: Status,
        result: Result<u32, Errno>,
    ) -> Result<(), DeviceFault> {
        let full = VendorFooter {
            errno: U32::new(result.err().map_or(0, |errno| errno.0)),
            reserved: [0; 3],
            status: status.raw(),
        };
        let bytes: &[u8] = if footer.vendor {
            full.as_bytes()
        } else {
            full.status.as_bytes()
        };
        scatter(mem, &footer.buffers, bytes)?;
        let written = result.unwrap_or(0).saturating_add(footer.len());
        self.queue.add_used(mem, head, written)
    }
}

/// The status that goes with a backend's result.
const fn status_of(result: Result<u32, Errno>) -> Status {
    match result {
        Ok(_) => Status::Ok,
        Err(_) => Status::IoErr,
    }
}

/// Bytes of a chain beside a standard request's header and status.
fn data_len(chain: &Chain) -> u64 {
    const REST: u64 = size_of::<RequestHeader>() as u64 + 1;
    let len = total_len(&chain.readable).saturating_add(total_len(&chain.writable));
    len.saturating_sub(REST)
}
