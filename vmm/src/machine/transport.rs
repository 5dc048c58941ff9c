//! Virtio devices on their transports: where their registers are, what interrupts, and which writes of the guest signal
//! a queue's event without an exit.

use super::error::MachineError;
use super::events::{QueueEvents, Subscriber, Wired};
use super::irq::Interrupts;
use super::layout;
use super::parts::Transport;
use crate::kvm::machine::MachineVm;
use instar_devices::bus::{Bus, SharedBusDevice};
use instar_devices::pci::{BarListener, ConfigPorts, Ecam, PciBus, PciBusState, SLOTS, Window};
use instar_devices::virtio::{
    MMIO_NOTIFY_OFFSET, Notify, PCI_REGISTERS_BAR, RestoreError, VirtioMmio, VirtioMmioState,
    VirtioPci,
};
use std::sync::{Arc, Mutex, PoisonError};

/// The transports of a machine, with all of its virtio devices.
#[derive(Debug)]
pub struct Transports {
    bus: Transported,
    queues: Vec<Arc<QueueEvents>>,
}

#[derive(Debug)]
enum Transported {
    Pci(Arc<PciBus>),
    Mmio(Vec<Arc<Mutex<VirtioMmio>>>),
}

/// The saved devices of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedTransports {
    /// On a PCI bus.
    Pci(PciBusState),
    /// virtio-mmio, in order.
    Mmio(Vec<VirtioMmioState>),
}

/// What devices stand on.
#[derive(Debug)]
pub struct Ground<'a> {
    /// The machine.
    pub vm: &'a Arc<MachineVm>,
    /// Its interrupts.
    pub interrupts: &'a Arc<Interrupts>,
    /// Its ports.
    pub ports: &'a mut Bus,
    /// Its memory-mapped registers.
    pub registers: &'a mut Bus,
}

impl Transports {
    /// Puts `wired` onto the transport, in order; also what serves each of them.
    ///
    /// # Errors
    /// [`MachineError`]: too many, or KVM refuses.
    pub fn new(
        transport: Transport,
        wired: Vec<Wired>,
        ground: Ground<'_>,
    ) -> Result<(Self, Vec<Subscriber>), MachineError> {
        let queues = wired
            .iter()
            .map(|wired| Arc::clone(&wired.queues))
            .collect();
        let (bus, subscribers) = match transport {
            Transport::Pci => on_pci(wired, ground)?,
            Transport::Mmio => on_mmio(wired, ground)?,
        };
        Ok((Self { bus, queues }, subscribers))
    }

    /// How many virtio-mmio devices there are.
    pub const fn mmio_count(&self) -> usize {
        match &self.bus {
            Transported::Pci(_) => 0,
            Transported::Mmio(devices) => devices.len(),
        }
    }

    /// All devices as plain data. vCPUs and devices' threads are paused.
    pub fn save(&self) -> SavedTransports {
        match &self.bus {
            Transported::Pci(bus) => SavedTransports::Pci(bus.save()),
            Transported::Mmio(devices) => {
                let devices = devices.iter().map(|device| lock(device).save());
                SavedTransports::Mmio(devices.collect())
            }
        }
    }

    /// All devices as just made.
    pub fn reset(&self) {
        match &self.bus {
            Transported::Pci(bus) => bus.reset(),
            Transported::Mmio(devices) => devices.iter().for_each(|device| lock(device).reset()),
        }
    }

    /// Takes saved devices over, after [`Self::reset`].
    ///
    /// # Errors
    /// Says what no such devices can have.
    pub fn restore(&self, saved: &SavedTransports) -> Result<(), RestoreError> {
        match (&self.bus, saved) {
            (Transported::Pci(bus), SavedTransports::Pci(state)) => bus.restore(state),
            (Transported::Mmio(devices), SavedTransports::Mmio(states))
                if devices.len() == states.len() =>
            {
                let mut pairs = devices.iter().zip(states);
                pairs.try_for_each(|(device, state)| lock(device).restore(state))
            }
            _ => Err(RestoreError::Kind),
        }
    }

    /// Has all devices look at all their queues.
    pub fn wake(&self) {
        self.queues.iter().for_each(|queues| queues.wake());
    }
}

fn lock(device: &Mutex<VirtioMmio>) -> std::sync::MutexGuard<'_, VirtioMmio> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

fn shared<T: instar_devices::bus::BusDevice + 'static>(device: T) -> SharedBusDevice {
    Arc::new(Mutex::new(device))
}

