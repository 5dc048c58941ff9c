//! Ring 3 on real KVM: hand-assembled instructions and what becomes of them.

use super::Kvm;
use crate::arch::{self, Access, Mapping, TrapFrame};
use crate::hypervisor::{Exit, Hypervisor, UserEntry, Vcpu, Vm};
use crate::memory::GuestSlot;
use instar_shared::layout::{IMAGE, PAGE_SIZE, STACK, SYSTEM};
use std::sync::Arc;

const CODE: u64 = IMAGE.start;

/// Runs `code` at ring 3 up to its first exit that is not the tick.
fn run(code: &[u8]) -> (Exit, Option<TrapFrame>) {
    let slot = GuestSlot::new(64 << 20).unwrap();
    slot.write(CODE, code).unwrap();
    let text = Mapping {
        start: CODE,
        size: PAGE_SIZE,
        access: Access::ReadExecute,
    };
    let stack = Mapping {
        start: STACK.start,
        size: STACK.size,
        access: Access::ReadWrite,
    };
    arch::native::install(&slot, &[text, stack], 1).unwrap();
    let vm = Kvm::open().unwrap().create_vm(Arc::clone(&slot)).unwrap();
    vm.map_memory(0, slot.size()).unwrap();
    let entry = UserEntry {
        entry_gva: CODE,
        stack_gva: STACK.end() - 64,
        argument: 0,
    };
    let mut vcpu = vm.create_vcpu(0, &entry).unwrap();
    loop {
        match vcpu.run().unwrap() {
            Exit::Interrupted => {}
            Exit::Trap(vector) => {
                let frame = vcpu.trap_frame(&slot, vector).unwrap();
                return (Exit::Trap(vector), Some(frame));
            }
            other => return (other, None),
        }
    }
}

fn trap(code: &[u8]) -> TrapFrame {
    match run(code) {
        (Exit::Trap(_), Some(frame)) => frame,
        other => panic!("{code:02x?} did not trap: {other:?}"),
    }
}

#[test]
fn doorbells_reach_the_host_with_their_value() {
    // mov edx, 0x510; mov eax, 0x12345678; out dx, eax
    let kick = [0xba, 0x10, 0x05, 0, 0, 0xb8, 0x78, 0x56, 0x34, 0x12, 0xef];
    assert_eq!(run(&kick).0, Exit::Kick(0x1234_5678));
    // mov edx, 0x514; mov eax, 7; out dx, eax
    let wait = [0xba, 0x14, 0x05, 0, 0, 0xb8, 7, 0, 0, 0, 0xef];
    assert_eq!(run(&wait).0, Exit::Wait(7));
}

#[test]
fn privileged_and_forbidden_instructions_trap_where_they_stand() {
    let general_protection: &[(&str, &[u8])] = &[
        ("hlt", &[0xf4]),
        ("cli", &[0xfa]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0]),
        ("mov cr3, rax", &[0x0f, 0x22, 0xd8]),
        ("rdmsr", &[0x0f, 0x32]),
        ("lgdt [rsp]", &[0x0f, 0x01, 0x14, 0x24]),
        ("out 0x80, al (a trap port)", &[0xe6, 0x80]),
        ("in al, 0x60", &[0xe4, 0x60]),
        (
            "iretq with NT set",
            &[0x9c, 0x81, 0x0c, 0x24, 0, 0x40, 0, 0, 0x9d, 0x48, 0xcf],
        ),
    ];
    for (what, code) in general_protection {
        assert_eq!(trap(code).vector, 13, "{what}");
    }
    // The gates are ring 0's: a general protection fault by the manual. kvm_pvm says invalid
    // opcode, and delivers breakpoints as themselves. All end in the trap page.
    for (number, allowed) in [(3, [3, 13]), (14, [6, 13]), (0x80, [6, 13])] {
        assert!(
            allowed.contains(&trap(&[0xcd, number]).vector),
            "int {number:#x}"
        );
    }
    // SYSCALL is off: an invalid opcode. kvm_pvm, which has to take it for its own use, jumps to the
    // entry point that ring 0 never set, address 0, where user mode faults.
    assert!(matches!(trap(&[0x0f, 0x05]).vector, 6 | 14), "syscall");
    assert_eq!(trap(&[0x0f, 0x0b]).vector, 6, "ud2");
    assert_eq!(trap(&[0x31, 0xc9, 0xf7, 0xf1]).vector, 0, "div by zero");
    // nop; hlt: the report names the second instruction.
    let frame = trap(&[0x90, 0xf4]);
    assert_eq!(
        (frame.instruction, frame.stack),
        (CODE + 1, STACK.end() - 64)
    );
}

#[test]
fn memory_faults_name_their_address() {
    // mov [abs], al with the address in eax: mov eax, imm32; mov [rax], al
    let write = |address: u64| {
        let mut code = vec![0xb8];
        code.extend(u32::try_from(address).unwrap().to_le_bytes());
        code.extend([0x88, 0x00]);
        trap(&code)
    };
    for (address, detail) in [
        (0, "write to unmapped"),
        (CODE, "write to protected"),
        (SYSTEM.start, "write to protected"),
        (SYSTEM.start + 16 * PAGE_SIZE, "write to unmapped"),
        (STACK.start - 1, "write to unmapped"),
    ] {
        let frame = write(address);
        assert_eq!(
            (frame.vector, frame.fault_address, frame.detail),
            (14, Some(address), detail),
            "{address:#x}"
        );
    }
    // mov eax, STACK.start; jmp rax
    let mut jump = vec![0xb8];
    jump.extend(u32::try_from(STACK.start).unwrap().to_le_bytes());
    jump.extend([0xff, 0xe0]);
    assert_eq!(trap(&jump).detail, "execute");
    // The trap page itself: mov eax, SYSTEM + 3 pages; jmp rax
    let mut jump = vec![0xb8];
    jump.extend(
        u32::try_from(SYSTEM.start + 3 * PAGE_SIZE)
            .unwrap()
            .to_le_bytes(),
    );
    jump.extend([0xff, 0xe0]);
    assert_eq!((trap(&jump).vector, trap(&jump).detail), (14, "execute"));
}
