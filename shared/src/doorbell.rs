//! Doorbells: the guest's only way to call the host.
//!
//! x86-64: a 32-bit `out` to [`KICK_PORT`] or [`WAIT_PORT`]; the TSS I/O
//! permission bitmap allows ring 3 exactly these ports. arm64: a 32-bit `str`
//! to [`crate::layout::ARM64_DOORBELL_PAGE`] plus [`KICK_OFFSET`] or
//! [`WAIT_OFFSET`].
//!
//! *Kick* returns at once. Its value names what to look at: a device slot and
//! queue, or one of the [`Control`] targets, which are done when it returns. Only
//! [`Control::Serve`] may block.
//! *Wait* blocks until a completion is published; its value says nothing. To
//! wait with no request in flight is an error, since nothing could end it.
//!
//! A machine may have further vCPUs. They start at the program's entry point, with
//! their number where the first argument of a C function goes, when the first
//! vCPU kicks them ([`Kick::Vcpu`]) for the first time. All that they may ring is a kick of
//! vCPU 0, which ends its wait, [`Control::Panic`], and wait: it blocks until they are kicked
//! again. While one of them is not blocked, vCPU 0 may wait without a request in flight.

/// The kick port (x86-64), 4 bytes wide.
pub const KICK_PORT: u16 = 0x510;
/// The wait port (x86-64), 4 bytes wide.
pub const WAIT_PORT: u16 = 0x514;
/// First of the 32 trap ports (x86-64), one per exception vector; only ring 0 may write them.
pub const TRAP_PORT_BASE: u8 = 0x80;
/// Exception vectors 0..32 that have a stub.
pub const TRAP_VECTORS: u8 = 32;

/// Offset of the kick doorbell in the arm64 doorbell page.
pub const KICK_OFFSET: u64 = 0;
/// Offset of the wait doorbell in the arm64 doorbell page.
pub const WAIT_OFFSET: u64 = 8;

/// Kick values from here on name a [`Control`] target instead of a device.
pub const CONTROL_BASE: u32 = 0xffff_0000;

wire_enum! {
    /// What a kick may ask of the host besides looking at a queue.
    pub enum Control: u32 {
        /// The operation is done; its result stands in the result region.
        Exit = 0xffff_0000,
        /// Take the records; see [`crate::record`].
        Drain = 0xffff_0001,
        /// Open the file that the control page asks for.
        OpenFile = 0xffff_0002,
        /// Grant the memory that the control page asks for.
        GrantMemory = 0xffff_0003,
        /// The guest panicked; the last record says why. Not resumed.
        Panic = 0xffff_0004,
        /// Let the output that the control page names be filled.
        AnnounceSize = 0xffff_0005,
        /// Of a resident operation: take what it has answered, and ask it again; see [`crate::live`]. The one kick that
        /// may block: until there is something to ask.
        Serve = 0xffff_0006,
    }
}

/// Kick values from here on name a vCPU.
pub const VCPU_BASE: u32 = 0xffff_0100;

/// What a kick value means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kick {
    /// Look at `queue` of device `slot`.
    Queue {
        /// Device slot, below [`crate::device::MAX_DEVICES`].
        slot: u16,
        /// Queue of that device; virtio-blk has one, 0.
        queue: u8,
    },
    /// Do this control request.
    Control(Control),
    /// Wake this vCPU: its wait returns, or the next one does at once.
    Vcpu(u8),
}

impl Kick {
    /// The 32-bit doorbell value.
    #[must_use]
    pub const fn encode(self) -> u32 {
        match self {
            Self::Queue { slot, queue } => (slot as u32) << 8 | queue as u32,
            Self::Control(control) => control.raw(),
            Self::Vcpu(index) => VCPU_BASE | index as u32,
        }
    }

    /// Reads a doorbell value; `None` if it names nothing.
    #[must_use]
    pub fn decode(raw: u32) -> Option<Self> {
        if raw >= VCPU_BASE {
            let index = u8::try_from(raw.checked_sub(VCPU_BASE)?).ok()?;
            return (index < crate::layout::MAX_VCPUS).then_some(Self::Vcpu(index));
        }
        if raw >= CONTROL_BASE {
            return Control::try_from(raw).ok().map(Self::Control);
        }
        let slot = u16::try_from(raw >> 8)
            .ok()
            .filter(|slot| *slot < crate::device::MAX_DEVICES)?;
        let queue = u8::try_from(raw & 0xff).ok()?;
        Some(Self::Queue { slot, queue })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kick_decode_inverts_encode() {
        for slot in [0, 1, 1023] {
            let kick = Kick::Queue { slot, queue: 0 };
            assert_eq!(Kick::decode(kick.encode()), Some(kick));
        }
        for index in 0..crate::layout::MAX_VCPUS {
            let kick = Kick::Vcpu(index);
            assert_eq!(Kick::decode(kick.encode()), Some(kick));
        }
        for control in Control::ALL {
            let kick = Kick::Control(*control);
            assert_eq!(Kick::decode(kick.encode()), Some(kick));
        }
    }

    #[test]
    fn kick_decode_refuses_unknown_values() {
        for raw in [
            1024 << 8,
            0x00ff_ffff,
            0xfffe_ffff,
            0xffff_0007,
            0xffff_0104,
            u32::MAX,
        ] {
            assert_eq!(Kick::decode(raw), None, "{raw:#x}");
        }
    }
}
