//! Both transports, by a driver that uses nothing but registers and memory.

#![allow(clippy::cast_possible_truncation)] // small numbers, and halves of large ones

mod fixture;
mod function;
mod hostile;
mod mmio;
mod pci;

use super::driver::Driver;
use super::{DeviceFault, DeviceState, RestoreError};
use fixture::{FEATURE, Lab};
use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE as ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER as DRIVER,
    VIRTIO_CONFIG_S_DRIVER_OK as DRIVER_OK, VIRTIO_CONFIG_S_FAILED as FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK as FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET as NEEDS_RESET,
    VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
const RUNNING: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
/// Where the buffers of requests are.
const BUFFER: u64 = 0x10_0000;
/// Where the first queue's rings are.
const RINGS: u64 = 0x20_0000;

/// Runs a test over each transport.
fn over_both(test: fn(&mut Lab)) {
    for mut lab in [Lab::pci(), Lab::mmio()] {
        test(&mut lab);
    }
}

/// Takes all steps of a driver, with both queues.
fn start(lab: &mut Lab, features: u64) -> Driver {
    let r = &mut lab.registers;
    r.set_status(0);
    r.set_status(ACKNOWLEDGE);
    r.set_status(ACKNOWLEDGE | DRIVER);
    r.accept(features);
    r.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
    assert_eq!(r.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK);
    let driver = Driver::new(&lab.memory, RINGS, 8, features);
    r.place_queue(0, &driver.queue());
    let other = Driver::new(&lab.memory, RINGS + 0x8_0000, 4, features);
    r.place_queue(1, &other.queue());
    r.set_status(RUNNING);
    driver
}

#[test]
fn a_driver_that_takes_all_steps_gets_its_answers() {
    over_both(|lab| {
        assert_eq!(lab.registers.offered(), FEATURE | EVENT_IDX | VERSION_1);
        let features = FEATURE | VERSION_1;
        let mut driver = start(lab, features);
        assert_eq!(lab.registers.status(), RUNNING);
        let echo = lab.echo();
        assert_eq!(echo.active_features(), Some(features));
        assert_eq!(echo.queue_sizes_seen(), [Some(8), Some(4)]);
        drop(echo);
        driver.add(&[(BUFFER, 64, true)], false).unwrap();
        lab.registers.notify(0);
        assert_eq!(lab.notified(), [0]);
        lab.echo().serve();
        assert_eq!(lab.interrupts(), 1);
        assert_eq!(driver.take_used(), Some((0, 4)));
        assert_eq!(lab.read(BUFFER, 4), b"echo");
    });
}

#[test]
fn event_indices_reach_the_queues_if_they_were_accepted() {
    over_both(|lab| {
        let _driver = start(lab, EVENT_IDX | VERSION_1);
        assert!(lab.echo().event_idx());
        let _driver = start(lab, VERSION_1);
        assert!(!lab.echo().event_idx());
    });
}

#[test]
fn steps_out_of_order_are_not_taken() {
    over_both(|lab| {
        let steps = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];
        lab.registers.accept(VERSION_1);
        for (taken, next) in steps.into_iter().enumerate() {
            let before: u32 = steps[..taken].iter().sum();
            for late in &steps[taken + 1..] {
                lab.registers.set_status(before | late);
                assert_eq!(lab.registers.status(), before);
            }
            // Bits do not go away.
            lab.registers.set_status(next);
            assert_eq!(lab.registers.status(), before | next);
        }
        assert_eq!(lab.echo().activations, 1);
        lab.registers.set_status(RUNNING | FAILED | NEEDS_RESET);
        assert_eq!(lab.registers.status(), RUNNING | FAILED);
        lab.registers.set_status(0);
        assert_eq!(lab.registers.status(), 0);
        assert_eq!(lab.echo().activations, 1);
    });
}

#[test]
fn features_that_were_not_offered_are_refused() {
    over_both(|lab| {
        for features in [0, FEATURE, VERSION_1 | 1 << VIRTIO_F_RING_PACKED, u64::MAX] {
            lab.registers.set_status(0);
            lab.registers.accept(features);
            lab.registers.set_status(RUNNING);
            assert_eq!(lab.registers.status(), ACKNOWLEDGE | DRIVER);
        }
        lab.registers.set_status(0);
        lab.registers.accept(VERSION_1);
        lab.registers.accept_word(2, 1);
        lab.registers.set_status(RUNNING);
        assert_eq!(lab.registers.status(), ACKNOWLEDGE | DRIVER);
        lab.registers.set_status(0);
        lab.registers.accept(VERSION_1);
        lab.registers.set_status(RUNNING & !DRIVER_OK);
        lab.registers.accept(u64::MAX);
        lab.registers.set_status(RUNNING);
        assert_eq!(lab.echo().active_features(), Some(VERSION_1));
    });
}

#[test]
fn queues_change_only_before_they_are_enabled() {
    over_both(|lab| {
        let driver = start(lab, VERSION_1);
        let before = lab.save();
        let mut elsewhere = driver.queue();
        virtio_queue::QueueT::set_size(&mut elsewhere, 2);
        lab.registers.place_queue(0, &elsewhere);
        lab.registers.place_queue(2, &elsewhere);
        lab.registers.place_queue(0xffff, &elsewhere);
        lab.registers.select_queue(before.queue_select);
        assert_eq!(lab.save(), before);
        for size in [0, 3, 32, 0x8000] {
            lab.registers.set_status(0);
            lab.registers.set_queue_size(0, size);
            assert_eq!(lab.save().queues[0].size, 16);
        }
        lab.registers.set_queue_size(0, 4);
        assert_eq!(lab.save().queues[0].size, 4);
    });
}

