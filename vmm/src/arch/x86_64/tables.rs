//! GDT, IDT and TSS. Intel SDM vol. 3A, §3.5, §7.10 to §7.14, §8.2, §8.7.

use super::{place, trap};
use crate::VmError;
use crate::memory::GuestSlot;
use instar_shared::doorbell::{KICK_PORT, TRAP_VECTORS, WAIT_PORT};
use instar_shared::layout::{MAX_VCPUS, PAGE_SIZE};

/// A segment as a vCPU register wants it.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Selector with its privilege level.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes.
    pub limit: u32,
    /// Type field of the descriptor.
    pub kind: u8,
    /// Descriptor privilege level.
    pub dpl: u8,
    /// Code or data (true), or system (false).
    pub code_or_data: bool,
    /// 64-bit code.
    pub long: bool,
}

/// A descriptor-table register: where and how long.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Linear address.
    pub base: u64,
    /// Length in bytes less one.
    pub limit: u16,
}

const CODE_ACCESSED: u8 = 0xb;
const DATA_ACCESSED: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;
const INTERRUPT_GATE: u8 = 0xe;
const TSS_BYTES: u16 = 104;
/// Bytes of the permission bitmap: up to the last doorbell port.
const IO_BITMAP_BYTES: u16 = (WAIT_PORT + 4).div_ceil(8);

/// Ring 0 code: only the trap page.
pub const KERNEL_CODE: Segment = Segment {
    selector: 0x08,
    base: 0,
    limit: u32::MAX,
    kind: CODE_ACCESSED,
    dpl: 0,
    code_or_data: true,
    long: true,
};
/// Ring 3 data and stack.
pub const USER_DATA: Segment = Segment {
    selector: 0x1b,
    base: 0,
    limit: u32::MAX,
    kind: DATA_ACCESSED,
    dpl: 3,
    code_or_data: true,
    long: false,
};
/// Ring 3 code.
pub const USER_CODE: Segment = Segment {
    selector: 0x23,
    base: 0,
    limit: u32::MAX,
    kind: CODE_ACCESSED,
    dpl: 3,
    code_or_data: true,
    long: true,
};
/// The task register of vCPU `index`: its TSS with the I/O permission bitmap and its closing byte.
pub const fn task(index: u8) -> Segment {
    Segment {
        selector: 0x28 + 16 * index as u16,
        base: place::tss(index),
        limit: (TSS_BYTES + IO_BITMAP_BYTES) as u32,
        kind: TSS_BUSY,
        dpl: 0,
        code_or_data: false,
        long: false,
    }
}
/// The GDT register.
pub const GDT: Table = Table {
    base: place::GDT,
    limit: (5 + 2 * MAX_VCPUS as u16) * 8 - 1,
};
/// The IDT register.
pub const IDT: Table = Table {
    base: place::IDT,
    limit: TRAP_VECTORS as u16 * 16 - 1,
};

const _: () = assert!(((TSS_BYTES + IO_BITMAP_BYTES) as u64) < PAGE_SIZE);

/// Writes GDT and IDT, and a TSS for each of `vcpus`.
pub fn install(slot: &GuestSlot, vcpus: u8) -> Result<(), VmError> {
    let flat = [
        0,
        descriptor(KERNEL_CODE),
        0,
        descriptor(USER_DATA),
        descriptor(USER_CODE),
    ];
    let tasks = (0..vcpus).map(task);
    let tasks = tasks.flat_map(|task| [descriptor(task), task.base >> 32]);
    let gdt: Vec<u8> = flat
        .into_iter()
        .chain(tasks)
        .flat_map(u64::to_le_bytes)
        .collect();
    slot.write(place::GDT, &gdt)?;
    let idt: Vec<u8> = (0..TRAP_VECTORS)
        .flat_map(|vector| gate(trap::stub_address(vector)))
        .collect();
    slot.write(place::IDT, &idt)?;
    for vcpu in 0..vcpus {
        slot.write(place::tss(vcpu), &task_state(vcpu))?;
    }
    Ok(())
}

/// An 8-byte descriptor (the low half of a 16-byte one). SDM vol. 3A, §3.4.5.
pub fn descriptor(segment: Segment) -> u64 {
    let pages = segment.limit > 0xf_ffff;
    let limit = u64::from(if pages {
        segment.limit >> 12
    } else {
        segment.limit
    });
    let access = u64::from(segment.kind)
        | u64::from(segment.code_or_data) << 4
        | u64::from(segment.dpl) << 5
        | 1 << 7;
    let flags = u64::from(segment.long) << 1
        | u64::from(!segment.long && segment.code_or_data) << 2
        | u64::from(pages) << 3;
    (limit & 0xffff)
        | (segment.base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16) << 48
        | flags << 52
        | (segment.base >> 24 & 0xff) << 56
}

/// A 64-bit interrupt gate on the trap stack (IST 1). SDM vol. 3A, §7.14.1.
fn gate(handler: u64) -> [u8; 16] {
    let low = (handler & 0xffff)
        | u64::from(KERNEL_CODE.selector) << 16
        | 1 << 32
        | u64::from(INTERRUPT_GATE | 1 << 7) << 40
        | (handler >> 16 & 0xffff) << 48;
    let mut out = [0; 16];
    let (first, second) = out.split_at_mut(8);
    first.copy_from_slice(&low.to_le_bytes());
    second.copy_from_slice(&(handler >> 32).to_le_bytes());
    out
}

/// The TSS: stacks for ring 0, and a bitmap that allows exactly the doorbell ports.
/// SDM vol. 3A, §8.7 and vol. 1, §19.5.2.
fn task_state(vcpu: u8) -> Vec<u8> {
    let mut tss = vec![0_u8; usize::from(TSS_BYTES)];
    let stack = trap::stack_top(vcpu).to_le_bytes();
    for offset in [4, 36] {
        // RSP0 and IST1.
        if let Some(field) = tss.get_mut(offset..offset + 8) {
            field.copy_from_slice(&stack);
        }
    }
    if let Some(field) = tss.get_mut(102..104) {
        field.copy_from_slice(&TSS_BYTES.to_le_bytes());
    }
    let allowed = |port: u16| {
        (KICK_PORT..KICK_PORT + 4).contains(&port) || (WAIT_PORT..WAIT_PORT + 4).contains(&port)
    };
    tss.extend((0..IO_BITMAP_BYTES).map(|byte| {
        (0..8).fold(0_u8, |bits, bit| {
            if allowed(byte * 8 + bit) {
                bits
            } else {
                bits | 1 << bit
            }
        })
    }));
    tss.push(0xff);
    tss
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_have_the_well_known_values() {
        // Flat 64-bit code and data descriptors as any x86-64 kernel has them, accessed bit set.
        assert_eq!(descriptor(KERNEL_CODE), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(USER_CODE), 0x00af_fb00_0000_ffff);
        assert_eq!(descriptor(USER_DATA), 0x00cf_f300_0000_ffff);
    }

    #[test]
    fn io_bitmap_allows_only_the_doorbells() {
        let tss = task_state(0);
        let open: Vec<usize> = (0..usize::from(IO_BITMAP_BYTES) * 8)
            .filter(|port| tss[usize::from(TSS_BYTES) + port / 8] & 1 << (port % 8) == 0)
            .collect();
        assert_eq!(open, (0x510..0x518).collect::<Vec<_>>());
        assert_eq!(tss.last(), Some(&0xff));
    }
}
