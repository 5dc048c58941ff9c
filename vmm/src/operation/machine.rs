//! The run of an operation: set-up, the exit loop, the end.

use super::devices::Devices;
use super::limits::Watch;
use super::records::RecordStream;
use super::report::describe;
use super::{
    Completed, CrashReport, OperationHost, OperationSpec, RESULT_BYTES, RunError, RunStats, control,
};
use crate::arch::{self, Access, Mapping};
use crate::hypervisor::{Exit, Hypervisor, Native, UserEntry, Vcpu, Vm};
use crate::memory::GuestSlot;
use crate::{VmError, loader};
use instar_shared::abi::ABI_VERSION;
use instar_shared::boot::{BOOT_MAGIC, BootPage, CANCEL_REQUESTED};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::{
    BOOT, CONFIG, CONTROL, DEVICE_TABLE, HEAP_START, INITIAL_HEAP_SIZE, LARGE_PAGE_SIZE,
    MAX_SLOT_SIZE, MIN_HEAP_SIZE, QUEUES, RECORDS, RESULT, Region, STACK,
};
use instar_shared::record::RecordKind;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// Room between the stack's top and the first frame.
const STACK_HEADROOM: u64 = 64;

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
    vm: NativeVm,
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
        arch::native::install(&memory, &mappings(&image.mappings, heap_bytes))?;
        let mut devices = Devices::new(Arc::clone(&memory));
        for (slot, file) in (0_u16..).zip(spec.files.drain(..)) {
            devices.add(slot, file)?;
        }
        memory.write(CONFIG.start, &spec.config)?;
        let heap = control::Heap {
            end: HEAP_START + heap_bytes.min(INITIAL_HEAP_SIZE),
            limit: HEAP_START + heap_bytes,
        };
        let mut vm = hypervisor.create_vm(Arc::clone(&memory))?;
        vm.map_memory(0, heap.end)?;
        let entry = UserEntry {
            entry_gva: image.entry_gva,
            stack_gva: STACK.end() - STACK_HEADROOM,
        };
        let vcpu = vm.create_vcpu(0, &entry)?;
        memory.store(BOOT.start, &boot_page(&vcpu, heap.end))?;
        let watch = Watch::start(spec.limits);
        Ok(Self {
            spec,
            memory,
            heap,
            devices,
            watch,
            vcpu,
            vm,
            setup: started.elapsed(),
        })
    }

    /// The guest's memory, for an owner that wants to look at it.
    #[must_use]
    pub fn memory(&self) -> Arc<GuestSlot> {
        Arc::clone(&self.memory)
    }

    /// Runs the guest to its end.
    ///
    /// # Errors
    /// [`RunError`]: everything but a result.
    pub fn run(self, host: &mut dyn OperationHost) -> Result<Completed, RunError> {
        let stats = RunStats {
            setup: self.setup,
            ..RunStats::default()
        };
        let mut run = Run {
            watch: self.watch.clone(),
            records: RecordStream::default(),
            panic_message: None,
            cancel_sent: false,
            stats,
            operation: self,
            host,
        };
        run.until_exit()?;
        let result = run
            .operation
            .memory
            .load::<[u8; RESULT_BYTES]>(RESULT.start)?;
        Ok(Completed {
            result,
            stats: run.stats,
        })
    }
}

/// The state of the exit loop.
struct Run<'a> {
    operation: Operation,
    host: &'a mut dyn OperationHost,
    watch: Watch,
    records: RecordStream,
    panic_message: Option<String>,
    cancel_sent: bool,
    stats: RunStats,
}

