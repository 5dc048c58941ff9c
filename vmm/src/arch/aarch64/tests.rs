//! Tables read back from guest memory as the CPU's walker reads them, and traps and stores decoded.

use super::*;
use crate::hypervisor::Exit;
use instar_shared::doorbell::{KICK_OFFSET, WAIT_OFFSET};
use instar_shared::layout::{
    BOOT, HEAP_START, IMAGE, LARGE_PAGE_SIZE, MAX_SLOT_SIZE, STACK, SYSTEM,
};

const SLOT: u64 = 64 << 20;

/// What one exception level may do with a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rights {
    read: bool,
    write: bool,
    execute: bool,
}

const NOTHING: Rights = Rights {
    read: false,
    write: false,
    execute: false,
};
const READ: Rights = Rights {
    read: true,
    ..NOTHING
};
const READ_WRITE: Rights = Rights {
    read: true,
    write: true,
    execute: false,
};
const READ_EXECUTE: Rights = Rights {
    read: true,
    write: false,
    execute: true,
};

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Page {
    gpa: u64,
    el0: Rights,
    el1: Rights,
    memory_type: u8,
}

fn register(wanted: Register, slot_size: u64) -> u64 {
    let found = system_registers(slot_size)
        .into_iter()
        .find(|(register, _)| *register == wanted);
    found.unwrap().1
}

/// Translates as the Arm ARM's pseudocode does, from register values and guest memory alone.
fn translate(slot: &GuestSlot, address: u64) -> Option<Page> {
    let tcr = register(Register::Tcr, slot.size());
    let address_bits = 64 - (tcr & 0x3f);
    assert_eq!(tcr >> 14 & 3, 0, "4 KiB granule");
    if address >> address_bits != 0 {
        return None;
    }
    // Nine bits for each level above the page offset.
    let mut level = 4 - (address_bits - 12).div_ceil(9);
    let mut table = register(Register::Ttbr0, slot.size());
    loop {
        let shift = 12 + 9 * (3 - level);
        let entry = u64::from_le_bytes(slot.load(table + (address >> shift & 0x1ff) * 8).unwrap());
        match (entry & 3, level) {
            (3, 0..=2) => (table, level) = (entry & 0xffff_ffff_f000, level + 1),
            (1, 1 | 2) | (3, 3) => return Some(leaf(slot, entry, address, shift)),
            _ => return None,
        }
    }
}

fn leaf(slot: &GuestSlot, entry: u64, address: u64, shift: u64) -> Page {
    let bit = |n: u32| entry >> n & 1 != 0;
    let offset = address & ((1 << shift) - 1);
    let gpa = (entry & 0xffff_ffff_f000) + offset;
    let ips = register(Register::Tcr, slot.size()) >> 32 & 7;
    assert!(
        gpa < 1 << [32, 36, 40, 42, 44, 48][usize::try_from(ips).unwrap()],
        "the output fits TCR.IPS"
    );
    assert!(bit(10), "an access flag fault would not be served");
    let (el0, writable) = (bit(6), !bit(7));
    let wxn = register(Register::Sctlr, slot.size()) >> 19 & 1 != 0;
    // EL1 never executes what EL0 may write; WXN: nobody executes what it may itself write.
    let el1_never = bit(53) || (writable && (el0 || wxn));
    let el0_never = bit(54) || (writable && el0 && wxn);
    let mair = register(Register::Mair, slot.size());
    Page {
        gpa,
        el0: Rights {
            read: el0,
            write: el0 && writable,
            execute: !el0_never,
        },
        el1: Rights {
            read: true,
            write: writable,
            execute: !el1_never,
        },
        memory_type: (mair >> (8 * (entry >> 2 & 7)) & 0xff).to_le_bytes()[0],
    }
}

fn installed() -> std::sync::Arc<GuestSlot> {
    let slot = GuestSlot::new(SLOT).unwrap();
    let map = |start, size, access| Mapping {
        start,
        size,
        access,
    };
    let user = [
        map(IMAGE.start, 0x3000, Access::ReadExecute),
        map(IMAGE.start + 0x4000, 0x1000, Access::ReadWrite),
        map(BOOT.start, BOOT.size, Access::Read),
        map(STACK.start, STACK.size, Access::ReadWrite),
        map(HEAP_START, SLOT - HEAP_START, Access::ReadWrite),
    ];
    install(&slot, &user, 1).unwrap();
    slot
}

