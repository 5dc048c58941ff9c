//! What a store to a page without memory means to the host.

use super::trap::VECTORS;
use super::{doorbell_gpa, trap_gpa};
use crate::hypervisor::Exit;
use instar_shared::doorbell::{KICK_OFFSET, WAIT_OFFSET};

/// Exception class of a data abort that a guest caused. Arm ARM, ESR_EL2.EC.
const EC_DATA_ABORT: u64 = 0x24;
/// Number of the register that reads as zero.
const ZERO_REGISTER: u8 = 31;

/// A store as the syndrome of a data abort describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Store {
    /// The register stored, X0 to X30; `None`: zero.
    pub register: Option<u8>,
    /// How many of its bytes: 1, 2, 4 or 8.
    pub bytes: u8,
}

impl Store {
    /// Reads an ESR_EL2 value; `None` if it is not one plain store of a general register.
    /// Arm ARM, section D24.2, ESR_EL2, "ISS encoding for an exception from a Data Abort".
    #[must_use]
    pub fn decode(syndrome: u64) -> Option<Self> {
        let field = |shift: u32, bits: u64| u8::try_from(syndrome >> shift & bits).ok();
        let class = syndrome >> 26 & 0x3f;
        let (valid, cache_operation, write) = (field(24, 1)?, field(8, 1)?, field(6, 1)?);
        if class != EC_DATA_ABORT || (valid, cache_operation, write) != (1, 0, 1) {
            return None;
        }
        let register = field(16, 0x1f).filter(|register| *register != ZERO_REGISTER);
        Some(Self {
            register,
            bytes: 1 << field(22, 3)?,
        })
    }
}

/// The exit for a store of `bytes` bytes with this `value` at `gpa`, outside a slot of `slot_size`.
#[must_use]
pub fn exit_of_store(slot_size: u64, gpa: u64, bytes: usize, value: u32) -> Exit {
    let doorbell = gpa.checked_sub(doorbell_gpa(slot_size));
    let trap = gpa
        .checked_sub(trap_gpa(slot_size))
        .filter(|offset| offset.is_multiple_of(4));
    let vector = trap
        .and_then(|offset| u8::try_from(offset / 4).ok())
        .filter(|vector| *vector < VECTORS);
    match (bytes, doorbell, vector) {
        (4, Some(KICK_OFFSET), _) => Exit::Kick(value),
        (4, Some(WAIT_OFFSET), _) => Exit::Wait(value),
        (4, _, Some(vector)) => Exit::Trap(vector),
        _ => Exit::Stopped(format!(
            "write of {bytes} bytes to {gpa:#x}, where there is no memory"
        )),
    }
}
