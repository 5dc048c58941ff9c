//! Whole machines on KVM, with a few instructions for a kernel.

pub mod kernel;

use super::control::{Control, Ended, Outcome};
use super::parts::{Boot, Line, Parts, Transport};
use super::{Machine, layout};
use crate::threads::Confine;
use kernel::{elf, file};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// 32-bit instructions.
#[derive(Default)]
struct Code(Vec<u8>);

impl Code {
    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend(bytes);
        self
    }

    /// `mov edx, port; mov al, value; out dx, al`
    fn out(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0xba, low, high, 0, 0, 0xb0, value, 0xee])
    }

    /// `mov byte [address], value`
    fn store(self, address: u64, value: u8) -> Self {
        let address = u32::try_from(address).unwrap().to_le_bytes();
        self.raw(&[0xc6, 0x05]).raw(&address).raw(&[value])
    }

    fn power_off(self) -> Self {
        let register = layout::ACPI_EVENTS_START + layout::ACPI_SLEEP_CONTROL;
        self.store(register, 5 << 2 | 1 << 5)
            .raw(&[0xf4, 0xeb, 0xfd])
    }
}

struct Test {
    parts: Parts,
    control: Control,
    /// The other end of the serial line's output.
    said: File,
    /// The other end of its input.
    typed: File,
    button: OwnedFd,
}

fn test(code: Code, transport: Transport) -> Test {
    let (said, output) = rustix::pipe::pipe().unwrap();
    let (input, typed) = rustix::pipe::pipe().unwrap();
    let flags = rustix::event::EventfdFlags::NONBLOCK;
    let button = rustix::event::eventfd(0, flags).unwrap();
    let parts = Parts {
        cpus: 2,
        memory_bytes: 64 << 20,
        transport,
        boot: Boot::Kernel {
            kernel: file(&elf(&code.0, true)),
            initrd: None,
            cmdline: String::new(),
        },
        serial: Line {
            output: Some(output),
            input: Some(input),
            terminal: true,
        },
        console: None,
        disks: Vec::new(),
        nets: Vec::new(),
        vsock: None,
        rng: false,
    };
    Test {
        parts,
        control: Control {
            power_button: button.as_fd().try_clone_to_owned().unwrap(),
            recycle: None,
            began: Instant::now(),
            scanned: None,
        },
        said: said.into(),
        typed: typed.into(),
        button,
    }
}

