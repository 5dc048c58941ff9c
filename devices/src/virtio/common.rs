//! What both transports share: the state machine of a driver and a device. VirtIO 1.3 §2.1, §2.2, §3.1.
//!
//! ```text
//! reset -> ACKNOWLEDGE -> DRIVER -> FEATURES_OK -> DRIVER_OK (the device has the queues)
//!   ^------------------------ 0 is written -----------------+
//! ```
//!
//! A transport turns register accesses into calls here. What comes at the wrong time is ignored. Left out, and not offered:
//! `VIRTIO_F_RING_RESET`, `VIRTIO_F_NOTIFICATION_DATA`, packed queues, administration queues.

use super::{Activation, CommonState, Interrupt, Memory, Notify, QueueRegisters, SharedDevice};
use super::{RestoreError, VirtioDevice};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
    VIRTIO_F_VERSION_1,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddress;

/// Version of [`CommonState`]; a change of meaning raises it.
pub const STATE_VERSION: u32 = 1;
/// The steps of a driver in the order in which it must take them. VirtIO 1.3 §3.1.1.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];

/// What a device's threads change of the registers; an [`Interrupt`] writes it, the registers show it.
#[derive(Debug, Default)]
pub(super) struct DeviceSide {
    /// `DEVICE_NEEDS_RESET`. VirtIO 1.3 §2.1.2.
    needs_reset: AtomicBool,
    /// Counts changes of the configuration. VirtIO 1.3 §2.5.1.
    generation: AtomicU32,
}

impl DeviceSide {
    /// The driver has broken the rules.
    pub fn set_needs_reset(&self) {
        self.needs_reset.store(true, Ordering::SeqCst);
    }

    /// The configuration has changed.
    pub fn count_change(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }
}

/// A part of a queue. VirtIO 1.3 §2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// Descriptor area.
    Descriptors,
    /// Driver area.
    Available,
    /// Device area.
    Used,
}

/// A half of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// Bits 0 to 31.
    Low,
    /// Bits 32 to 63.
    High,
}

/// What a transport has of its device.
#[derive(Debug)]
pub(super) struct Common {
    device: SharedDevice,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    notify: Arc<dyn Notify>,
    side: Arc<DeviceSide>,
    device_type: u32,
    offered: u64,
    /// By queue: largest size.
    max_sizes: Vec<u16>,
    status: u32,
    /// The device has the queues.
    active: bool,
    /// Which 32 bits of the offered features are shown.
    pub device_features_select: u32,
    /// Which 32 bits of the accepted features are written.
    pub driver_features_select: u32,
    driver_features: u64,
    /// The driver has accepted bits past 63, which nobody has offered.
    unknown_features: bool,
    /// Which queue the queue registers are of.
    pub queue_select: u16,
    queues: Vec<QueueRegisters>,
}

impl Common {
    /// The registers of `device` after a reset.
    pub fn new(
        device: SharedDevice,
        memory: Memory,
        notify: Arc<dyn Notify>,
        interrupt: Arc<dyn Interrupt>,
        side: Arc<DeviceSide>,
    ) -> Self {
        let (device_type, features, max_sizes) = {
            let held = lock(&device);
            (
                held.device_type(),
                held.features(),
                held.queue_sizes().to_vec(),
            )
        };
        Self {
            device,
            memory,
            interrupt,
            notify,
            side,
            device_type,
            offered: features | bit(VIRTIO_F_VERSION_1),
            queues: fresh_queues(&max_sizes),
            max_sizes,
            status: 0,
            active: false,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            unknown_features: false,
            queue_select: 0,
        }
    }

    /// `VIRTIO_ID_*` of the device.
    pub const fn device_type(&self) -> u32 {
        self.device_type
    }

    /// Number of queues.
    pub fn queue_count(&self) -> u16 {
        u16::try_from(self.queues.len()).unwrap_or(u16::MAX)
    }

    /// Device status. VirtIO 1.3 §2.1.
    pub fn status(&self) -> u32 {
        if self.side.needs_reset.load(Ordering::SeqCst) {
            self.status | VIRTIO_CONFIG_S_NEEDS_RESET
        } else {
            self.status
        }
    }

    /// The configuration's generation.
    pub fn generation(&self) -> u32 {
        self.side.generation.load(Ordering::SeqCst)
    }

    /// The driver writes device status: 0 resets; otherwise the steps that follow on those taken are taken. Bits are never
    /// cleared. VirtIO 1.3 §2.1.1.
    pub fn set_status(&mut self, value: u32) {
        if value == 0 {
            self.reset();
            return;
        }
        self.status |= value & VIRTIO_CONFIG_S_FAILED;
        for step in STEPS {
            if self.status & step != 0 {
                continue;
            }
            let refused = step == VIRTIO_CONFIG_S_FEATURES_OK && !self.features_are_ok();
            if value & step == 0 || refused {
                return;
            }
            self.status |= step;
            if step == VIRTIO_CONFIG_S_DRIVER_OK {
                self.activate();
            }
        }
    }

