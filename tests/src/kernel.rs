//! Kernels of a few instructions for `instar run`: they start in no time, also where KVM interprets ring 0.

use anyhow::Result;

use crate::scratch::Scratch;

/// Where it is loaded, and starts.
const START: u64 = 0x10_0000;
/// Length of the headers before the code.
const HEADER_BYTES: u64 = 64 + 56;
/// The serial line.
const SERIAL: u16 = 0x3f8;
/// Status of the keyboard controller, whose command 0xfe is a reset.
const KEYBOARD: u16 = 0x64;

/// What a kernel does once it has said `ready` on the serial line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Says what is said to it, byte by byte, for ever.
    Echo,
    /// Nothing, for ever.
    Halt,
    /// An instruction that is none.
    Fault,
    /// A reset.
    Reset,
    /// As many bytes as this, all `x`, and a reset.
    Talk(u32),
}

/// Writes a kernel to the file `name`: an ELF file with an entry in 64-bit mode.
pub fn create(scratch: &Scratch, name: &str, then: Then) -> Result<()> {
    let code = code(then);
    let len = code.len() as u64;
    let mut bytes = Vec::from(*b"\x7fELF\x02\x01\x01");
    bytes.resize(16, 0);
    bytes.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [START, 64, 0] {
        bytes.extend(word.to_le_bytes());
    }
    for half in [0_u16, 0, 64, 56, 1, 0, 0, 0] {
        bytes.extend(half.to_le_bytes());
    }
    // One segment: loaded, read and executed.
    bytes.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [HEADER_BYTES, START, START, len, len, 16] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(code);
    std::fs::write(scratch.file(name), bytes)?;
    Ok(())
}

fn code(then: Then) -> Vec<u8> {
    let mut code: Vec<u8> = b"ready\r\n".iter().flat_map(|c| out(SERIAL, *c)).collect();
    let halt = [0xf4, 0xeb, 0xfd];
    match then {
        Then::Echo => {
            // mov dx, 0x3fd; in al, dx; test al, 1; jz to the input; mov dx, 0x3f8; in al, dx; out dx, al; jmp back
            code.extend([0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 1, 0x74, 0xfb]);
            code.extend([0x66, 0xba, 0xf8, 0x03, 0xec, 0xee, 0xeb, 0xef]);
        }
        Then::Halt => code.extend(halt),
        Then::Fault => code.extend([0x0f, 0x0b]),
        Then::Reset => {}
        Then::Talk(bytes) => {
            // mov ecx, bytes; mov dx, port; mov al, 'x'; out dx, al; loop to the output
            code.push(0xb9);
            code.extend(bytes.to_le_bytes());
            code.extend(out(SERIAL, b'x'));
            code.extend([0xe2, 0xfd]);
        }
    }
    if matches!(then, Then::Reset | Then::Talk(_)) {
        code.extend(out(KEYBOARD, 0xfe));
        code.extend(halt);
    }
    code
}

/// `mov dx, port; mov al, value; out dx, al`
fn out(port: u16, value: u8) -> [u8; 7] {
    let [low, high] = port.to_le_bytes();
    [0x66, 0xba, low, high, 0xb0, value, 0xee]
}
