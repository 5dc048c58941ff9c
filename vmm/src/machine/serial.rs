//! The serial line, a 16550A: output to a descriptor byte by byte as the guest writes it, input as far as the guest
//! takes it.

use super::events::{Subscriber, event, watch};
use super::irq::Line;
use super::life::Life;
use super::parts;
use super::terminal::Keys;
use crate::VmError;
use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use instar_devices::bus::BusDevice;
use instar_devices::msi::IrqLine;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

/// Event of the input; the other is that there is room.
const INPUT: u32 = 0;
const ROOM: u32 = 1;

type Uart = Serial<Interrupt, Room, Output>;

/// The registers.
pub struct SerialPort(Arc<Mutex<Uart>>);

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

/// Where output goes. A guest must not stop because nobody reads what it says: errors are not told.
struct Output(Option<File>);

impl Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        if let Some(file) = &mut self.0 {
            let _ = file.write_all(data);
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
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

/// Makes the serial line; the registers, and what serves its input, if it has some.
///
/// # Errors
/// [`VmError::Start`]: no more descriptors.
pub fn make(
    line: parts::Line,
    interrupt: Line,
    life: &Arc<Life>,
) -> Result<(SerialPort, Option<Subscriber>), VmError> {
    let room = Arc::new(event("the serial line")?);
    let output = Output(line.output.map(File::from));
    let uart = Serial::with_events(Interrupt(interrupt), Room(Arc::clone(&room)), output);
    let uart = Arc::new(Mutex::new(uart));
    let port = SerialPort(Arc::clone(&uart));
    let input = line.input.map(|file| {
        let input = Input {
            uart,
            file: file.into(),
            keys: Keys::new(line.terminal, life),
            room,
            waiting: Vec::new(),
            watched: false,
        };
        Box::new(input) as Subscriber
    });
    Ok((port, input))
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
            *value = lock(&self.0).read(offset);
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

impl MutEventSubscriber for Input {
    fn init(&mut self, ops: &mut EventOps) {
        watch(ops, Events::with_data(&*self.room, ROOM, EventSet::IN));
        self.listen(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == INPUT {
            self.read(ops);
            if !self.give() {
                self.stop_listening(ops);
            }
        } else {
            let _ = self.room.read();
            if !self.waiting.is_empty() && self.give() {
                self.listen(ops);
            }
        }
    }
}
