//! The serial line beside someone who does not read it.

use super::*;
use event_manager::{EventManager, SubscriberOps};
use std::io::pipe;

/// A line to a pipe of one page that nobody reads yet; the registers, what serves it, the pipe, the interrupt.
fn line() -> (
    SerialPort,
    EventManager<Subscriber>,
    Rest,
    std::io::PipeReader,
    EventFd,
) {
    let (from, to) = pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&to, 4096).unwrap();
    let line = parts::Line {
        output: Some(to.into()),
        input: None,
        terminal: false,
    };
    let interrupt = event("a test").unwrap();
    let to_guest = Line::unconnected(interrupt.try_clone().unwrap());
    let life = Arc::new(Life::new().unwrap());
    let made = make(line, to_guest, &life).unwrap();
    let mut events = EventManager::new().unwrap();
    events.add_subscriber(made.subscriber);
    (made.port, events, made.rest, from, interrupt)
}

fn status(port: &mut SerialPort) -> u8 {
    let mut value = [0];
    port.read(LINE_STATUS.into(), &mut value);
    value[0]
}

/// Byte `index` of what is sent.
fn byte(index: usize) -> u8 {
    u8::try_from(index % 251).unwrap()
}

/// Sends until the line is busy, as a driver does; how many bytes.
fn fill(port: &mut SerialPort) -> usize {
    let mut sent = 0;
    while status(port) & TRANSMITTER_EMPTY == TRANSMITTER_EMPTY {
        port.write(0, &[byte(sent)]);
        sent += 1;
        assert!(sent < 1 << 20, "it never gets busy");
    }
    sent
}

#[test]
fn a_line_that_nobody_reads_gets_busy_and_loses_nothing() {
    let (mut port, mut events, _rest, mut from, interrupt) = line();
    port.write(INTERRUPT_ENABLE.into(), &[2]);
    let sent = fill(&mut port);
    assert_eq!(status(&mut port) & TRANSMITTER_EMPTY, 0);
    // The driver has taken all interrupts up to now.
    port.read(2, &mut [0]);
    let _ = interrupt.read();
    let mut got = Vec::new();
    let mut page = [0; 4096];
    while got.len() < sent {
        events.run_with_timeout(0).unwrap();
        let len = from.read(&mut page).unwrap();
        got.extend_from_slice(&page[..len]);
    }
    let expected: Vec<u8> = (0..sent).map(byte).collect();
    assert!(got == expected, "{} of {sent} bytes", got.len());
    assert_eq!(status(&mut port) & TRANSMITTER_EMPTY, TRANSMITTER_EMPTY);
    assert_eq!(interrupt.read().unwrap(), 1, "the driver is told once");
    let mut identification = [0];
    port.read(2, &mut identification);
    assert_eq!(identification[0] & 0xf, 2);
    // Nothing waits any more: the next byte goes at once, and nothing wakes the thread.
    port.write(0, b"z");
    assert_eq!(from.read(&mut page).unwrap(), 1);
    assert_eq!(events.run_with_timeout(0).unwrap(), 0);
}

#[test]
fn a_driver_that_does_not_look_loses_what_is_too_much_and_the_rest_is_delivered_at_the_end() {
    let (mut port, _events, rest, mut from, _) = line();
    let sent = 200_000;
    for index in 0..sent {
        port.write(0, &[byte(index)]);
    }
    let reader = std::thread::spawn(move || {
        let mut got = Vec::new();
        from.read_to_end(&mut got).unwrap();
        got
    });
    rest.finish();
    drop((port, _events, rest));
    let got = reader.join().unwrap();
    let expected: Vec<u8> = (0..got.len()).map(byte).collect();
    assert!(got == expected, "other bytes");
    assert!((64 << 10..128 << 10).contains(&got.len()), "{}", got.len());
}

#[test]
fn a_terminal_that_nobody_opens_does_not_make_the_line_busy() {
    let machine = File::options().read(true).write(true).open("/dev/ptmx");
    let line = parts::Line {
        output: Some(machine.unwrap().into()),
        input: None,
        terminal: false,
    };
    let life = Arc::new(Life::new().unwrap());
    let nowhere = Line::unconnected(event("a test").unwrap());
    let mut made = make(line, nowhere, &life).unwrap();
    for index in 0..200_000 {
        made.port.write(0, &[byte(index)]);
    }
    assert_eq!(
        status(&mut made.port) & TRANSMITTER_EMPTY,
        TRANSMITTER_EMPTY
    );
    made.rest.finish();
}