impl Test {
    fn run(self) -> (Ended, String) {
        let confine: Confine = Arc::new(|_| Ok(()));
        let machine = Machine::build(self.parts, self.control).unwrap();
        let ended = machine.run(&confine).unwrap();
        let mut said = String::new();
        let mut file = self.said;
        // What the machine has written is all in the pipe, whose other end may still be open in its device.
        let mut bytes = [0; 4096];
        let flags = rustix::fs::fcntl_getfl(&file).unwrap();
        rustix::fs::fcntl_setfl(&file, flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        while let Ok(len @ 1..) = file.read(&mut bytes) {
            said += std::str::from_utf8(&bytes[..len]).unwrap();
        }
        (ended, said)
    }
}

#[test]
fn a_guest_writes_marks_and_switches_itself_off() {
    for transport in [Transport::Pci, Transport::Mmio] {
        let code = Code::default()
            .out(layout::SERIAL_PORT, b'h')
            .out(layout::SERIAL_PORT, b'i')
            .out(layout::MARK_PORT, 42)
            .power_off();
        let (ended, said) = test(code, transport).run();
        assert_eq!(ended.outcome, Outcome::PowerOff);
        assert_eq!(said, "hi");
        let marks: Vec<_> = ended
            .report
            .marks
            .iter()
            .map(|mark| (mark.value, mark.exits))
            .collect();
        assert_eq!(marks, [(42, 3)]);
        assert_eq!(ended.report.exits["mmio-write"], 1);
        let phases = ended.report.phases;
        assert!(phases.is_sorted_by_key(|(_, at)| *at), "{phases:?}");
    }
}

#[test]
fn a_guest_resets_by_acpi_and_by_the_keyboard_controller() {
    let acpi = layout::ACPI_EVENTS_START + layout::ACPI_RESET;
    let halt = [0xf4, 0xeb, 0xfd];
    for code in [
        Code::default().store(acpi, layout::ACPI_RESET_VALUE),
        Code::default().out(layout::KEYBOARD_CONTROLLER_PORT + 4, 0xfe),
    ] {
        let (ended, _) = test(code.raw(&halt), Transport::Pci).run();
        assert_eq!(ended.outcome, Outcome::Reset);
    }
}

#[test]
fn a_triple_fault_says_where() {
    // An invalid opcode without a table of handlers.
    let (ended, _) = test(Code::default().raw(&[0x0f, 0x0b]), Transport::Pci).run();
    let Outcome::Failed(text) = ended.outcome else {
        panic!("{:?}", ended.outcome);
    };
    assert!(text.contains("triple fault at 0x100000"), "{text}");
}

#[test]
fn the_serial_line_takes_input() {
    // Wait for the line status to say that there is a byte, read it, write it.
    let code = Code::default()
        .raw(&[0xba, 0xfd, 0x03, 0, 0, 0xec, 0xa8, 1, 0x74, 0xf6])
        .raw(&[0xba, 0xf8, 0x03, 0, 0, 0xec, 0xee])
        .power_off();
    let mut test = test(code, Transport::Pci);
    test.typed.write_all(b"z").unwrap();
    let (ended, said) = test.run();
    assert_eq!((ended.outcome, said.as_str()), (Outcome::PowerOff, "z"));
}

#[test]
fn the_power_button_is_an_event_that_the_guest_reads() {
    // cmp dword [events], 0; je back
    let events = u32::try_from(layout::ACPI_EVENTS_START).unwrap();
    let code = Code::default()
        .raw(&[0x83, 0x3d])
        .raw(&events.to_le_bytes())
        .raw(&[0, 0x74, 0xf7])
        .power_off();
    let test = test(code, Transport::Mmio);
    rustix::io::write(&test.button, &1_u64.to_le_bytes()).unwrap();
    assert_eq!(test.run().0.outcome, Outcome::PowerOff);
}

#[test]
fn a_guest_that_never_exits_is_paused_recycled_and_ended_by_keys() {
    // Where others work, two milliseconds may be long.
    for transport in [Transport::Pci, Transport::Mmio] {
        let mut waits = [200, 2000, 20_000].map(Duration::from_millis).into_iter();
        assert!(waits.any(|wait| recycled(transport, wait) > 1));
    }
}

/// How often the devices of a guest that never exits are recycled until its user ends it after `wait`.
fn recycled(transport: Transport, wait: Duration) -> u64 {
    let code = Code::default().out(layout::SERIAL_PORT, b'!');
    let mut test = test(code.raw(&[0xeb, 0xfe]), transport);
    test.control.recycle = Some(Duration::from_millis(2));
    let mut typed = test.typed.try_clone().unwrap();
    let mut said = test.said.try_clone().unwrap();
    let user = std::thread::spawn(move || {
        said.read_exact(&mut [0]).unwrap();
        std::thread::sleep(wait);
        typed.write_all(b"\x01x").unwrap();
    });
    let (ended, _) = test.run();
    user.join().unwrap();
    assert_eq!(ended.outcome, Outcome::Quit);
    ended.report.recycled
}

#[test]
fn a_firmware_starts_at_its_pvh_entry_and_is_told_of_the_tables() {
    // mov eax, [ebx + 32]: where the root pointer is; mov al, [eax]; out to the serial line.
    let code = Code::default()
        .raw(&[0x8b, 0x43, 0x20, 0x8a, 0x00])
        .raw(&[0xba, 0xf8, 0x03, 0, 0, 0xee])
        .power_off();
    let kernel = file(&elf(&code.0, true));
    let mut test = test(code, Transport::Pci);
    test.parts.boot = Boot::Firmware(kernel);
    let (ended, said) = test.run();
    // "RSD PTR " begins there.
    assert_eq!((ended.outcome, said.as_str()), (Outcome::PowerOff, "R"));
}

#[test]
fn as_many_vcpus_as_there_may_be_come_and_go() {
    let mut test = test(Code::default().power_off(), Transport::Mmio);
    test.parts.cpus = layout::MAX_CPUS;
    assert_eq!(test.run().0.outcome, Outcome::PowerOff);
    for cpus in [0, layout::MAX_CPUS + 1] {
        let mut test = self::test(Code::default(), Transport::Mmio);
        test.parts.cpus = cpus;
        let error = Machine::build(test.parts, test.control).unwrap_err();
        assert!(error.to_string().contains("1 to 32 CPUs"), "{error}");
    }
}
