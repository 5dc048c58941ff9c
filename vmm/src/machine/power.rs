//! What switches the machine off, resets it, and has the guest do so: ACPI's sleep and reset registers, the power button,
//! and the keyboard controller's reset. ACPI 6.5 §4.8.3.

use super::acpi::{POWER_BUTTON, SLEEP_TYPE_OFF};
use super::control::Outcome;
use super::irq::Line;
use super::layout;
use super::life::Life;
use instar_devices::bus::BusDevice;
use instar_devices::msi::IrqLine;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// Sleep control: enables sleep; the type is in bits 2 to 4. ACPI 6.5 §4.8.3.7.
const SLEEP_ENABLE: u8 = 1 << 5;
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_TYPE_MASK: u8 = 7;
/// Keyboard controller: offset of the command and status port, and the command that pulses the reset line.
const COMMAND_PORT: u64 = 4;
const PULSE_RESET: u8 = 0xfe;

/// Real-mode instructions at [`layout::RESET_VECTOR`]: they reset by the keyboard controller. A Linux that finds hardware-
/// reduced ACPI wants EFI to reset it; where there is no EFI it goes back to real mode and jumps here.
///
/// `mov al, 0xfe; out 0x64, al; hlt; jmp` to the `hlt`.
pub const RESET_CODE: [u8; 7] = [0xb0, PULSE_RESET, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];

/// The button; anybody may press it.
#[derive(Debug)]
pub struct PowerButton {
    events: AtomicU32,
    line: Line,
}

impl PowerButton {
    /// A button that interrupts by `line`.
    pub fn new(line: Line) -> Arc<Self> {
        Arc::new(Self {
            events: AtomicU32::new(0),
            line,
        })
    }

    /// Presses it.
    pub fn press(&self) {
        self.events.fetch_or(POWER_BUTTON, Ordering::SeqCst);
        self.line.pulse();
    }
}

/// The registers at [`layout::ACPI_EVENTS_START`].
#[derive(Debug)]
pub struct AcpiRegisters {
    /// Whose events the first register has.
    pub button: Arc<PowerButton>,
    /// What sleep and reset end.
    pub life: Arc<Life>,
}

impl BusDevice for AcpiRegisters {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if offset == layout::ACPI_EVENTS_STATUS && data.len() == 4 {
            let events = self.button.events.swap(0, Ordering::SeqCst);
            data.copy_from_slice(&events.to_le_bytes());
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (layout::ACPI_SLEEP_CONTROL, [value]) => {
                let kind = value >> SLEEP_TYPE_SHIFT & SLEEP_TYPE_MASK;
                if value & SLEEP_ENABLE != 0 && kind == SLEEP_TYPE_OFF {
                    self.life.end(Outcome::PowerOff);
                }
            }
            (layout::ACPI_RESET, [layout::ACPI_RESET_VALUE]) => self.life.end(Outcome::Reset),
            _ => {}
        }
    }
}

/// A keyboard controller that has no keyboard: it is always ready, and resets.
#[derive(Debug)]
pub struct KeyboardController {
    /// What a reset ends.
    pub life: Arc<Life>,
}

impl BusDevice for KeyboardController {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if (offset, data) == (COMMAND_PORT, &[PULSE_RESET]) {
            self.life.end(Outcome::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn life() -> Arc<Life> {
        Arc::new(Life::new().unwrap())
    }

    #[test]
    fn the_registers_switch_off_and_reset() {
        let ending = |offset: u64, value: u8| {
            let life = life();
            let event = crate::machine::events::event("a test").unwrap();
            let mut registers = AcpiRegisters {
                button: PowerButton::new(Line::unconnected(event)),
                life: Arc::clone(&life),
            };
            registers.write(offset, &[value]);
            life.outcome()
        };
        assert_eq!(
            ending(layout::ACPI_SLEEP_CONTROL, 5 << 2 | 1 << 5),
            Some(Outcome::PowerOff)
        );
        assert_eq!(ending(layout::ACPI_SLEEP_CONTROL, 5 << 2), None);
        assert_eq!(ending(layout::ACPI_SLEEP_CONTROL, 1 << 2 | 1 << 5), None);
        assert_eq!(ending(layout::ACPI_RESET, 1), Some(Outcome::Reset));
        assert_eq!(ending(layout::ACPI_RESET, 0), None);
        let life = life();
        let mut keyboard = KeyboardController {
            life: Arc::clone(&life),
        };
        keyboard.write(0, &[PULSE_RESET]);
        assert_eq!(life.outcome(), None);
        keyboard.write(4, &[PULSE_RESET]);
        assert_eq!(life.outcome(), Some(Outcome::Reset));
    }

    #[test]
    fn a_press_interrupts_and_is_read_once() {
        let event = crate::machine::events::event("a test").unwrap();
        let seen = event.try_clone().unwrap();
        let button = PowerButton::new(Line::unconnected(event));
        let mut registers = AcpiRegisters {
            button: Arc::clone(&button),
            life: life(),
        };
        let mut read = || {
            let mut data = [0xff; 4];
            registers.read(layout::ACPI_EVENTS_STATUS, &mut data);
            u32::from_le_bytes(data)
        };
        assert_eq!(read(), 0);
        button.press();
        assert_eq!(seen.read().unwrap(), 1);
        assert_eq!((read(), read()), (POWER_BUTTON, 0));
    }
}
