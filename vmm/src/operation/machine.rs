//! The run of an operation: set-up, the exit loop, the end.

use super::crew::{self, Beside};
use super::devices::Devices;
use super::limits::Watch;
use super::records::RecordStream;
use super::report::describe;
use super::resident;
use super::secrets;
use super::{
    Completed, CrashReport, OperationHost, OperationSpec, RESULT_BYTES, RunError, RunStats, control,
};
use crate::arch::{self, Access, Mapping};
use crate::bell::Bell;
use crate::block::Finished;
use crate::hypervisor::{Exit, Hypervisor, Native, Vcpu, Vm};
use crate::memory::GuestSlot;
use crate::threads::Confine;
use crate::{VmError, loader};
use instar_shared::abi::ABI_VERSION;
use instar_shared::boot::{BOOT_MAGIC, BootPage, CANCEL_REQUESTED};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::{
    BOOT, CONFIG, CONTROL, DEVICE_TABLE, HEAP_START, INITIAL_HEAP_SIZE, LARGE_PAGE_SIZE, LIVE,
    MAX_SLOT_SIZE, MIN_HEAP_SIZE, QUEUES, RECORDS, RESULT, Region, SECRETS, STACK, stack_of,
};
use instar_shared::record::RecordKind;
use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

/// Longest sleep of a wait: limits and cancellation are looked at in between.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);