    /// As just made, but for the generation; on return nothing of the device touches guest memory.
    pub fn reset(&mut self) {
        let mut device = lock(&self.device);
        device.reset();
        // With the device's lock: what it had to say of the driver's rules is of before.
        self.side.needs_reset.store(false, Ordering::SeqCst);
        drop(device);
        self.active = false;
        self.status = 0;
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.driver_features = 0;
        self.unknown_features = false;
        self.queue_select = 0;
        self.queues = fresh_queues(&self.max_sizes);
    }

    /// The bus takes from the device what it needs to go on: it lets go of the queues, and the driver must reset it.
    pub fn stop(&mut self) {
        if self.active {
            lock(&self.device).reset();
            self.active = false;
            self.interrupt.needs_reset();
        }
    }

    /// 32 bits of the features offered.
    pub fn device_features(&self) -> u32 {
        let word = match self.device_features_select {
            0 => self.offered & u64::from(u32::MAX),
            1 => self.offered >> 32,
            _ => 0,
        };
        u32::try_from(word).unwrap_or(0)
    }

    /// 32 bits of the features accepted.
    pub fn driver_features(&self) -> u32 {
        let word = match self.driver_features_select {
            0 => self.driver_features & u64::from(u32::MAX),
            1 => self.driver_features >> 32,
            _ => 0,
        };
        u32::try_from(word).unwrap_or(0)
    }

    /// The driver accepts features, until it has said that these are all. VirtIO 1.3 §3.1.1.
    pub fn set_driver_features(&mut self, value: u32) {
        if self.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 {
            return;
        }
        match self.driver_features_select {
            0 => replace_half(&mut self.driver_features, Half::Low, value),
            1 => replace_half(&mut self.driver_features, Half::High, value),
            _ => self.unknown_features |= value != 0,
        }
    }

    /// VirtIO 1.3 §2.2.2, §6.2: the device refuses features that it has not offered, and drivers of before 1.0.
    fn features_are_ok(&self) -> bool {
        !self.unknown_features
            && self.driver_features & !self.offered == 0
            && self.driver_features & bit(VIRTIO_F_VERSION_1) != 0
    }

    /// The selected queue, if it exists.
    pub fn queue(&self) -> Option<&QueueRegisters> {
        self.queues.get(usize::from(self.queue_select))
    }

    /// Largest size of the selected queue; 0 if it does not exist.
    pub fn max_queue_size(&self) -> u16 {
        let max = self.max_sizes.get(usize::from(self.queue_select));
        max.copied().unwrap_or(0)
    }

    /// The driver makes the selected queue smaller; sizes that no queue can have are ignored.
    pub fn set_queue_size(&mut self, size: u16) {
        let max = self.max_queue_size();
        if let Some(queue) = self.queue_to_set()
            && size.is_power_of_two()
            && size <= max
        {
            queue.size = size;
        }
    }

    /// The driver places a part of the selected queue.
    pub fn set_ring(&mut self, ring: Ring, half: Half, value: u32) {
        if let Some(queue) = self.queue_to_set() {
            let address = match ring {
                Ring::Descriptors => &mut queue.desc_table_gpa,
                Ring::Available => &mut queue.avail_ring_gpa,
                Ring::Used => &mut queue.used_ring_gpa,
            };
            replace_half(address, half, value);
        }
    }

    /// The driver has placed the selected queue.
    pub fn enable_queue(&mut self) {
        if let Some(queue) = self.queue_to_set() {
            queue.enabled = true;
        }
    }

    /// The driver takes the selected queue back, which it may before the device has it.
    pub fn disable_queue(&mut self) {
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK == 0
            && let Some(queue) = self.queues.get_mut(usize::from(self.queue_select))
        {
            queue.enabled = false;
        }
    }

    /// The selected queue while it may be changed: before it is enabled. VirtIO 1.3 §4.1.4.3.2.
    fn queue_to_set(&mut self) -> Option<&mut QueueRegisters> {
        if self.status & VIRTIO_CONFIG_S_DRIVER_OK != 0 {
            return None;
        }
        let queue = self.queues.get_mut(usize::from(self.queue_select))?;
        (!queue.enabled).then_some(queue)
    }

    /// The driver notifies a queue, and no ioeventfd has carried it.
    pub fn notify(&self, index: u32) {
        if let Ok(index) = u16::try_from(index)
            && self.active
            && index < self.queue_count()
        {
            self.notify.notify(index);
        }
    }

