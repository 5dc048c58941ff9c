//! The machines that guest programs are built for.

/// Machine of a guest; it is always the machine of the host that runs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestArch {
    /// x86-64.
    X86_64,
    /// arm64.
    Aarch64,
}

impl GuestArch {
    /// Every machine.
    pub const ALL: &'static [Self] = &[Self::X86_64, Self::Aarch64];

    /// The Rust target that guests of this machine are compiled for.
    ///
    /// `x86_64-unknown-none` has no SSE, so x86-64 guests take the musl target
    /// and link neither its C library nor its start files.
    #[must_use]
    pub const fn target(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64-unknown-linux-musl",
            Self::Aarch64 => "aarch64-unknown-none",
        }
    }

    /// The machine that cargo calls `name` in `CARGO_CFG_TARGET_ARCH`.
    #[must_use]
    pub fn from_cargo(name: &str) -> Option<Self> {
        match name {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_cargo_knows_the_first_word_of_each_target() {
        for arch in GuestArch::ALL {
            let name = arch.target().split('-').next().unwrap();
            assert_eq!(GuestArch::from_cargo(name), Some(*arch));
        }
        assert_eq!(GuestArch::from_cargo("riscv64"), None);
    }
}