#[test]
fn el0_has_exactly_the_rights_of_the_mapping() {
    let slot = installed();
    for (address, rights) in [
        (IMAGE.start + 0x2ffc, READ_EXECUTE),
        (IMAGE.start + 0x4008, READ_WRITE),
        (BOOT.start, READ),
        (STACK.end() - 8, READ_WRITE),
        (HEAP_START, READ_WRITE),
        (SLOT - 1, READ_WRITE),
    ] {
        let page = translate(&slot, address).unwrap();
        assert_eq!(
            (page.gpa, page.el0, page.memory_type),
            (address, rights, 0xff),
            "{address:#x}"
        );
        assert!(
            !page.el1.execute,
            "EL1 executes only its vectors: {address:#x}"
        );
    }
}

#[test]
fn guards_and_tables_are_mapped_nowhere() {
    let slot = installed();
    let tables = register(Register::Ttbr0, SLOT);
    let guards = [
        0,
        IMAGE.start + 0x3000,
        STACK.start - 1,
        STACK.end(),
        SLOT,
        tables,
        SYSTEM.end() - 1,
    ];
    let outside = [
        ARM64_DOORBELL_PAGE - 1,
        place::TRAP_PAGE + PAGE_SIZE,
        1 << 39,
        u64::MAX,
    ];
    for address in guards.into_iter().chain(outside) {
        assert_eq!(translate(&slot, address), None, "{address:#x}");
    }
}

#[test]
fn doorbells_are_device_pages_that_lead_out_of_the_slot() {
    let slot = installed();
    let doorbell = translate(&slot, ARM64_DOORBELL_PAGE + WAIT_OFFSET).unwrap();
    assert_eq!(
        (doorbell.gpa, doorbell.el0, doorbell.memory_type),
        (SLOT + WAIT_OFFSET, READ_WRITE, 0)
    );
    assert!(!doorbell.el1.execute);
    let trap = translate(&slot, place::TRAP_PAGE).unwrap();
    assert_eq!(
        (trap.gpa, trap.el1, trap.memory_type),
        (SLOT + PAGE_SIZE, READ_WRITE, 0)
    );
    assert!(
        !trap.el0.read && !trap.el0.write && !trap.el0.execute,
        "a guest cannot fake a trap"
    );
}

#[test]
fn vectors_are_el1_code_that_stores_its_number() {
    let slot = installed();
    let base = register(Register::Vbar, SLOT);
    assert_eq!(base % 0x800, 0, "VBAR_EL1 is 2 KiB aligned");
    for vector in 0..16_u64 {
        let page = translate(&slot, base + vector * 0x80).unwrap();
        assert_eq!(page.el1, READ_EXECUTE);
        assert!(!page.el0.read && !page.el0.execute);
        let code: [u8; 8] = slot.load(page.gpa).unwrap();
        let (store, branch) = code.split_at(4);
        let store = u32::from_le_bytes(store.try_into().unwrap());
        // STR (immediate, unsigned offset), 32-bit: size 10, opc 00; Rn is SP, Rt is WZR.
        assert_eq!(store & 0xffc0_03ff, 0xb900_03ff);
        let target = TRAP_STACK_POINTER + u64::from(store >> 10 & 0xfff) * 4;
        let gpa = translate(&slot, target).unwrap().gpa;
        let number = u8::try_from(vector).unwrap();
        assert_eq!(exit_of_store(SLOT, gpa, 4, 0), Exit::Trap(number));
        assert_eq!(branch, 0x1400_0000_u32.to_le_bytes(), "b .");
    }
}