    /// The driver reads the device's configuration.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Ok(offset) = u32::try_from(offset) {
            lock(&self.device).read_config(offset, data);
        }
    }

    /// The driver writes the device's configuration.
    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let Ok(offset) = u32::try_from(offset) {
            lock(&self.device).write_config(offset, data);
        }
    }

    /// Hands the queues over. VirtIO 1.3 §3.1.1.
    fn activate(&mut self) {
        match self.activation() {
            Some(activation) => {
                self.active = true;
                lock(&self.device).activate(activation);
            }
            None => self.interrupt.needs_reset(),
        }
    }

    /// What the device gets; none if a queue is where none can be.
    fn activation(&self) -> Option<Activation> {
        let event_idx = self.driver_features & bit(VIRTIO_RING_F_EVENT_IDX) != 0;
        let queues = self.queues.iter().zip(&self.max_sizes);
        let queues = queues.map(|(registers, max)| match registers.enabled {
            true => queue(registers, *max, event_idx).map(Some),
            false => Some(None),
        });
        Some(Activation {
            features: self.driver_features,
            memory: self.memory.clone(),
            queues: queues.collect::<Option<_>>()?,
            interrupt: Arc::clone(&self.interrupt),
        })
    }

    /// Registers and device as plain data.
    pub fn save(&self) -> CommonState {
        let device = lock(&self.device);
        CommonState {
            version: STATE_VERSION,
            status: self.status,
            needs_reset: self.side.needs_reset.load(Ordering::SeqCst),
            generation: self.generation(),
            active: self.active,
            device_features_select: self.device_features_select,
            driver_features_select: self.driver_features_select,
            driver_features: self.driver_features,
            unknown_features: self.unknown_features,
            queue_select: self.queue_select,
            queues: self.queues.clone(),
            device: device.save(),
        }
    }

    /// Takes `state` over, as after a reset; `kind` is the transport, for the error.
    pub fn restore(&mut self, state: &CommonState, kind: &'static str) -> Result<(), RestoreError> {
        let impossible = |what| RestoreError::Impossible { device: kind, what };
        RestoreError::unless_version(kind, state.version, STATE_VERSION)?;
        let possible = |(queue, max): (&QueueRegisters, &u16)| {
            queue.size.is_power_of_two() && queue.size <= *max
        };
        let same_count = state.queues.len() == self.max_sizes.len();
        if !same_count || !state.queues.iter().zip(&self.max_sizes).all(possible) {
            return Err(impossible("queues"));
        }
        self.driver_features = state.driver_features;
        self.unknown_features = state.unknown_features;
        if !status_can_be(state.status)
            || state.status & VIRTIO_CONFIG_S_FEATURES_OK != 0 && !self.features_are_ok()
            || state.active && state.status & VIRTIO_CONFIG_S_DRIVER_OK == 0
        {
            return Err(impossible("a status"));
        }
        self.device_features_select = state.device_features_select;
        self.driver_features_select = state.driver_features_select;
        self.queue_select = state.queue_select;
        self.queues.clone_from(&state.queues);
        let activation = match state.active {
            true => Some(
                self.activation()
                    .ok_or(impossible("the addresses of a queue"))?,
            ),
            false => None,
        };
        let mut device = lock(&self.device);
        device.restore(&state.device, activation)?;
        self.side
            .needs_reset
            .store(state.needs_reset, Ordering::SeqCst);
        self.side
            .generation
            .store(state.generation, Ordering::SeqCst);
        drop(device);
        self.status = state.status;
        self.active = state.active;
        Ok(())
    }
}

/// A queue of the size and at the place that the driver has set; none if it is not aligned. VirtIO 1.3 §2.7.
fn queue(registers: &QueueRegisters, max: u16, event_idx: bool) -> Option<Queue> {
    let mut queue = Queue::new(max).ok()?;
    queue.try_set_size(registers.size).ok()?;
    let [desc, avail, used] = [
        registers.desc_table_gpa,
        registers.avail_ring_gpa,
        registers.used_ring_gpa,
    ]
    .map(GuestAddress);
    queue.try_set_desc_table_address(desc).ok()?;
    queue.try_set_avail_ring_address(avail).ok()?;
    queue.try_set_used_ring_address(used).ok()?;
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    Some(queue)
}

/// Whether `status` is some of [`STEPS`] from the first on, and perhaps `FAILED`.
fn status_can_be(status: u32) -> bool {
    let steps = status & !VIRTIO_CONFIG_S_FAILED;
    let taken: u32 = STEPS
        .iter()
        .take_while(|step| steps & **step != 0)
        .fold(0, |taken, step| taken | step);
    steps == taken
}

/// The queues after a reset.
fn fresh_queues(max_sizes: &[u16]) -> Vec<QueueRegisters> {
    let fresh = |size: &u16| QueueRegisters {
        size: *size,
        ..QueueRegisters::default()
    };
    max_sizes.iter().map(fresh).collect()
}

/// Replaces 32 bits of `number`.
fn replace_half(number: &mut u64, half: Half, value: u32) {
    let (low, high) = (*number & u64::from(u32::MAX), *number >> 32);
    let value = u64::from(value);
    *number = match half {
        Half::Low => value | high << 32,
        Half::High => low | value << 32,
    };
}

/// Feature bit `number`, below 64.
fn bit(number: u32) -> u64 {
    1_u64.wrapping_shl(number)
}

/// Its lock, whoever has panicked with it.
pub(super) fn lock(device: &SharedDevice) -> MutexGuard<'_, dyn VirtioDevice + 'static> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}