fn on_pci(
    wired: Vec<Wired>,
    ground: Ground<'_>,
) -> Result<(Transported, Vec<Subscriber>), MachineError> {
    let full = || MachineError::TooManyDevices {
        transport: "pci",
        most: usize::from(SLOTS.saturating_sub(1)),
        hint: "",
    };
    let mut bus = PciBus::new(layout::PCI_WINDOW_START, layout::PCI_WINDOW_SIZE);
    let mut subscribers = Vec::new();
    for wired in wired {
        let queues = u16::try_from(wired.queues.events().len()).unwrap_or(u16::MAX);
        // One for each queue, and one for the configuration.
        let vectors = ground.interrupts.vectors(queues.saturating_add(1))?;
        let memory = ground.vm.memory().dma().clone();
        let notify = Arc::clone(&wired.queues) as Arc<dyn Notify>;
        let function = VirtioPci::new(wired.device, memory, vectors, notify);
        let listener = Notifications {
            vm: Arc::clone(ground.vm),
            queues: wired.queues,
            start: Mutex::new(None),
        };
        bus.insert(Arc::new(Mutex::new(function)), Some(Arc::new(listener)))
            .map_err(|_| full())?;
        subscribers.push(wired.subscriber);
    }
    let bus = Arc::new(bus);
    let config = shared(ConfigPorts(Arc::clone(&bus)));
    ground
        .ports
        .insert(layout::PCI_CONFIG_PORT.into(), 8, config)?;
    let ecam = shared(Ecam(Arc::clone(&bus)));
    ground
        .registers
        .insert(layout::ECAM_START, layout::ECAM_SIZE, ecam)?;
    let (start, len) = (layout::PCI_WINDOW_START, layout::PCI_WINDOW_SIZE);
    ground
        .registers
        .insert(start, len, shared(Window(Arc::clone(&bus))))?;
    Ok((Transported::Pci(bus), subscribers))
}

/// The notification registers of a function: wherever the guest puts them, writes signal the queues' events.
#[derive(Debug)]
struct Notifications {
    vm: Arc<MachineVm>,
    queues: Arc<QueueEvents>,
    /// Where they are now.
    start: Mutex<Option<u64>>,
}

impl BarListener for Notifications {
    fn bar_placed(&self, bar: u8, start: Option<u64>) {
        if bar != PCI_REGISTERS_BAR {
            return;
        }
        let mut known = self.start.lock().unwrap_or_else(PoisonError::into_inner);
        let old = std::mem::replace(&mut *known, start);
        // What KVM refuses, such as a place that another function has, exits and is told by the transport.
        for (index, event) in (0..).zip(self.queues.events()) {
            let offset = VirtioPci::notify_offset(index);
            if let Some(at) = old.and_then(|old| old.checked_add(offset)) {
                let _ = self.vm.unregister_ioevent(event, at, None);
            }
            if let Some(at) = start.and_then(|start| start.checked_add(offset)) {
                let _ = self.vm.register_ioevent(event, at, None);
            }
        }
    }
}

fn on_mmio(
    wired: Vec<Wired>,
    ground: Ground<'_>,
) -> Result<(Transported, Vec<Subscriber>), MachineError> {
    let full = || MachineError::TooManyDevices {
        transport: "mmio",
        most: layout::MAX_VIRTIO_MMIO,
        hint: ", or use --transport pci",
    };
    let (mut devices, mut subscribers) = (Vec::new(), Vec::new());
    for (index, wired) in wired.into_iter().enumerate() {
        let irq = layout::virtio_mmio_irq(index).ok_or_else(full)?;
        let start = layout::virtio_mmio_start(index).ok_or_else(full)?;
        let line = Arc::new(ground.interrupts.line(irq)?);
        let memory = ground.vm.memory().dma().clone();
        for (queue, event) in (0..).zip(wired.queues.events()) {
            let at = start.saturating_add(MMIO_NOTIFY_OFFSET);
            ground.vm.register_ioevent(event, at, Some(queue))?;
        }
        let notify = Arc::clone(&wired.queues) as Arc<dyn Notify>;
        let device = VirtioMmio::new(wired.device, memory, line, notify);
        let device = Arc::new(Mutex::new(device));
        let registers = Arc::clone(&device) as SharedBusDevice;
        ground
            .registers
            .insert(start, layout::VIRTIO_MMIO_SIZE, registers)?;
        devices.push(device);
        subscribers.push(wired.subscriber);
    }
    Ok((Transported::Mmio(devices), subscribers))
}
