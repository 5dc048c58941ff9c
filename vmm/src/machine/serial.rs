//! The serial line, a 16550A: output to a descriptor byte by byte as the guest writes it, input as far as the guest
//! takes it.
//!
//! A vCPU never waits for whoever reads the output. What is not taken is kept; when that is much, the line status says
//! that the transmitter is busy, and an interrupt comes when it is not any more.

mod output;
#[cfg(test)]
mod tests;

use super::events::{Subscriber, event, watch};
use super::irq::Line;
use super::life::Life;
use super::output::HostOutput;
use super::parts;
use super::terminal::Keys;
use crate::VmError;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instar_devices::bus::BusDevice;
use instar_devices::msi::IrqLine;
use output::Output;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Events: there is input; the guest has room for more; output begins to wait; whoever reads it has room.
const INPUT: u32 = 0;
const ROOM: u32 = 1;
const WAITS: u32 = 2;
const TAKEN: u32 = 3;

// Registers, and bits in them (TL16C550C data sheet, table 3).
const INTERRUPT_ENABLE: u8 = 1;
const LINE_CONTROL: u8 = 3;
const DIVISOR_LATCH: u8 = 1 << 7;
const LINE_STATUS: u8 = 5;
const TRANSMITTER_EMPTY: u8 = 1 << 5 | 1 << 6;

type Uart = Serial<Interrupt, Room, Output>;

/// The registers.
pub struct SerialPort(Arc<Mutex<Uart>>);

/// A serial line.
pub struct Made {
    /// Its registers.
    pub port: SerialPort,
    /// What serves it beside them.
    pub subscriber: Subscriber,
    /// What it has not got rid of at the end.
    pub rest: Rest,
}

impl fmt::Debug for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Made").finish_non_exhaustive()
    }
}

/// Output that waits when a machine ends.
pub struct Rest {
    uart: Arc<Mutex<Uart>>,
    to: Option<HostOutput>,
}

impl Rest {
    /// Returns when everything is taken.
    pub fn finish(&self) {
        while !lock(&self.uart).writer_mut().hand_over() {
            if let Some(to) = &self.to {
                output::wait_for_room(to);
            }
        }
    }
}

/// What happens beside the registers.
struct Service {
    uart: Arc<Mutex<Uart>>,
    to: Option<HostOutput>,
    waits: Arc<EventFd>,
    input: Option<Input>,
}

/// What has come is on its way to the guest.
struct Input {
    uart: Arc<Mutex<Uart>>,
    file: File,
    keys: Keys,
    room: Arc<EventFd>,
    /// Not taken by the guest yet.
    waiting: Vec<u8>,
    watched: bool,
}

struct Interrupt(Line);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.pulse();
        Ok(())
    }
}

/// Signalled when the guest has taken all input.
struct Room(Arc<EventFd>);

impl SerialEvents for Room {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}

    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

/// Makes the serial line.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn make(line: parts::Line, interrupt: Line, life: &Arc<Life>) -> Result<Made, VmError> {
    let room = Arc::new(event("the serial line")?);
    let waits = Arc::new(event("the serial line")?);
    let to = line.output.map(HostOutput::new);
    let output = Output::new(to.clone(), Arc::clone(&waits));
    let uart = Serial::with_events(Interrupt(interrupt), Room(Arc::clone(&room)), output);
    let uart = Arc::new(Mutex::new(uart));
    let input = line.input.map(|file| Input {
        uart: Arc::clone(&uart),
        file: file.into(),
        keys: Keys::new(line.terminal, life),
        room,
        waiting: Vec::new(),
        watched: false,
    });
    let service = Service {
        uart: Arc::clone(&uart),
        to: to.clone(),
        waits,
        input,
    };
    Ok(Made {
        port: SerialPort(Arc::clone(&uart)),
        subscriber: Box::new(service),
        rest: Rest { uart, to },
    })
}

fn lock(uart: &Mutex<Uart>) -> MutexGuard<'_, Uart> {
    uart.lock().unwrap_or_else(PoisonError::into_inner)
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SerialPort").finish_non_exhaustive()
    }
}