impl Run<'_> {
    fn until_exit(&mut self) -> Result<(), RunError> {
        let entered = Instant::now();
        loop {
            let exit = self.operation.vcpu.run()?;
            if self.stats.exits == 0 {
                self.stats.setup += entered.elapsed();
            }
            self.stats.exits += 1;
            match exit {
                Exit::Kick(value) => {
                    if self.kick(value)? {
                        return Ok(());
                    }
                }
                Exit::Wait(_) => self.wait()?,
                Exit::Trap(vector) => return Err(self.crash(vector)),
                Exit::Stopped(reason) => {
                    return Err(RunError::Stopped {
                        reason,
                        position: self.position(),
                    });
                }
                Exit::Interrupted => self.look_at_limits()?,
            }
        }
    }

    /// Serves a kick; true if the guest is done.
    fn kick(&mut self, value: u32) -> Result<bool, RunError> {
        let unknown = || {
            RunError::Protocol(format!(
                "it rang the doorbell with {value:#x}, which names nothing"
            ))
        };
        match Kick::decode(value).ok_or_else(unknown)? {
            Kick::Queue { slot, queue: 0 } => {
                let completed = self
                    .operation
                    .devices
                    .kick(slot)
                    .map_err(RunError::Protocol)?;
                self.note_completed(completed);
            }
            Kick::Queue { .. } => return Err(unknown()),
            Kick::Control(Control::Drain) => self.drain()?,
            Kick::Control(Control::OpenFile) => {
                control::open_file(
                    &self.operation.memory,
                    &mut self.operation.devices,
                    self.host,
                )?;
            }
            Kick::Control(Control::GrantMemory) => {
                self.grant_memory()?;
            }
            Kick::Control(Control::Exit) => {
                self.drain()?;
                return Ok(true);
            }
            Kick::Control(Control::Panic) => {
                // A guest that panics may have left the window half written.
                let _ = self.drain();
                let message = self.panic_message.take();
                return Err(RunError::Panicked(
                    message.unwrap_or_else(|| "without a message".into()),
                ));
            }
        }
        Ok(false)
    }

    /// Maps the memory that the guest may have of what it asks for.
    fn grant_memory(&mut self) -> Result<(), VmError> {
        let operation = &mut self.operation;
        let wanted = control::memory_wanted(&operation.memory)?;
        let grant = operation.heap.grant(wanted);
        if grant.heap_end > operation.heap.end {
            operation
                .vm
                .map_memory(operation.heap.end, grant.heap_end - operation.heap.end)?;
            operation.heap.end = grant.heap_end;
        }
        self.stats.granted_bytes = grant.bytes;
        control::answer_memory(&operation.memory, wanted, grant)
    }

    fn drain(&mut self) -> Result<(), RunError> {
        let filled = control::take_record_bytes(&self.operation.memory)?;
        let len = RecordStream::window_bytes(filled).map_err(RunError::Protocol)?;
        let mut window = vec![0; len];
        self.operation.memory.read(RECORDS.start, &mut window)?;
        let (host, watch, panic_message) =
            (&mut *self.host, &mut self.watch, &mut self.panic_message);
        let take = |kind, payload: &[u8]| match kind {
            RecordKind::Panic => {
                *panic_message = Some(String::from_utf8_lossy(payload).into_owned());
                Ok(())
            }
            RecordKind::Progress => {
                watch.progressed();
                host.record(kind, payload)
            }
            _ => host.record(kind, payload),
        };
        self.records
            .split(&window, take)
            .map_err(RunError::Protocol)
    }

    /// Blocks until a request is completed.
    fn wait(&mut self) -> Result<(), RunError> {
        loop {
            self.look_at_limits()?;
            let completed = self.operation.devices.complete_next();
            match completed.map_err(RunError::Protocol)? {
                None => {
                    let reason = "it waits, but nothing is in flight";
                    return Err(RunError::Protocol(reason.into()));
                }
                Some(0) => {}
                Some(completed) => {
                    self.note_completed(completed);
                    return Ok(());
                }
            }
        }
    }

    const fn note_completed(&mut self, completed: u32) {
        if completed > 0 {
            self.watch.progressed();
        }
    }

    /// Passes cancellation on and enforces the limits.
    fn look_at_limits(&mut self) -> Result<(), RunError> {
        if !self.cancel_sent && self.operation.spec.cancel.load(Ordering::Relaxed) {
            self.cancel_sent = true;
            let word = BOOT.start + offset_of!(BootPage, cancel) as u64;
            self.operation
                .memory
                .write(word, &CANCEL_REQUESTED.to_le_bytes())?;
        }
        let operation = &self.operation;
        self.watch.check(|| position(operation))
    }

    fn crash(&self, vector: u8) -> RunError {
        match self
            .operation
            .vcpu
            .trap_frame(&self.operation.memory, vector)
        {
            Ok(frame) => RunError::Crashed(CrashReport::new(frame, self.operation.spec.elf)),
            Err(e) => RunError::Vm(e),
        }
    }

    fn position(&self) -> String {
        position(&self.operation)
    }
}

fn position(operation: &Operation) -> String {
    match operation.vcpu.position() {
        Ok((instruction, _)) => describe(operation.spec.elf, instruction),
        Err(_) => "an unknown place".into(),
    }
}

/// The heap for a memory cap: whole large pages, within what the page tables can map.
fn heap_bytes(cap: u64) -> u64 {
    let most = MAX_SLOT_SIZE - HEAP_START;
    let cap = cap.clamp(MIN_HEAP_SIZE, most);
    cap - cap % LARGE_PAGE_SIZE
}

/// Everything ring 3 may reach.
fn mappings(image: &[Mapping], heap_bytes: u64) -> Vec<Mapping> {
    let map = |region: Region, access| Mapping {
        start: region.start,
        size: region.size,
        access,
    };
    let read = [BOOT, CONFIG, DEVICE_TABLE].map(|region| map(region, Access::Read));
    let heap = Region {
        start: HEAP_START,
        size: heap_bytes,
    };
    let write = [RESULT, CONTROL, RECORDS, STACK, QUEUES, heap]
        .map(|region| map(region, Access::ReadWrite));
    image.iter().copied().chain(read).chain(write).collect()
}

fn boot_page(vcpu: &NativeVcpu, heap_end: u64) -> BootPage {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut entropy = [0; 64];
    random(&mut entropy);
    BootPage {
        magic: BOOT_MAGIC.into(),
        abi_version: ABI_VERSION.into(),
        heap_start: HEAP_START.into(),
        heap_end: heap_end.into(),
        cpu_features: vcpu.cpu_features().into(),
        tsc_hz: vcpu.counter_hz().into(),
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).into(),
        entropy,
        ..BootPage::zeroed()
    }
}

/// Fills `bytes` from the kernel; what it does not give stays zero.
#[cfg(target_os = "linux")]
fn random(bytes: &mut [u8]) {
    let _ = rustix::rand::getrandom(bytes, rustix::rand::GetRandomFlags::empty());
}

/// Fills `bytes` from the kernel; what it does not give stays zero.
#[cfg(not(target_os = "linux"))]
fn random(bytes: &mut [u8]) {
    // SAFETY: the buffer is valid for its length; getentropy writes at most 256 bytes.
    let _ = unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) };
}