#[test]
fn malformed_and_overlapping_mappings_are_refused() {
    let slot = GuestSlot::new(SLOT).unwrap();
    let map = |start, size| Mapping {
        start,
        size,
        access: Access::ReadWrite,
    };
    for user in [
        vec![map(1, PAGE_SIZE)],
        vec![map(0, 1)],
        vec![map(u64::MAX - 0xfff, 2 * PAGE_SIZE)],
        vec![map((1 << 39) - PAGE_SIZE, 2 * PAGE_SIZE)],
        vec![map(IMAGE.start, PAGE_SIZE), map(IMAGE.start, PAGE_SIZE)],
        vec![map(HEAP_START, PAGE_SIZE), map(HEAP_START, LARGE_PAGE_SIZE)],
        vec![
            map(HEAP_START, LARGE_PAGE_SIZE),
            map(HEAP_START + PAGE_SIZE, PAGE_SIZE),
        ],
        vec![map(SYSTEM.start, PAGE_SIZE)],
        vec![map(ARM64_DOORBELL_PAGE, PAGE_SIZE)],
    ] {
        assert!(
            matches!(install(&slot, &user, 1), Err(VmError::Image(_))),
            "{user:x?}"
        );
    }
}

#[test]
fn the_largest_slot_fits_the_tables() {
    let mut tables = paging::Tables::new();
    let size =
        MAX_SLOT_SIZE.min(ARM64_DOORBELL_PAGE - ARM64_DOORBELL_PAGE % LARGE_PAGE_SIZE) - HEAP_START;
    tables
        .map_user(Mapping {
            start: HEAP_START,
            size,
            access: Access::ReadWrite,
        })
        .unwrap();
    tables
        .map_doorbell(ARM64_DOORBELL_PAGE, doorbell_gpa(HEAP_START + size))
        .unwrap();
    tables.store(&GuestSlot::new(SLOT).unwrap()).unwrap();
}

#[test]
fn a_slot_that_reaches_the_doorbells_is_refused() {
    let too_large = (ARM64_DOORBELL_PAGE + 1).next_multiple_of(LARGE_PAGE_SIZE);
    let slot = GuestSlot::new(too_large).unwrap();
    assert!(matches!(
        install(&slot, &[], 1),
        Err(VmError::Memory { .. })
    ));
}

#[test]
fn control_registers_have_the_values_of_the_manual() {
    let sctlr = register(Register::Sctlr, SLOT);
    let set = |n: u32| sctlr >> n & 1 != 0;
    for (bit, name) in [
        (0, "M"),
        (2, "C"),
        (3, "SA"),
        (4, "SA0"),
        (12, "I"),
        (14, "DZE"),
        (15, "UCT"),
        (19, "WXN"),
        (23, "SPAN"),
        (26, "UCI"),
    ] {
        assert!(set(bit), "{name}");
    }
    for (bit, name) in [
        (1, "A"),
        (9, "UMA"),
        (16, "nTWI"),
        (18, "nTWE"),
        (24, "E0E"),
        (25, "EE"),
    ] {
        assert!(!set(bit), "{name}");
    }
    // Level-1 start, cacheable inner-shareable walks, no upper half; 32, 36 and 48 address bits.
    assert_eq!(register(Register::Tcr, SLOT), 0x8099_3519);
    assert_eq!(register(Register::Tcr, 8 << 30), 0x1_8099_3519);
    assert_eq!(
        register(Register::Tcr, (1 << 36) - PAGE_SIZE),
        0x2_8099_3519
    );
    assert_eq!(register(Register::Cpacr, SLOT), 0x30_0000);
    assert_eq!(register(Register::Cntkctl, SLOT), 2);
    assert_eq!(EL0_PSTATE, 0x3c0);
    assert_eq!(Register::Sctlr.encoding(), 0xc080);
    assert_eq!(
        system_registers(SLOT).last().unwrap().0,
        Register::Sctlr,
        "translation goes on last"
    );
}

#[test]
fn cpu_features_follow_isar0() {
    use instar_shared::boot::cpu::{AES, SHA};
    assert_eq!(cpu_features(0), 0);
    assert_eq!(cpu_features(0x20), AES);
    assert_eq!(cpu_features(0x1110), AES | SHA);
    assert_eq!(cpu_features(0x1000), 0, "SHA-256 without SHA-1");
}

