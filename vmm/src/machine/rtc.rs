//! The CMOS clock: the host's time, in UTC. Motorola MC146818A.
//!
//! It tells the time and cannot be set; it has no alarms and never interrupts.

use instar_devices::bus::BusDevice;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Bytes of CMOS memory; the first ones are the clock's registers.
const BYTES: usize = 128;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Divider on, 1024 Hz; no update is ever in progress.
const A_RUNNING: u8 = 0x26;
/// 24 hours; numbers are binary-coded decimals.
const B_24_HOURS: u8 = 1 << 1;
/// Numbers are binary.
const B_BINARY: u8 = 1 << 2;
/// The battery is good.
const D_VALID: u8 = 1 << 7;

/// Seconds since 1970, in UTC.
pub type Now = fn() -> u64;

/// Ports: index and data.
pub struct Rtc {
    now: Now,
    index: u8,
    status_b: u8,
    memory: [u8; BYTES],
}

impl fmt::Debug for Rtc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rtc = f.debug_struct("Rtc");
        rtc.field("index", &self.index).finish_non_exhaustive()
    }
}

impl Rtc {
    /// A clock that shows the host's time.
    pub fn new() -> Self {
        Self::with(|| {
            let since = SystemTime::now().duration_since(UNIX_EPOCH);
            since.map_or(0, |since| since.as_secs())
        })
    }

    fn with(now: Now) -> Self {
        Self {
            now,
            index: 0,
            status_b: B_24_HOURS,
            memory: [0; BYTES],
        }
    }

    fn register(&self) -> u8 {
        let date = Date::of((self.now)());
        let number = match self.index {
            0 => date.second,
            2 => date.minute,
            4 => date.hour,
            6 => date.weekday,
            7 => date.day,
            8 => date.month,
            9 => date.year_of_century,
            CENTURY => date.century,
            STATUS_A => return A_RUNNING,
            STATUS_B => return self.status_b,
            STATUS_C => return 0,
            STATUS_D => return D_VALID,
            index => return self.memory.get(usize::from(index)).copied().unwrap_or(0),
        };
        if self.status_b & B_BINARY != 0 {
            number
        } else {
            ((number / 10) << 4) | (number % 10)
        }
    }

    fn set_register(&mut self, value: u8) {
        match self.index {
            // Whether numbers are binary may be chosen, and interrupts, which never come.
            STATUS_B => self.status_b = value | B_24_HOURS,
            STATUS_A | STATUS_C | STATUS_D => {}
            index => {
                if let Some(byte) = self.memory.get_mut(usize::from(index)) {
                    *byte = value;
                }
            }
        }
    }
}

impl BusDevice for Rtc {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if let (1, [value]) = (offset, data) {
            *value = self.register();
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            // The highest bit masks the non-maskable interrupt, which there is not.
            (0, [index]) => self.index = index & 0x7f,
            (1, [value]) => self.set_register(*value),
            _ => {}
        }
    }
}

/// A date and time of day, as the registers have them.
#[derive(Debug, PartialEq, Eq)]
struct Date {
    century: u8,
    year_of_century: u8,
    month: u8,
    day: u8,
    /// Sunday is 1.
    weekday: u8,
    hour: u8,
    minute: u8,
    second: u8,
}

impl Date {
    /// Seconds since 1970; years past 9999 are as that one.
    fn of(seconds: u64) -> Self {
        let day = (seconds / 86_400).min(2_932_896);
        let time = seconds % 86_400;
        // Days since the first of March of the year 0, in eras of 400 years that are all alike.
        let days = day + 719_468;
        let (era, of_era) = (days / 146_097, days % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * of_year + 2) / 153;
        let month = if march_month < 10 {
            march_month + 3
        } else {
            march_month - 9
        };
        let year = era * 400 + year_of_era + u64::from(month <= 2);
        let byte = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
        Self {
            century: byte(year / 100),
            year_of_century: byte(year % 100),
            month: byte(month),
            day: byte(of_year - (153 * march_month + 2) / 5 + 1),
            // The first day was a Thursday.
            weekday: byte((day + 4) % 7 + 1),
            hour: byte(time / 3600),
            minute: byte(time / 60 % 60),
            second: byte(time % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn dates_are_those_of_the_date_command() {
        for seconds in [
            0,
            951_782_399,
            951_782_400,
            1_735_689_599,
            4_107_542_400,
            253_402_300_799,
        ] {
            let run = Command::new("date")
                .args([
                    "-u",
                    "-d",
                    &format!("@{seconds}"),
                    "+%C %y %m %d %w %H %M %S",
                ])
                .output()
                .unwrap();
            let text = String::from_utf8(run.stdout).unwrap();
            let mut numbers = text
                .split_whitespace()
                .map(|part| part.parse::<u8>().unwrap());
            let mut next = || numbers.next().unwrap();
            let date = Date {
                century: next(),
                year_of_century: next(),
                month: next(),
                day: next(),
                weekday: next() + 1,
                hour: next(),
                minute: next(),
                second: next(),
            };
            assert_eq!(Date::of(seconds), date, "{seconds}");
        }
    }

    #[test]
    fn registers_have_decimals_or_binary_numbers_as_the_guest_likes() {
        // 2000-02-29 23:59:58, a Tuesday.
        let mut rtc = Rtc::with(|| 951_868_798);
        let mut read = |index: u8, binary: bool| {
            rtc.write(0, &[STATUS_B]);
            rtc.write(1, &[if binary { B_BINARY } else { 0 }]);
            rtc.write(0, &[index]);
            let mut data = [0];
            rtc.read(1, &mut data);
            data[0]
        };
        let of = |binary| [0, 2, 4, 6, 7, 8, 9, CENTURY].map(|index| (index, binary));
        let decimal = of(false).map(|(index, binary)| read(index, binary));
        assert_eq!(decimal, [0x58, 0x59, 0x23, 3, 0x29, 2, 0, 0x20]);
        let numbers = of(true).map(|(index, binary)| read(index, binary));
        assert_eq!(numbers, [58, 59, 23, 3, 29, 2, 0, 20]);
        assert_eq!(read(STATUS_D, false), D_VALID);
        assert_eq!(read(STATUS_A, false) & 0x80, 0);
    }
}
