//! A console over pipes and a terminal, served by its thread.

use super::*;
use crate::machine::events::EventThread;
use crate::machine::life::Life;
use instar_devices::virtio::Memory;
use instar_devices::virtio::driver::{DRIVER_BYTES, Driver};
use instar_devices::virtio::testing::Told;
use std::io::{PipeReader, PipeWriter, Write};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress};

const BASE: u64 = 0x10_0000;
const OTHER: u64 = BASE + DRIVER_BYTES;
const DATA: u64 = OTHER + DRIVER_BYTES;
const LONG: Duration = Duration::from_secs(120);

struct Bed {
    memory: Memory,
    input: Driver,
    output: Driver,
    wired: (SharedDevice, Arc<QueueEvents>),
    told: Arc<Told>,
    _thread: EventThread,
}

impl Bed {
    fn new(line: Line) -> Self {
        let life = Arc::new(Life::new().unwrap());
        let keys = Keys::new(line.terminal, &life);
        let wired = wire(line, keys).unwrap();
        let memory = Memory::from_ranges(&[(GuestAddress(BASE), 0x40_0000)]).unwrap();
        let features = wired.device.lock().unwrap().features();
        let input = Driver::new(&memory, BASE, 64, features);
        let output = Driver::new(&memory, OTHER, 64, features);
        let told = Told::new();
        let ready = told.activation(&memory, features, &[&input, &output]);
        wired.device.lock().unwrap().activate(ready);
        let confine = Arc::new(|_| Ok(()));
        let mut thread = EventThread::start(vec![wired.subscriber], &(confine as _)).unwrap();
        thread.wait().unwrap();
        Self {
            memory,
            input,
            output,
            wired: (wired.device, wired.queues),
            told,
            _thread: thread,
        }
    }

    fn pipes() -> (Self, PipeWriter, PipeReader) {
        let (input, typed) = std::io::pipe().unwrap();
        let (shown, output) = std::io::pipe().unwrap();
        let line = Line {
            output: Some(output.into()),
            input: Some(input.into()),
            terminal: false,
        };
        (Self::new(line), typed, shown)
    }

    fn wait(&self, what: impl Fn() -> bool) {
        let began = Instant::now();
        while !what() {
            assert!(began.elapsed() < LONG, "it never comes");
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    /// The guest sends `bytes`, and goes on when they are out.
    fn send(&mut self, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(DATA)).unwrap();
        let len = u32::try_from(bytes.len()).unwrap();
        self.output.add(&[(DATA, len, false)], true).unwrap();
        if self.output.must_kick() {
            self.wired.1.notify(1);
        }
    }

    fn is_sent(&mut self) -> bool {
        self.output.take_used().is_some()
    }

    fn wait_until_sent(&mut self) {
        while !self.is_sent() {
            if self.output.sleep() {
                self.wait(|| self.told.take_queue(1));
            }
        }
    }

    /// What the guest gets next, in a buffer of 100 bytes.
    fn receive(&mut self) -> Vec<u8> {
        self.input.add(&[(DATA, 100, true)], false).unwrap();
        if self.input.must_kick() {
            self.wired.1.notify(0);
        }
        loop {
            if let Some((_, len)) = self.input.take_used() {
                let mut bytes = vec![0; len as usize];
                self.memory
                    .read_slice(&mut bytes, GuestAddress(DATA))
                    .unwrap();
                return bytes;
            }
            if self.input.sleep() {
                self.wait(|| self.told.take_queue(0));
            }
        }
    }
}

#[test]
fn output_that_nobody_reads_waits_and_then_goes_on() {
    let (mut bed, _typed, mut shown) = Bed::pipes();
    let text: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    bed.send(&text);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!bed.is_sent(), "a pipe does not hold it");
    // Other devices of the thread are served meanwhile: this one's input is.
    let mut seen = vec![0; text.len()];
    shown.read_exact(&mut seen).unwrap();
    assert!(seen == text);
    bed.wait_until_sent();
    drop(shown);
    bed.send(b"nobody is there");
    bed.wait_until_sent();
}

#[test]
fn input_comes_as_the_guest_takes_it_and_none_is_lost() {
    let (mut bed, mut typed, _shown) = Bed::pipes();
    let text: Vec<u8> = (0..=250).cycle().take(300_000).collect();
    let sent = text.clone();
    let writer = std::thread::spawn(move || typed.write_all(&sent).unwrap());
    let mut got = Vec::new();
    while got.len() < text.len() {
        let bytes = bed.receive();
        assert!(!bytes.is_empty());
        got.extend(bytes);
    }
    assert!(got == text);
    writer.join().unwrap();
}

#[test]
fn a_file_is_input_to_its_end() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[b'z'; 10_000]).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let line = Line {
        output: None,
        input: Some(file.into()),
        terminal: false,
    };
    let mut bed = Bed::new(line);
    let mut len = 0;
    while len < 10_000 {
        len += bed.receive().len();
    }
    assert_eq!(len, 10_000);
    bed.send(b"goes nowhere");
    bed.wait_until_sent();
}

#[test]
fn a_terminal_has_a_size_and_tells_when_it_changes() {
    let (mut controller, mut terminal) = (0, 0);
    let mut size = libc::winsize {
        ws_row: 25,
        ws_col: 80,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the pointers are of locals; the last one is of a `winsize`.
    let files = unsafe {
        let name = std::ptr::null_mut();
        let opened = libc::openpty(
            &raw mut controller,
            &raw mut terminal,
            name,
            std::ptr::null(),
            &raw const size,
        );
        assert_eq!(opened, 0);
        [File::from_raw_fd(controller), File::from_raw_fd(terminal)]
    };
    let [controller, terminal] = files;
    let line = Line {
        output: Some(terminal.try_clone().unwrap().into()),
        input: Some(terminal.try_clone().unwrap().into()),
        terminal: true,
    };
    let bed = Bed::new(line);
    let config = || {
        let mut config = [0; 4];
        bed.wired.0.lock().unwrap().read_config(0, &mut config);
        config
    };
    assert_eq!(config(), [80, 0, 25, 0]);
    (size.ws_row, size.ws_col) = (50, 132);
    // SAFETY: the call reads one `winsize`.
    let resized = unsafe { libc::ioctl(controller.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    assert_eq!(resized, 0);
    // A machine's first thread has the signal blocked, and so the kernel does not drop it; the first of a test has not.
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let thread: i32 = task.unwrap().file_name().to_str().unwrap().parse().unwrap();
        // SAFETY: a signal that is ignored unless it is blocked.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, libc::SIGWINCH) };
    }
    bed.wait(|| config() == [132, 0, 50, 0]);
    bed.wait(|| bed.told.config_changes() == 1);
}
