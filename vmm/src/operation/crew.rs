//! What runs beside the first vCPU: I/O threads and further vCPUs.

use super::report::describe;
use super::{CrashReport, RunError, Threads};
use crate::VmError;
use crate::bell::Bell;
use crate::block::IoPool;
use crate::hypervisor::{Exit, Hypervisor, Native, UserEntry, Vcpu, Vm};
use crate::memory::GuestSlot;
use crate::threads::{self, Confine, ThreadKind};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::{PANIC_TEXT_BYTES, STACK, panic_note_of, stack_of};
use rustix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Room between a stack's top and the first frame.
const STACK_HEADROOM: u64 = 64;

type NativeVm = <Native as Hypervisor>::Vm;
type NativeVcpu = <NativeVm as Vm>::Vcpu;

/// The threads of a run besides the first; they end with the value.
#[derive(Debug)]
pub struct Beside {
    threads: Threads,
    bell: Arc<Bell>,
    pool: Arc<IoPool>,
    seen: Vec<Arc<Seen>>,
    started: bool,
}

/// What a further vCPU's thread says of itself, at each tick.
#[derive(Debug, Default)]
struct Seen {
    cpu_ns: AtomicU64,
    instruction: AtomicU64,
}

/// What the threads share with the first vCPU.
#[derive(Clone)]
pub struct Machine {
    /// The machine.
    pub vm: Arc<NativeVm>,
    /// Its memory.
    pub memory: Arc<GuestSlot>,
    /// The program.
    pub elf: &'static [u8],
    /// Its first instruction.
    pub entry_gva: u64,
}

/// A further vCPU, on its thread.
struct Further {
    index: u8,
    machine: Machine,
    bell: Arc<Bell>,
    seen: Arc<Seen>,
}

/// Where vCPU `index` starts; `None` if there can be no such vCPU.
pub fn entry(entry_gva: u64, index: u8) -> UserEntry {
    let stack = stack_of(index).unwrap_or(STACK);
    UserEntry {
        entry_gva,
        stack_gva: stack.end() - STACK_HEADROOM,
        argument: index.into(),
    }
}

impl Beside {
    /// What this host gives of `threads`, not started yet; `None` if that is nothing.
    pub fn new(threads: Threads) -> Option<Self> {
        let threads = threads.on_this_host();
        if threads == Threads::default() {
            return None;
        }
        let bell = Arc::new(Bell::new(threads.vcpus));
        Some(Self {
            threads,
            pool: Arc::new(IoPool::new(bell.clone())),
            bell,
            seen: Vec::new(),
            started: false,
        })
    }

    /// Where the threads report.
    pub fn bell(&self) -> Arc<Bell> {
        Arc::clone(&self.bell)
    }

    /// The I/O threads.
    pub fn pool(&self) -> Arc<IoPool> {
        Arc::clone(&self.pool)
    }

    /// How many further vCPUs there are.
    pub const fn further_vcpus(&self) -> u8 {
        self.threads.vcpus
    }

    /// Starts the threads, unless they run.
    ///
    /// # Errors
    /// [`VmError`]: a thread or its vCPU could not be made, or not be confined.
    pub fn start(&mut self, machine: &Machine, confine: &Confine) -> Result<(), VmError> {
        if std::mem::replace(&mut self.started, true) {
            return Ok(());
        }
        self.pool.start(self.threads.io, confine)?;
        for index in 1..=self.threads.vcpus {
            let seen = Arc::<Seen>::default();
            self.seen.push(Arc::clone(&seen));
            let further = Further {
                index,
                machine: machine.clone(),
                bell: Arc::clone(&self.bell),
                seen,
            };
            let (vm, entry) = (Arc::clone(&machine.vm), entry(machine.entry_gva, index));
            let prepare = move || {
                // The first look at a clock may need calls that a confined thread has not.
                let _ = clock_gettime(ClockId::ThreadCPUTime);
                vm.create_vcpu(index, &entry)
            };
            threads::spawn(ThreadKind::Vcpu, confine, prepare, |vcpu| {
                further.serve(vcpu)
            })?;
        }
        Ok(())
    }

