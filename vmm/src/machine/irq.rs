//! Interrupts, from devices to local APICs: each is an event that KVM turns into an interrupt (irqfd).

use super::events::event;
use super::layout;
use crate::VmError;
use crate::kvm::machine::{MachineVm, MsiRoute};
use instar_devices::msi::{IrqLine, MsiMessage, MsiVectors};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// The interrupts of a machine.
#[derive(Debug)]
pub struct Interrupts {
    vm: Arc<MachineVm>,
    routes: Mutex<Routes>,
}

/// What messages interrupts are, as KVM has it.
#[derive(Debug, Default)]
struct Routes {
    /// Interrupts given out, from [`layout::IO_APIC_PINS`] on.
    used: u32,
    /// By interrupt, from that on.
    messages: Vec<Option<MsiMessage>>,
}

impl Interrupts {
    /// None given out yet.
    pub fn new(vm: Arc<MachineVm>) -> Arc<Self> {
        Arc::new(Self {
            vm,
            routes: Mutex::default(),
        })
    }

    /// A wire to `pin` of the I/O APIC, below [`layout::IO_APIC_PINS`].
    ///
    /// # Errors
    /// [`VmError`].
    pub fn line(&self, pin: u32) -> Result<Line, VmError> {
        let event = event("an interrupt")?;
        self.vm.register_irqfd(&event, pin)?;
        Ok(Line { event })
    }

    /// The messages of a function with `count` vectors, all masked.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn vectors(self: &Arc<Self>, count: u16) -> Result<Arc<Vectors>, VmError> {
        let first = {
            let mut routes = self.lock();
            let first = routes.used;
            routes.used = first.saturating_add(u32::from(count));
            let used = usize::try_from(routes.used).unwrap_or(usize::MAX);
            routes.messages.resize(used, None);
            first
        };
        let vector = |index: u16| {
            let event = event("an interrupt")?;
            let route = first.saturating_add(u32::from(index));
            let gsi = route.saturating_add(layout::IO_APIC_PINS);
            self.vm.register_irqfd(&event, gsi)?;
            Ok(Vector {
                event,
                open: AtomicBool::new(false),
                route: usize::try_from(route).unwrap_or(usize::MAX),
            })
        };
        let vectors: Result<Vec<_>, VmError> = (0..count).map(vector).collect();
        Ok(Arc::new(Vectors {
            interrupts: Arc::clone(self),
            vectors: vectors?,
        }))
    }

    /// Has interrupt `route` be `message`.
    fn route(&self, route: usize, message: MsiMessage) -> Result<(), VmError> {
        let mut routes = self.lock();
        let Some(slot) = routes.messages.get_mut(route) else {
            return Ok(());
        };
        if *slot == Some(message) {
            return Ok(());
        }
        *slot = Some(message);
        let table: Vec<_> = (layout::IO_APIC_PINS..)
            .zip(&routes.messages)
            .filter_map(|(gsi, message)| {
                message.map(|message| MsiRoute {
                    gsi,
                    address: message.address,
                    data: message.data,
                })
            })
            .collect();
        self.vm.set_routes(&table)
    }

    fn lock(&self) -> MutexGuard<'_, Routes> {
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A wire to the I/O APIC.
#[derive(Debug)]
pub struct Line {
    event: EventFd,
}

impl Line {
    /// A wire to nowhere.
    #[cfg(test)]
    pub const fn unconnected(event: EventFd) -> Self {
        Self { event }
    }
}

impl IrqLine for Line {
    fn pulse(&self) {
        let _ = self.event.write(1);
    }
}

/// The messages of a function.
#[derive(Debug)]
pub struct Vectors {
    interrupts: Arc<Interrupts>,
    vectors: Vec<Vector>,
}

#[derive(Debug)]
struct Vector {
    event: EventFd,
    /// Not masked.
    open: AtomicBool,
    /// Index among the machine's messages.
    route: usize,
}

impl MsiVectors for Vectors {
    fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    fn set(&self, vector: u16, message: Option<MsiMessage>) {
        let Some(vector) = self.vectors.get(usize::from(vector)) else {
            return;
        };
        // A message that KVM refuses reaches nobody, as it would on a bus.
        let open = message.is_some_and(|message| {
            let routed = self.interrupts.route(vector.route, message);
            routed.is_ok()
        });
        vector.open.store(open, Ordering::Release);
    }

    fn send(&self, vector: u16) {
        let vector = self.vectors.get(usize::from(vector));
        if let Some(vector) = vector.filter(|vector| vector.open.load(Ordering::Acquire)) {
            let _ = vector.event.write(1);
        }
    }
}
