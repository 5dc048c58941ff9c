//! From parts to a machine.

use super::acpi::{self, Platform};
use super::boot;
use super::control::{Control, Report};
use super::counts::Counts;
use super::devices::{self, Devices};
use super::error::MachineError;
use super::events::{Subscriber, Wired};
use super::irq::Interrupts;
use super::layout;
use super::life::Life;
use super::parts::{Line, Parts, Transport};
use super::power::{AcpiRegisters, KeyboardController, PowerButton, RESET_CODE};
use super::rtc::Rtc;
use super::run::Machine;
use super::serial;
use super::signal;
use super::smbios;
use super::transport::{Ground, Transports};
use super::vcpu::Shared;
use crate::VmError;
use crate::hypervisor::Hypervisor;
use crate::kvm::Kvm;
use crate::kvm::machine::MachineVm;
use crate::kvm::machine_vcpu::Cpus;
use crate::memory::{GuestSlot, Hole};
use instar_devices::bus::{Bus, BusDevice, RangeTaken, SharedBusDevice};
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

const HOLE: Hole = Hole {
    start: layout::HOLE_START,
    end: layout::HIGH_MEMORY_START,
};

impl Machine {
    /// Builds a machine of `parts`: opens the hypervisor, loads the kernel meanwhile, makes the devices. On return no
    /// other thread runs.
    ///
    /// # Errors
    /// [`MachineError`].
    pub fn build(parts: Parts, control: Control) -> Result<Self, MachineError> {
        if !(1..=layout::MAX_CPUS).contains(&parts.cpus) {
            return Err(MachineError::Cpus {
                cpus: parts.cpus,
                most: layout::MAX_CPUS,
            });
        }
        let scanned = control.scanned.map(|at| ("bootscan", at));
        let mut report = Report {
            phases: scanned.into_iter().collect(),
            ..Report::default()
        };
        let began = control.began;
        let mut phase = |name| report.phases.push((name, began.elapsed()));
        phase("start");
        signal::install()?;
        let life = Arc::new(Life::new()?);
        let kvm = Kvm::open()?;
        let memory = GuestSlot::with_hole(parts.memory_bytes, HOLE)?;
        memory.keep_out_of_dumps()?;
        let (vm, cpus, entry) = std::thread::scope(|scope| {
            let load = || boot::load(parts.boot, &memory);
            let loading = std::thread::Builder::new().spawn_scoped(scope, load);
            let loading = loading.map_err(not_started)?;
            let vm = Arc::new(MachineVm::new(&kvm, Arc::clone(&memory))?);
            let cpus = Cpus::new(&kvm, &vm, parts.cpus)?;
            phase("hypervisor");
            let loaded = loading.join();
            let loaded = loaded.map_err(|_| not_started(ErrorKind::BrokenPipe.into()))?;
            loaded.map(|entry| (vm, cpus, entry))
        })?;
        phase("kernel");
        let mut ground = Platforms::new(&vm, &life)?;
        let (serial, rest) = ground.serial_line(parts.serial)?;
        let button = ground.fixed_devices()?;
        let devices = Devices {
            disks: parts.disks,
            nets: parts.nets,
            console: parts.console,
            rng: parts.rng,
            vsock: parts.vsock,
        };
        let count = devices.disks.len();
        let (wired, disks) = devices::wire(devices, vm.memory(), &life)?;
        let (transports, subscribers) = ground.transports(parts.transport, wired)?;
        let groups = devices::groups(subscribers, count, serial);
        store_tables(&vm, parts.cpus, parts.transport, &transports)?;
        phase("devices");
        let shared = Shared {
            vm,
            cpus,
            entry,
            ports: ground.ports,
            registers: ground.registers,
            life,
            counts: Counts::new(began),
        };
        Ok(Self {
            shared: Arc::new(shared),
            vcpus: parts.cpus,
            control,
            groups,
            disks,
            transports,
            button,
            serial: rest,
            report,
        })
    }
}

fn not_started(source: io::Error) -> VmError {
    VmError::Start {
        what: "the loading of the kernel",
        source,
    }
}

/// A machine's devices while they come together.
struct Platforms {
    vm: Arc<MachineVm>,
    life: Arc<Life>,
    interrupts: Arc<Interrupts>,
    ports: Bus,
    registers: Bus,
}

impl Platforms {
    fn new(vm: &Arc<MachineVm>, life: &Arc<Life>) -> Result<Self, VmError> {
        Ok(Self {
            vm: Arc::clone(vm),
            life: Arc::clone(life),
            interrupts: Interrupts::new(Arc::clone(vm)),
            ports: Bus::default(),
            registers: Bus::default(),
        })
    }

    fn serial_line(&mut self, line: Line) -> Result<(Subscriber, serial::Rest), MachineError> {
        let interrupt = self.interrupts.line(layout::SERIAL_IRQ)?;
        let made = serial::make(line, interrupt, &self.life)?;
        self.ports
            .insert(layout::SERIAL_PORT.into(), 8, shared(made.port))?;
        Ok((made.subscriber, made.rest))
    }

    /// What every machine has; its power button.
    fn fixed_devices(&mut self) -> Result<Arc<PowerButton>, MachineError> {
        let button = PowerButton::new(self.interrupts.line(layout::ACPI_EVENTS_IRQ)?);
        let life = Arc::clone(&self.life);
        self.port(layout::RTC_PORT, 2, Rtc::new())?;
        let keyboard = KeyboardController {
            life: Arc::clone(&life),
        };
        self.port(layout::KEYBOARD_CONTROLLER_PORT, 5, keyboard)?;
        let acpi = AcpiRegisters {
            button: Arc::clone(&button),
            life,
        };
        let (start, len) = (layout::ACPI_EVENTS_START, layout::ACPI_EVENTS_SIZE);
        self.registers.insert(start, len, shared(acpi))?;
        Ok(button)
    }

    fn port(
        &mut self,
        first: u16,
        len: u64,
        device: impl BusDevice + 'static,
    ) -> Result<(), RangeTaken> {
        self.ports.insert(first.into(), len, shared(device))
    }

    fn transports(
        &mut self,
        transport: Transport,
        wired: Vec<Wired>,
    ) -> Result<(Transports, Vec<Subscriber>), MachineError> {
        let ground = Ground {
            vm: &self.vm,
            interrupts: &self.interrupts,
            ports: &mut self.ports,
            registers: &mut self.registers,
        };
        Transports::new(transport, wired, ground)
    }
}

fn shared(device: impl BusDevice + 'static) -> SharedBusDevice {
    Arc::new(Mutex::new(device))
}

/// Writes what the guest finds the machine's parts by.
fn store_tables(
    vm: &MachineVm,
    cpus: u8,
    transport: Transport,
    transports: &Transports,
) -> Result<(), MachineError> {
    let mmio = (0..transports.mmio_count()).filter_map(|index| {
        let start = layout::virtio_mmio_start(index)?;
        Some((start, layout::virtio_mmio_irq(index)?))
    });
    let platform = Platform {
        cpus,
        pci: transport == Transport::Pci,
        virtio_mmio: mmio.collect(),
    };
    vm.memory()
        .write(layout::ACPI_TABLES, &acpi::tables(&platform))?;
    vm.memory()
        .write(layout::SMBIOS_TABLES, &smbios::tables())?;
    vm.memory().write(layout::RESET_VECTOR, &RESET_CODE)?;
    Ok(())
}
