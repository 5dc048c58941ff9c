//! Keys that are not the guest's: Ctrl-A x ends the machine, Ctrl-A Ctrl-A is one Ctrl-A for the guest.

use super::control::Outcome;
use super::life::Life;
use std::sync::Arc;

const ESCAPE: u8 = 0x01;
const END: u8 = b'x';

/// What comes from a line, before the guest gets it.
#[derive(Debug)]
pub struct Keys {
    /// None if the line is no terminal: the guest gets everything.
    life: Option<Arc<Life>>,
    escaped: bool,
}

impl Keys {
    /// Keys of a `terminal`, which may end `life`, or bytes of something else.
    pub fn new(terminal: bool, life: &Arc<Life>) -> Self {
        Self {
            life: terminal.then(|| Arc::clone(life)),
            escaped: false,
        }
    }

    /// What the guest gets of `typed`.
    pub fn filter(&mut self, typed: &[u8]) -> Vec<u8> {
        let Some(life) = &self.life else {
            return typed.to_vec();
        };
        let mut kept = Vec::with_capacity(typed.len());
        for key in typed {
            match (std::mem::take(&mut self.escaped), *key) {
                (false, ESCAPE) => self.escaped = true,
                (true, END) => life.end(Outcome::Quit),
                // What comes after the escape key has no meaning of its own, but the escape key again.
                (true, ESCAPE) | (false, _) => kept.push(*key),
                (true, _) => {}
            }
        }
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_escape_key_and_x_end_the_machine() {
        let life = Arc::new(Life::new().unwrap());
        let mut keys = Keys::new(true, &life);
        assert_eq!(keys.filter(b"ab\x01\x01c\x01?d\x01"), b"ab\x01cd");
        assert_eq!(life.outcome(), None);
        assert_eq!(keys.filter(b"xe"), b"e");
        assert_eq!(life.outcome(), Some(Outcome::Quit));
        let life = Arc::new(Life::new().unwrap());
        assert_eq!(Keys::new(false, &life).filter(b"\x01x"), b"\x01x");
        assert_eq!(life.outcome(), None);
    }
}