impl BusDevice for SerialPort {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            let mut uart = lock(&self.0);
            *value = uart.read(offset);
            if offset == LINE_STATUS && uart.writer().is_busy() {
                *value &= !TRANSMITTER_EMPTY;
            }
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let (Ok(offset), [value]) = (u8::try_from(offset), data) {
            let _ = lock(&self.0).write(offset, *value);
        }
    }
}

impl Input {
    /// Watches the input. A file or a null device cannot be watched, and has nothing to say.
    fn listen(&mut self, ops: &mut EventOps) {
        let events = Events::with_data(&self.file, INPUT, EventSet::IN);
        self.watched = ops.add(events).is_ok();
    }

    fn stop_listening(&mut self, ops: &mut EventOps) {
        let events = Events::with_data(&self.file, INPUT, EventSet::IN);
        if std::mem::take(&mut self.watched) {
            let _ = ops.remove(events);
        }
    }

    /// Gives the guest what it takes; whether that is all.
    fn give(&mut self) -> bool {
        let mut uart = lock(&self.uart);
        let room = uart.fifo_capacity();
        let taken = match room {
            0 => 0,
            _ => uart.enqueue_raw_bytes(&self.waiting).unwrap_or(0),
        };
        drop(uart);
        if room > 0 && taken == 0 {
            // The guest has turned its line back upon itself: what comes meanwhile is lost.
            self.waiting.clear();
        }
        self.waiting.drain(..taken.min(self.waiting.len()));
        self.waiting.is_empty()
    }

    fn read(&mut self, ops: &mut EventOps) {
        let mut typed = [0; 64];
        match self.file.read(&mut typed) {
            Ok(len @ 1..) => {
                let typed = typed.get(..len).unwrap_or_default();
                self.waiting = self.keys.filter(typed);
            }
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) => {}
            // Its other end is closed.
            Ok(_) | Err(_) => self.stop_listening(ops),
        }
    }
}

impl Input {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, Events::with_data(&*self.room, ROOM, EventSet::IN));
        self.listen(ops);
    }

    fn has_come(&mut self, ops: &mut EventOps) {
        self.read(ops);
        if !self.give() {
            self.stop_listening(ops);
        }
    }

    fn guest_has_room(&mut self, ops: &mut EventOps) {
        let _ = self.room.read();
        if !self.waiting.is_empty() && self.give() {
            self.listen(ops);
        }
    }
}

impl Service {
    /// Output begins to wait: watches for room.
    fn begin_to_wait(&self, ops: &mut EventOps) {
        let _ = self.waits.read();
        let Some(to) = &self.to else { return };
        // It may be watched already: it began to wait again before this was told.
        let _ = ops.add(Events::with_data(to, TAKEN, EventSet::OUT));
    }

    /// There is room for output.
    fn go_on(&self, ops: &mut EventOps) {
        let mut uart = lock(&self.uart);
        let was_busy = uart.writer().is_busy();
        let is_done = uart.writer_mut().hand_over();
        if was_busy && !uart.writer().is_busy() && uart.read(LINE_CONTROL) & DIVISOR_LATCH == 0 {
            // An interrupt, if it is enabled: as on a chip, that comes of enabling it as well.
            let enabled = uart.read(INTERRUPT_ENABLE);
            let _ = uart.write(INTERRUPT_ENABLE, enabled);
        }
        // While the registers are locked: nothing begins to wait meanwhile.
        if let (true, Some(to)) = (is_done, &self.to) {
            let _ = ops.remove(Events::with_data(to, TAKEN, EventSet::OUT));
        }
    }
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, Events::with_data(&*self.waits, WAITS, EventSet::IN));
        if let Some(input) = &mut self.input {
            input.init(ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        match (events.data(), &mut self.input) {
            (WAITS, _) => self.begin_to_wait(ops),
            (TAKEN, _) => self.go_on(ops),
            (INPUT, Some(input)) => input.has_come(ops),
            (_, Some(input)) => input.guest_has_room(ops),
            (_, None) => {}
        }
    }
}