/// Why a wait ends the run.
const NOTHING_IN_FLIGHT: &str = "it waits, but nothing is in flight";

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
        let stats = RunStats {
            setup: self.setup,
            ..RunStats::default()
        };
        let mut run = Run {
            watch: self.watch.clone(),
            records: RecordStream::default(),
            panic_message: None,
            cancel_sent: false,
            waits: false,
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
    /// The first vCPU waits for others.
    waits: bool,
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
                let kicked = self.operation.devices.kick(slot);
                let completed = kicked.map_err(RunError::Protocol)?;
                self.note_completed(completed);
                if let Some(beside) = &self.operation.beside {
                    let finished = beside.bell().take_finished();
                    self.publish(finished)?;
                }
            }
            Kick::Queue { .. } => return Err(unknown()),
            Kick::Vcpu(index) => {
                let bell = self.operation.beside.as_ref().map(Beside::bell);
                if !bell.is_some_and(|bell| bell.kick_further(index)) {
                    return Err(unknown());
                }
            }
            Kick::Control(Control::Drain) => self.drain()?,
            Kick::Control(Control::OpenFile) => {
                control::open_file(
                    &self.operation.memory,
                    &mut self.operation.devices,
                    self.host,
                )?;
            }
            Kick::Control(Control::AnnounceSize) => {
                control::announce_size(
                    &self.operation.memory,
                    &mut self.operation.devices,
                    self.host,
                )?;
            }
            Kick::Control(Control::GrantMemory) => {
                self.grant_memory()?;
            }
            Kick::Control(Control::Serve) => self.serve()?,
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

    /// Takes the guest's answers and gives it the next batch of queries.
    fn serve(&mut self) -> Result<(), RunError> {
        let mut served = resident::take_answers(&self.operation.memory, self.host)?;
        while !served {
            self.look_at_limits()?;
            served = resident::put_queries(&self.operation.memory, self.host)?;
        }
        self.watch.progressed();
        Ok(())
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

    /// Gives the guest what threads have finished; how many requests that were.
    fn publish(&mut self, finished: Vec<Finished>) -> Result<u32, RunError> {
        let published = self.operation.devices.finish(finished);
        let published = published.map_err(RunError::Protocol)?;
        self.note_completed(published);
        Ok(published)
    }

    /// Blocks until a request is completed, or a further vCPU kicks this one.
    fn wait_for_threads(&mut self, bell: &Bell) -> Result<(), RunError> {
        self.waits = true;
        loop {
            self.look_at_limits()?;
            let in_flight = self.operation.devices.is_in_flight();
            let wake = bell.wait(LONGEST_SLEEP, in_flight);
            if self.publish(wake.finished)? > 0 || wake.kicked {
                self.waits = false;
                return Ok(());
            }
            if !in_flight && !wake.running {
                self.look_at_limits()?;
                return Err(RunError::Protocol(NOTHING_IN_FLIGHT.into()));
            }
        }
    }

    /// Blocks until a request is completed.
    fn wait(&mut self) -> Result<(), RunError> {
        if let Some(beside) = &self.operation.beside {
            let bell = beside.bell();
            return self.wait_for_threads(&bell);
        }
        loop {
            self.look_at_limits()?;
            let completed = self.operation.devices.complete_next();
            match completed.map_err(RunError::Protocol)? {
                None => {
                    return Err(RunError::Protocol(NOTHING_IN_FLIGHT.into()));
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
        self.host.tick();
        if !self.cancel_sent && self.operation.spec.cancel.load(Ordering::Relaxed) {
            self.cancel_sent = true;
            let word = BOOT.start + offset_of!(BootPage, cancel) as u64;
            self.operation
                .memory
                .write(word, &CANCEL_REQUESTED.to_le_bytes())?;
        }
        let (operation, waits) = (&self.operation, self.waits);
        let Some(beside) = &operation.beside else {
            return self.watch.check(Duration::ZERO, || position(operation));
        };
        if let Some(failure) = beside.bell().take_failure() {
            return Err(failure);
        }
        self.watch.check(beside.cpu_time(), || {
            let elsewhere = beside.position(operation.spec.elf).filter(|_| waits);
            elsewhere.unwrap_or_else(|| position(operation))
        })
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
fn mappings(image: &[Mapping], heap_bytes: u64, vcpus: u8) -> Vec<Mapping> {
    let read = [BOOT, CONFIG, DEVICE_TABLE].map(|region| map(region, Access::Read));
    let heap = Region {
        start: HEAP_START,
        size: heap_bytes,
    };
    let write = [RESULT, CONTROL, RECORDS, STACK, QUEUES, heap]
        .map(|region| map(region, Access::ReadWrite));
    let stacks = (1..vcpus).filter_map(stack_of);
    let stacks = stacks.map(|stack| map(stack, Access::ReadWrite));
    let image = image.iter().copied();
    image.chain(read).chain(write).chain(stacks).collect()
}

const fn map(region: Region, access: Access) -> Mapping {
    Mapping {
        start: region.start,
        size: region.size,
        access,
    }
}

/// The boot page.
///
/// # Errors
/// [`VmError::Random`]: there may be keys to make, and the kernel has no random bytes.
fn boot_page(
    vcpu: &NativeVcpu,
    heap_end: u64,
    vcpus: u8,
    secrets: &[secrets::Secret],
) -> Result<BootPage, VmError> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut entropy = [0; 64];
    let filled = random(&mut entropy);
    if !secrets.is_empty() {
        filled.map_err(VmError::Random)?;
    }
    Ok(BootPage {
        magic: BOOT_MAGIC.into(),
        abi_version: ABI_VERSION.into(),
        vcpus: u32::from(vcpus).into(),
        heap_start: HEAP_START.into(),
        heap_end: heap_end.into(),
        cpu_features: vcpu.cpu_features().into(),
        tsc_hz: vcpu.counter_hz().into(),
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).into(),
        entropy,
        secrets: u32::try_from(secrets.len()).unwrap_or(u32::MAX).into(),
        ..BootPage::zeroed()
    })
}

/// Fills `bytes` from the kernel; what it does not give stays zero.
#[cfg(target_os = "linux")]
fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let flags = rustix::rand::GetRandomFlags::empty();
    let wanted = bytes.len();
    let given = rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut *bytes, flags))?;
    if given == wanted {
        Ok(())
    } else {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// Fills `bytes` from the kernel; what it does not give stays zero.
#[cfg(not(target_os = "linux"))]
fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    // SAFETY: the buffer is valid for its length; getentropy writes at most 256 bytes.
    match unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
