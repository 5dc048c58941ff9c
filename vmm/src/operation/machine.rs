//! The machine of an operation: made, started, run to its end.

mod run;
mod setup;

use self::run::Run;
use self::setup::{boot_page, heap_bytes, map, mappings};
use super::crew::{self, Beside};
use super::devices::Devices;
use super::limits::Watch;
use super::{Completed, OperationHost, OperationSpec, RunError, control, secrets};
use crate::arch::{self, Access};
use crate::hypervisor::{Hypervisor, Native, Vm};
use crate::memory::GuestSlot;
use crate::threads::Confine;
use crate::{VmError, loader};
use instar_shared::layout::{BOOT, CONFIG, HEAP_START, INITIAL_HEAP_SIZE, LIVE, SECRETS};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Heap that even a small operation uses which changes an image: some tables of 64 KiB.
const CHANGE_BYTES: u64 = 320 << 10;
/// Heap that even a small operation uses which only reads.
const READ_BYTES: u64 = 32 << 10;

type NativeVm = <Native as Hypervisor>::Vm;
type NativeVcpu = <NativeVm as Vm>::Vcpu;

/// A microVM with its image loaded and its devices ready; nothing has run yet.
pub struct Operation {
    spec: OperationSpec,
    memory: Arc<GuestSlot>,
    heap: control::Heap,
    devices: Devices,
    watch: Watch,
    vcpu: NativeVcpu,
    // Dropped after the vCPU.
    vm: Arc<NativeVm>,
    entry_gva: u64,
    beside: Option<Beside>,
    // Overwritten when the run ends, however it ends.
    _secrets: Option<secrets::Region>,
    setup: Duration,
}

impl Operation {
    /// Creates the machine on the calling thread, which must also run it.
    ///
    /// # Errors
    /// [`VmError`]: what is missing on this host.
    pub fn prepare(mut spec: OperationSpec) -> Result<Self, VmError> {
        let started = Instant::now();
        let hypervisor = Native::open()?;
        let heap_bytes = heap_bytes(spec.limits.memory_bytes);
        let memory = GuestSlot::new(HEAP_START + heap_bytes)?;
        let image = loader::load(spec.elf, &memory)?;
        let changes = spec.files.iter().any(|file| !file.read_only);
        memory.populate(HEAP_START, if changes { CHANGE_BYTES } else { READ_BYTES });
        let beside = Beside::new(spec.limits.threads);
        let vcpus = beside
            .as_ref()
            .map_or(1, |beside| 1 + beside.further_vcpus());
        let secrets = std::mem::take(&mut spec.secrets);
        let mut mappings = mappings(&image.mappings, heap_bytes, vcpus);
        if !secrets.is_empty() {
            mappings.push(map(SECRETS, Access::ReadWrite));
        }
        if spec.resident {
            mappings.push(map(LIVE, Access::ReadWrite));
        }
        arch::native::install(&memory, &mappings, vcpus)?;
        let pool = beside.as_ref().map(Beside::pool);
        let mut devices = Devices::with_threads(Arc::clone(&memory), pool);
        for (slot, file) in (0_u16..).zip(spec.files.drain(..)) {
            devices.add(slot, file)?;
        }
        memory.write(CONFIG.start, &spec.config)?;
        let heap = control::Heap {
            end: HEAP_START + heap_bytes.min(INITIAL_HEAP_SIZE),
            limit: HEAP_START + heap_bytes,
        };
        let vm = hypervisor.create_vm(Arc::clone(&memory))?;
        vm.map_memory(0, heap.end)?;
        let vcpu = vm.create_vcpu(0, &crew::entry(image.entry_gva, 0))?;
        let boot = boot_page(&vcpu, heap.end, vcpus, &secrets)?;
        memory.store(BOOT.start, &boot)?;
        let region = if secrets.is_empty() {
            None
        } else {
            Some(secrets::Region::write(&memory, &secrets)?)
        };
        let watch = Watch::start(spec.limits);
        Ok(Self {
            spec,
            memory,
            heap,
            devices,
            watch,
            vcpu,
            vm: Arc::new(vm),
            entry_gva: image.entry_gva,
            beside,
            _secrets: region,
            setup: started.elapsed(),
        })
    }

    /// The guest's memory, for an owner that wants to look at it.
    #[must_use]
    pub fn memory(&self) -> Arc<GuestSlot> {
        Arc::clone(&self.memory)
    }

    /// Starts the threads that the operation asks for, if it does. Each calls `confine` before it does
    /// anything, and this returns when all are confined. Without this call, [`Self::run`] starts them
    /// unconfined.
    ///
    /// # Errors
    /// [`VmError`]: a thread or its vCPU could not be made, or not be confined.
    pub fn start_threads(&mut self, confine: &Confine) -> Result<(), VmError> {
        let Some(beside) = &mut self.beside else {
            return Ok(());
        };
        let machine = crew::Machine {
            vm: Arc::clone(&self.vm),
            memory: Arc::clone(&self.memory),
            elf: self.spec.elf,
            entry_gva: self.entry_gva,
        };
        beside.start(&machine, confine)
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// [`RunError`]: everything but a result.
    pub fn run(mut self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        let unconfined: Confine = Arc::new(|_| Ok(()));
        self.start_threads(&unconfined)?;
        Run::new(self, host).finish()
    }
}
