//! How long a file may become that a guest writes.

use crate::input::Growth;
use crate::output::FileFacts;

/// How far a file may be written once its size is announced.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    growth: Growth,
    /// Bytes that it holds already and keeps.
    kept_bytes: u64,
    /// It is made: the broker empties it.
    made: bool,
    /// It keeps its length, as a device does.
    device: bool,
}

impl Window {
    /// Of a file that is made anew, or changed.
    pub const fn of(growth: Growth, facts: &FileFacts, made: bool) -> Self {
        let device = facts.block_device || facts.character_device;
        Self {
            growth,
            kept_bytes: if made && !device { 0 } else { facts.len_bytes },
            made,
            device,
        }
    }

    /// Of a file that may not become longer or shorter, if `fixed`.
    pub const fn fixed(self, fixed: bool) -> Self {
        Self {
            device: self.device || fixed,
            ..self
        }
    }

    /// Whether the file is made anew.
    pub const fn is_made(self) -> bool {
        self.made
    }

    /// The greatest length of a file that is to hold `bytes` of new content.
    pub const fn max_len_bytes(self, bytes: u64) -> u64 {
        if self.device {
            self.kept_bytes
        } else {
            self.growth
                .max_len_bytes(self.kept_bytes.saturating_add(bytes))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIXED: u64 = 64 << 20;

    fn facts(block_device: bool) -> FileFacts {
        FileFacts {
            direct_align: 0,
            start_bytes: 0,
            name: "x".into(),
            given_name: "x".into(),
            len_bytes: 1000,
            disk_bytes: 0,
            block_device,
            character_device: false,
            parent_slot: None,
        }
    }

    #[test]
    fn what_is_made_counts_from_nothing_and_what_is_changed_from_its_length() {
        let most = |made| Window::of(Growth::default(), &facts(false), made).max_len_bytes(500);
        assert_eq!(most(true), 550 + FIXED);
        assert_eq!(most(false), 1650 + FIXED);
        let exact = Growth::AtMost { extra_bytes: 7 };
        let window = Window::of(exact, &facts(false), true);
        assert_eq!(window.max_len_bytes(500), 507);
        assert_eq!(window.max_len_bytes(u64::MAX), u64::MAX);
    }

    #[test]
    fn device_keeps_its_length() {
        for made in [false, true] {
            let window = Window::of(Growth::Unlimited, &facts(true), made);
            assert_eq!(window.max_len_bytes(u64::MAX), 1000);
            assert_eq!(window.is_made(), made);
        }
    }
}