    /// CPU time of the further vCPUs, as of their last tick.
    pub fn cpu_time(&self) -> Duration {
        let sum = self.seen.iter().fold(0_u64, |sum, seen| {
            sum.saturating_add(seen.cpu_ns.load(Ordering::Relaxed))
        });
        Duration::from_nanos(sum)
    }

    /// Where a further vCPU was at its last tick, if one was seen at work.
    pub fn position(&self, elf: &[u8]) -> Option<String> {
        let seen = self.seen.iter();
        let mut seen = seen.map(|seen| seen.instruction.load(Ordering::Relaxed));
        seen.find(|at| *at != 0).map(|at| describe(elf, at))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        self.bell.stop();
    }
}

impl Further {
    /// The life of the thread.
    fn serve(self, mut vcpu: NativeVcpu) {
        while self.bell.park(self.index) {
            if let Err(error) = self.run(&mut vcpu) {
                self.bell.fail(error);
                return;
            }
            self.seen.instruction.store(0, Ordering::Relaxed);
        }
    }

    /// Runs until the guest waits, or the run is over.
    fn run(&self, vcpu: &mut NativeVcpu) -> Result<(), RunError> {
        loop {
            match vcpu.run()? {
                Exit::Wait(_) => {
                    self.note(vcpu);
                    return Ok(());
                }
                Exit::Kick(value) => self.kick(value)?,
                Exit::Trap(vector) => {
                    let frame = vcpu.trap_frame(&self.machine.memory, vector)?;
                    return Err(RunError::Crashed(CrashReport::new(frame, self.machine.elf)));
                }
                Exit::Stopped(reason) => {
                    let position = vcpu.position();
                    let position = position.map_or(0, |(instruction, _)| instruction);
                    return Err(RunError::Stopped {
                        reason,
                        position: describe(self.machine.elf, position),
                    });
                }
                Exit::Interrupted if self.bell.is_stopped() => return Ok(()),
                Exit::Interrupted => self.note(vcpu),
            }
        }
    }

    /// Serves a kick: a further vCPU may wake the first one, and panic.
    fn kick(&self, value: u32) -> Result<(), RunError> {
        match Kick::decode(value) {
            Some(Kick::Vcpu(0)) => {
                self.bell.kick_first();
                Ok(())
            }
            Some(Kick::Control(Control::Panic)) => Err(RunError::Panicked(self.last_words())),
            _ => Err(RunError::Protocol(format!(
                "vCPU {} rang the doorbell with {value:#x}, which it may not",
                self.index
            ))),
        }
    }

    /// Takes note of the time spent and the place.
    fn note(&self, vcpu: &NativeVcpu) {
        let now = clock_gettime(ClockId::ThreadCPUTime);
        let (seconds, ns) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
        let ns = seconds
            .unwrap_or(0)
            .saturating_mul(1_000_000_000)
            .saturating_add(ns.unwrap_or(0));
        self.seen.cpu_ns.store(ns, Ordering::Relaxed);
        if let Ok((instruction, _)) = vcpu.position() {
            self.seen.instruction.store(instruction, Ordering::Relaxed);
        }
    }

    /// Why the guest says it panicked.
    fn last_words(&self) -> String {
        let text = panic_note_of(self.index).and_then(|at| {
            let len: [u8; 4] = self.machine.memory.load(at).ok()?;
            let len = usize::try_from(u32::from_le_bytes(len)).ok()?;
            let mut text = vec![0; len.min(PANIC_TEXT_BYTES)];
            self.machine.memory.read(at + 4, &mut text).ok()?;
            Some(String::from_utf8_lossy(&text).into_owned())
        });
        text.filter(|text| !text.is_empty())
            .unwrap_or_else(|| "without a message".into())
    }
}
