//! The exit loop.

use super::Operation;
use crate::VmError;
use crate::bell::Bell;
use crate::block::Finished;
use crate::hypervisor::{Exit, Vcpu, Vm};
use crate::operation::crew::Beside;
use crate::operation::limits::Watch;
use crate::operation::records::RecordStream;
use crate::operation::report::describe;
use crate::operation::{
    Completed, CrashReport, OperationHost, RESULT_BYTES, RunError, RunStats, control, resident,
};
use instar_shared::boot::{BootPage, CANCEL_REQUESTED};
use instar_shared::doorbell::{Control, Kick};
use instar_shared::layout::{BOOT, RECORDS, RESULT};
use instar_shared::record::RecordKind;
use std::mem::offset_of;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Longest sleep of a wait: limits and cancellation are looked at in between.
const LONGEST_SLEEP: Duration = Duration::from_millis(100);
/// Why a wait ends the run.
const NOTHING_IN_FLIGHT: &str = "it waits, but nothing is in flight";

/// The state of the exit loop.
pub struct Run<'a> {
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

impl<'a> Run<'a> {
    /// Of a machine whose threads have started.
    pub fn new(operation: Operation, host: &'a mut dyn OperationHost) -> Self {
        let stats = RunStats {
            setup: operation.setup,
            ..RunStats::default()
        };
        Self {
            watch: operation.watch.clone(),
            records: RecordStream::default(),
            panic_message: None,
            cancel_sent: false,
            waits: false,
            stats,
            operation,
            host,
        }
    }
}

impl Run<'_> {
    /// Runs the guest to its end.
    ///
    /// # Errors
    /// [`RunError`]: everything but a result.
    pub fn finish(mut self) -> Result<Completed, RunError> {
        self.until_exit()?;
        let result = self
            .operation
            .memory
            .load::<[u8; RESULT_BYTES]>(RESULT.start)?;
        Ok(Completed {
            result,
            stats: self.stats,
        })
    }

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