#[test]
fn stores_to_the_doorbells_are_exits() {
    let doorbell = doorbell_gpa(SLOT);
    assert_eq!(
        exit_of_store(SLOT, doorbell + KICK_OFFSET, 4, 0xffff_0000),
        Exit::Kick(0xffff_0000)
    );
    assert_eq!(
        exit_of_store(SLOT, doorbell + WAIT_OFFSET, 4, 7),
        Exit::Wait(7)
    );
    assert_eq!(
        exit_of_store(SLOT, trap_gpa(SLOT) + 8 * 4, 4, 0),
        Exit::Trap(8)
    );
    for (gpa, bytes) in [
        (doorbell + KICK_OFFSET, 8),
        (doorbell + WAIT_OFFSET, 1),
        (doorbell + 4, 4),
        (trap_gpa(SLOT) + 2, 4),
        (trap_gpa(SLOT) + 64, 4),
        (end_gpa(SLOT), 4),
        (0, 4),
        (u64::MAX, 4),
    ] {
        let exit = exit_of_store(SLOT, gpa, bytes, 1);
        assert!(matches!(exit, Exit::Stopped(_)), "{gpa:#x} {exit:?}");
    }
}

#[test]
fn syndromes_of_plain_stores_are_decoded() {
    // EC 0x24, IL, ISV; SAS 2 (32 bits); SRT 5; WnR; translation fault at level 3.
    let word = 0x24 << 26 | 1 << 25 | 1 << 24 | 2 << 22 | 5 << 16 | 1 << 6 | 7;
    assert_eq!(
        Store::decode(word),
        Some(Store {
            register: Some(5),
            bytes: 4
        })
    );
    assert_eq!(
        Store::decode(word | 31 << 16),
        Some(Store {
            register: None,
            bytes: 4
        }),
        "xzr"
    );
    assert_eq!(
        Store::decode(word | 3 << 22),
        Some(Store {
            register: Some(5),
            bytes: 8
        })
    );
    assert_eq!(Store::decode(word & !(1 << 6)), None, "a load");
    assert_eq!(
        Store::decode(word & !(1 << 24)),
        None,
        "a pair or an atomic: no syndrome"
    );
    assert_eq!(Store::decode(word | 1 << 8), None, "cache maintenance");
    assert_eq!(Store::decode(word ^ 4 << 26), None, "an instruction abort");
}

fn trap(vector: u8, class: u64, iss: u64) -> crate::arch::TrapFrame {
    let state = TrapState {
        syndrome: class << 26 | 1 << 25 | iss,
        instruction: 0x20_0010,
        stack: 0x143_ffc0,
        fault_address: 0xdead,
    };
    decode(vector, &state)
}

#[test]
fn memory_faults_name_their_address() {
    for (class, iss, detail) in [
        (0x24, 0x46, "write to unmapped"),
        (0x24, 0x07, "read of unmapped"),
        (0x24, 0x4f, "write to protected"),
        (0x24, 0x0f, "read of protected"),
        (0x24, 0x21, "unaligned access to"),
        (0x20, 0x0f, "execute"),
        (0x22, 0, "execute at unaligned"),
    ] {
        let frame = trap(8, class, iss);
        assert_eq!((u64::from(frame.vector), frame.error_code), (class, iss));
        assert_eq!(
            (frame.fault_address, frame.detail),
            (Some(0xdead), detail),
            "{class:#x} {iss:#x}"
        );
        assert_eq!((frame.instruction, frame.stack), (0x20_0010, 0x143_ffc0));
    }
    assert_eq!(trap(8, 0x24, 0x410).fault_address, None, "FAR is not valid");
}

#[test]
fn other_traps_have_names_and_no_address() {
    for (class, iss, name) in [
        (0x00, 0, "undefined instruction"),
        (0x01, 0, "wait instruction"),
        (0x15, 0, "system call"),
        (0x18, 0x300_0000, "system register access"),
        (0x3c, 1, "breakpoint instruction"),
        (0x3f, 0, "unknown exception"),
    ] {
        let frame = trap(8, class, iss & 0x1ff_ffff);
        assert_eq!(
            (frame.name, frame.fault_address, frame.detail),
            (name, None, ""),
            "{class:#x}"
        );
    }
    let interrupt = trap(9, 0x24, 0x46);
    assert_eq!(
        (interrupt.name, interrupt.vector, interrupt.error_code),
        ("interrupt", 0x49, 0)
    );
    assert_eq!((interrupt.fault_address, interrupt.detail), (None, ""));
    assert_eq!(trap(11, 0, 0).name, "system error");
}