#[test]
fn a_queue_that_cannot_be_needs_a_reset() {
    over_both(|lab| {
        lab.registers.accept(VERSION_1);
        lab.registers.set_status(RUNNING & !DRIVER_OK);
        lab.registers.enable_at(0, [0x1001, 0x2000, 0x3000]);
        lab.registers.set_status(RUNNING);
        assert_eq!(lab.registers.status(), RUNNING | NEEDS_RESET);
        assert_eq!(lab.echo().activations, 0);
        lab.registers.notify(0);
        assert!(lab.notified().is_empty());
        let _driver = start(lab, VERSION_1);
        assert_eq!(lab.registers.status(), RUNNING);
        assert_eq!(lab.echo().activations, 1);
    });
}

#[test]
fn a_driver_that_breaks_the_rules_is_told_to_reset() {
    over_both(|lab| {
        let mut driver = start(lab, VERSION_1);
        driver.offer(77);
        lab.registers.notify(0);
        lab.echo().serve();
        let fault = DeviceFault::DescriptorIndex { index: 77, size: 8 };
        assert_eq!(lab.echo().fault, Some(fault));
        assert_eq!(lab.registers.status(), RUNNING | NEEDS_RESET);
        assert_eq!(lab.config_interrupts(), 1);
        lab.registers.set_status(0);
        assert_eq!(lab.registers.status(), 0);
    });
}

#[test]
fn after_a_reset_in_mid_flight_memory_is_the_drivers() {
    over_both(|lab| {
        let mut driver = start(lab, VERSION_1);
        driver.add(&[(BUFFER, 64, true)], false).unwrap();
        lab.echo().hold();
        assert_eq!(lab.echo().held(), 1);
        lab.registers.set_status(0);
        assert_eq!(lab.echo().held(), 0);
        lab.echo().serve();
        assert_eq!(driver.take_used(), None);
        assert_eq!(lab.read(BUFFER, 4), [0; 4]);
        assert_eq!(lab.interrupts(), 0);
        let mut driver = start(lab, VERSION_1);
        driver.add(&[(BUFFER, 64, true)], false).unwrap();
        lab.echo().serve();
        assert_eq!(driver.take_used(), Some((0, 4)));
    });
}

#[test]
fn a_saved_device_goes_on_in_mid_flight() {
    over_both(|lab| {
        let mut driver = start(lab, EVENT_IDX | VERSION_1);
        driver.add(&[(BUFFER, 64, true)], false).unwrap();
        lab.echo().serve();
        assert_eq!(driver.take_used(), Some((0, 4)));
        driver.add(&[(BUFFER + 64, 64, true)], false).unwrap();
        lab.echo().hold();
        driver.add(&[(BUFFER + 128, 64, true)], false).unwrap();
        lab.echo().change_config();
        assert!(driver.sleep());
        let saved = lab.save_all();
        let mut other = lab.fresh();
        other.restore_all(&saved).unwrap();
        assert_eq!(other.save_all(), saved);
        assert_eq!(other.registers.status(), RUNNING);
        let before = other.interrupts();
        other.echo().serve();
        assert_eq!(other.interrupts(), before + 1);
        let heads: Vec<_> = std::iter::from_fn(|| driver.take_used()).collect();
        assert_eq!(heads.len(), 2);
        assert_eq!(lab.read(BUFFER + 64, 4), b"echo");
        assert_eq!(lab.read(BUFFER + 128, 4), b"echo");
    });
}

#[test]
fn states_that_cannot_be_are_refused() {
    over_both(|lab| {
        let _driver = start(lab, VERSION_1);
        let good = lab.save();
        let mut bad = vec![good.clone(); 9];
        bad[0].version += 1;
        bad[1].status = DRIVER_OK;
        bad[2].status = RUNNING | 0x100;
        bad[3].driver_features = 0;
        bad[4].queues.pop();
        bad[5].queues[0].size = 3;
        bad[6].queues[0].desc_table_gpa = 1;
        bad[7].status = RUNNING & !DRIVER_OK;
        bad[8].device = DeviceState::Blk(None);
        for state in bad {
            let mut other = lab.fresh();
            let error = other.restore(&state).unwrap_err();
            match error {
                RestoreError::Version { found, .. } => assert_eq!(found, state.version),
                RestoreError::Kind => assert_eq!(state.device, DeviceState::Blk(None)),
                RestoreError::Impossible { .. } => {}
            }
        }
        lab.fresh().restore(&good).unwrap();
    });
}

#[test]
fn the_generation_counts_changes_of_the_configuration() {
    over_both(|lab| {
        let _driver = start(lab, VERSION_1);
        let before = lab.registers.generation();
        assert_eq!(lab.registers.config(0, 4), b"ECHO");
        lab.echo().change_config();
        assert_eq!(lab.registers.config(0, 4), b"FCHO");
        assert_eq!(lab.registers.generation(), before + 1);
        assert_eq!(lab.config_interrupts(), 1);
        lab.registers.write_config(1, b"xyz");
        assert_eq!(lab.registers.config(0, 8), b"Fxyz\0\0\0\0");
        assert_eq!(lab.registers.config(0x800, 4), [0; 4]);
    });
}
