//! virtio-pci: what is the function's, not the device's.

use super::fixture::Lab;
use super::{BUFFER, NEEDS_RESET, RUNNING, VERSION_1, start};
use crate::msi::MsiMessage;

/// Configuration space of the device, in what [`super::fixture::Registers::access`] reaches.
const CONFIG: u64 = 1 << 20 | 1 << 15;
/// Pages of the registers.
const ISR: u64 = 0x1000;
const TABLE: u64 = 0x4000;
const PENDING: u64 = 0x5000;
/// Message control, right after the header.
const CONTROL: u64 = CONFIG + 0x42;

fn get(lab: &mut Lab, offset: u64, len: usize) -> u64 {
    let mut data = vec![0xee; len];
    lab.registers.access(offset, &mut data, false);
    data.resize(8, 0);
    u64::from_le_bytes(data.try_into().unwrap())
}

fn set(lab: &mut Lab, offset: u64, len: usize, value: u64) {
    lab.registers
        .access(offset, &mut value.to_le_bytes()[..len].to_vec(), true);
}

fn sent(lab: &Lab) -> Vec<u16> {
    std::mem::take(&mut lab.log.sent.lock().unwrap())
}

fn message(lab: &Lab, vector: usize) -> Option<MsiMessage> {
    lab.log.messages.lock().unwrap()[vector]
}

#[test]
fn the_header_says_what_it_is() {
    let mut lab = Lab::pci();
    assert_eq!(get(&mut lab, CONFIG, 4), 0x105e_1af4);
    assert_eq!(get(&mut lab, CONFIG + 8, 4), 0xff00_0001);
    assert_eq!(get(&mut lab, CONFIG + 0xe, 1), 0);
    assert_eq!(get(&mut lab, CONFIG + 0x2c, 4), 0x105e_1af4);
    assert_eq!(get(&mut lab, CONFIG + 0x3d, 1), 0, "no interrupt pin");
    // Read-only registers stay.
    set(&mut lab, CONFIG, 8, u64::MAX);
    assert_eq!(get(&mut lab, CONFIG, 4), 0x105e_1af4);
    assert_eq!(get(&mut lab, CONFIG + 4, 4), 0x0010_0406);
}

#[test]
fn the_length_of_registers_is_found_by_writing_ones() {
    let mut lab = Lab::pci();
    let bar = CONFIG + 0x10;
    let place = get(&mut lab, bar, 4);
    set(&mut lab, CONFIG + 4, 2, 0);
    set(&mut lab, bar, 4, u64::MAX);
    assert_eq!(get(&mut lab, bar, 4), 0xffff_8000);
    set(&mut lab, bar, 4, place);
    set(&mut lab, CONFIG + 4, 2, 6);
    let moves = lab.log.moves.lock().unwrap().clone();
    assert_eq!(moves, [Some(place), None, Some(place)]);
    for register in [0x14, 0x18, 0x1c, 0x20, 0x24, 0x30] {
        set(&mut lab, CONFIG + register, 4, u64::MAX);
        assert_eq!(get(&mut lab, CONFIG + register, 4), 0);
    }
}

#[test]
fn registers_answer_where_they_were_moved_to() {
    let mut lab = Lab::pci();
    let _driver = start(&mut lab, VERSION_1);
    assert_eq!(get(&mut lab, 20, 1), u64::from(RUNNING));
    set(&mut lab, CONFIG + 0x10, 4, 0xe800_8000);
    assert_eq!(get(&mut lab, 20, 1), 0xff);
    assert_eq!(get(&mut lab, 0x8000 + 20, 1), u64::from(RUNNING));
    // Out of the window nothing answers, and nobody is told of it.
    for outside in [0xe7ff_8000, 0xe810_0000, 0, 0xffff_8000] {
        set(&mut lab, CONFIG + 0x10, 4, outside);
        assert_eq!(get(&mut lab, 0x8000 + 20, 1), 0xff);
    }
    set(&mut lab, CONFIG + 0x10, 4, 0xe800_0000);
    assert_eq!(get(&mut lab, 20, 1), u64::from(RUNNING));
    let moves = lab.log.moves.lock().unwrap().clone();
    let [home, away] = [Some(0xe800_0000), Some(0xe800_8000)];
    assert_eq!(moves, [home, away, None, home]);
}

#[test]
fn masked_messages_wait() {
    let mut lab = Lab::pci();
    let mut driver = start(&mut lab, VERSION_1);
    let expected = MsiMessage {
        address: 0xfee0_0000,
        data: 0x40,
    };
    assert_eq!(message(&lab, 0), Some(expected));
    // The vector's mask, the function's mask, no bus mastering: bits and where they are.
    for (offset, len, masked, open) in [(TABLE + 12, 4, 1, 0), (CONTROL, 2, 0xc000, 0x8000)] {
        set(&mut lab, offset, len, masked);
        assert_eq!(message(&lab, 0), None);
        driver.add(&[(BUFFER, 64, true)], false).unwrap();
        lab.echo().serve();
        driver.add(&[(BUFFER, 64, true)], false).unwrap();
        lab.echo().serve();
        assert_eq!(get(&mut lab, PENDING, 8), 1);
        assert!(sent(&lab).is_empty());
        set(&mut lab, offset, len, open);
        assert_eq!(sent(&lab), [0]);
        assert_eq!(get(&mut lab, PENDING, 8), 0);
        assert_eq!(message(&lab, 0), Some(expected));
    }
    set(&mut lab, TABLE + 8, 4, 0x55);
    assert_eq!(message(&lab, 0).unwrap().data, 0x55);
    set(&mut lab, TABLE, 8, 0x1_fee0_1003);
    assert_eq!(message(&lab, 0).unwrap().address, 0x1_fee0_1000);
    assert_eq!(get(&mut lab, TABLE, 8), 0x1_fee0_1000);
}

#[test]
fn a_pending_message_survives_a_restore() {
    let mut lab = Lab::pci();
    let mut driver = start(&mut lab, VERSION_1);
    set(&mut lab, TABLE + 12, 4, 1);
    driver.add(&[(BUFFER, 64, true)], false).unwrap();
    lab.echo().serve();
    let saved = lab.save_all();
    let mut other = lab.fresh();
    other.restore_all(&saved).unwrap();
    assert_eq!(get(&mut other, PENDING, 1), 1);
    set(&mut other, TABLE + 12, 4, 0);
    assert_eq!(sent(&other), [0]);
    assert_eq!(message(&other, 2).unwrap().data, 0x42);
}

#[test]
fn odd_accesses_to_the_table_do_nothing() {
    let mut lab = Lab::pci();
    let before = get(&mut lab, TABLE, 8);
    for (offset, len) in [(0, 1), (0, 2), (1, 4), (2, 8), (48, 4), (4092, 8)] {
        set(&mut lab, TABLE + offset, len, u64::MAX);
    }
    set(&mut lab, PENDING, 4, u64::MAX);
    assert_eq!(get(&mut lab, TABLE, 8), before);
    assert_eq!(get(&mut lab, TABLE + 48, 8), 0);
    assert_eq!(get(&mut lab, PENDING, 8), 0);
}

#[test]
fn a_vector_that_does_not_exist_is_none() {
    let mut lab = Lab::pci();
    for register in [16, 26] {
        assert_eq!(get(&mut lab, register, 2), 0xffff);
        for (vector, known) in [(2, 2), (3, 0xffff), (0, 0), (0xffff, 0xffff)] {
            set(&mut lab, register, 2, vector);
            assert_eq!(get(&mut lab, register, 2), known);
        }
    }
}

#[test]
fn without_msi_x_a_register_says_what_for() {
    let mut lab = Lab::pci();
    let mut driver = start(&mut lab, VERSION_1);
    set(&mut lab, CONTROL, 2, 0);
    driver.add(&[(BUFFER, 64, true)], false).unwrap();
    lab.echo().serve();
    lab.echo().change_config();
    assert_eq!(get(&mut lab, CONFIG + 6, 1) & 8, 8);
    assert!(sent(&lab).is_empty());
    assert_eq!(get(&mut lab, ISR, 1), 3);
    assert_eq!(get(&mut lab, ISR, 1), 0);
    assert_eq!(get(&mut lab, CONFIG + 6, 1) & 8, 0);
}

#[test]
fn a_function_that_may_not_write_to_memory_stops() {
    let mut lab = Lab::pci();
    let mut driver = start(&mut lab, VERSION_1);
    driver.add(&[(BUFFER, 64, true)], false).unwrap();
    lab.echo().hold();
    set(&mut lab, CONFIG + 4, 2, 2);
    lab.echo().serve();
    assert_eq!(driver.take_used(), None);
    assert_eq!(lab.registers.status(), RUNNING | NEEDS_RESET);
    assert!(!lab.save().active);
    // Its last message, that it needs a reset, comes when it may write again.
    assert!(sent(&lab).is_empty());
    set(&mut lab, CONFIG + 4, 2, 6);
    assert_eq!(sent(&lab), [2]);
    let mut driver = start(&mut lab, VERSION_1);
    driver.add(&[(BUFFER, 64, true)], false).unwrap();
    lab.echo().serve();
    assert_eq!(driver.take_used(), Some((0, 4)));
}

#[test]
fn registers_are_reached_from_configuration_space() {
    let mut lab = Lab::pci();
    let _driver = start(&mut lab, VERSION_1);
    let mut at = get(&mut lab, CONFIG + 0x34, 1);
    while get(&mut lab, CONFIG + at, 4) >> 24 != 5 {
        at = get(&mut lab, CONFIG + at + 1, 1);
        assert_ne!(at, 0);
    }
    let window = CONFIG + at;
    set(&mut lab, window + 4, 1, 0);
    set(&mut lab, window + 8, 4, 20);
    set(&mut lab, window + 12, 4, 1);
    assert_eq!(get(&mut lab, window + 16, 4), u64::from(RUNNING));
    set(&mut lab, window + 16, 4, 0);
    assert_eq!(lab.registers.status(), 0);
    // Another register, length, or unaligned: nothing happens.
    for (bar, offset, len) in [
        (1, 20, 1),
        (0, 20, 3),
        (0, 21, 2),
        (0, 0x8000, 1),
        (0, 20, 0),
    ] {
        lab.registers.set_status(0);
        lab.registers.set_status(1);
        set(&mut lab, window + 4, 1, bar);
        set(&mut lab, window + 8, 4, offset);
        set(&mut lab, window + 12, 4, len);
        set(&mut lab, window + 16, 4, 0);
        assert_eq!(get(&mut lab, window + 16, 4), 0);
        assert_eq!(lab.registers.status(), 1);
    }
}
