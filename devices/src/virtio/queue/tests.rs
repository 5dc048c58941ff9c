//! The queue against a driver that plays by the rules, and against ones that do not.

#![allow(clippy::cast_possible_truncation)] // small numbers

use super::super::driver::{DRIVER_BYTES, Driver};
use super::*;
use crate::virtio::{GuestBuffer, Memory};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

const BASE: u64 = 0x10_0000;
const DATA: u64 = BASE + DRIVER_BYTES;
const SIZE: u16 = 8;
const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;

fn bed(features: u64) -> (Memory, Driver, DeviceQueue) {
    let mem = Memory::from_ranges(&[(GuestAddress(BASE), 0x10_0000)]).unwrap();
    let driver = Driver::new(&mem, BASE, SIZE, features);
    let queue = DeviceQueue::new(driver.queue(), features);
    (mem, driver, queue)
}

fn buffer(addr: u64, len: u32) -> GuestBuffer {
    let addr = GuestAddress(addr);
    GuestBuffer { addr, len }
}

#[test]
fn chains_come_in_order_from_both_kinds_of_table() {
    for features in [0, INDIRECT, EVENT_IDX, INDIRECT | EVENT_IDX] {
        let (mem, mut driver, mut queue) = bed(features);
        for round in 0..70_000_u64 {
            let at = DATA + round % 100;
            let buffers = [(at, 16, false), (at + 200, 5, false), (at + 300, 7, true)];
            let head = driver.add(&buffers, round % 3 > 0).unwrap();
            let chain = queue.pop(&mem).unwrap().expect("a chain");
            assert_eq!(chain.head, head);
            assert_eq!(chain.readable, [buffer(at, 16), buffer(at + 200, 5)]);
            assert_eq!(chain.writable, [buffer(at + 300, 7)]);
            assert!(queue.pop(&mem).unwrap().is_none());
            queue.add_used(&mem, head, 7).unwrap();
            assert_eq!(driver.take_used(), Some((head, 7)));
        }
    }
}

#[test]
fn direct_descriptors_may_come_before_a_table() {
    let (mem, mut driver, mut queue) = bed(INDIRECT);
    let table = DATA + 0x1000;
    driver.write_descriptor(BASE, 0, (DATA, 4), (1, 1));
    // Whether the table is marked as written by the device means nothing.
    driver.write_descriptor(BASE, 1, (table, 32), (4 | 2, 0));
    driver.write_descriptor(table, 0, (DATA + 16, 8), (1, 1));
    driver.write_descriptor(table, 1, (DATA + 32, 9), (2, 0));
    driver.offer(0);
    let chain = queue.pop(&mem).unwrap().expect("a chain");
    assert_eq!(chain.readable, [buffer(DATA, 4), buffer(DATA + 16, 8)]);
    assert_eq!(chain.writable, [buffer(DATA + 32, 9)]);
}

#[test]
fn tables_that_cannot_be_are_faults() {
    let table = DATA + 0x1000;
    let fault = |features, descriptor, link, inner: (u16, u16)| {
        let (mem, mut driver, mut queue) = bed(features);
        driver.write_descriptor(table, 0, (DATA, 4), inner);
        driver.write_descriptor(BASE, 0, descriptor, link);
        driver.offer(0);
        queue.pop(&mem).expect_err("a fault")
    };
    let end = BASE + 0x10_0000;
    let index = 0;
    for len in [0, 8, 24, 16 * 9, u32::MAX] {
        assert_eq!(
            fault(INDIRECT, (table, len), (4, 0), (0, 0)),
            DeviceFault::IndirectTable { index, len }
        );
    }
    for (addr, len) in [(end, 16), (u64::MAX - 3, 16)] {
        assert_eq!(
            fault(INDIRECT, (addr, len), (4, 0), (0, 0)),
            DeviceFault::IndirectTable { index, len }
        );
    }
    // A table in a table, a table that goes on, a table that was not agreed on.
    let len = 4;
    assert_eq!(
        fault(INDIRECT, (table, 16), (4, 0), (4, 0)),
        DeviceFault::IndirectTable { index, len }
    );
    assert_eq!(
        fault(INDIRECT, (table, 16), (5, 0), (0, 0)),
        DeviceFault::DescriptorFlags { index, flags: 5 }
    );
    assert_eq!(
        fault(0, (table, 16), (4, 0), (0, 0)),
        DeviceFault::DescriptorFlags { index, flags: 4 }
    );
    // In the table: a loop, and a link past its end.
    assert_eq!(
        fault(INDIRECT, (table, 16), (4, 0), (1, 0)),
        DeviceFault::ChainLoop { head: 0 }
    );
    let (index, size) = (1, 1);
    assert_eq!(
        fault(INDIRECT, (table, 16), (4, 0), (1, 1)),
        DeviceFault::DescriptorIndex { index, size }
    );
}

#[test]
fn chains_that_are_put_back_come_again_first() {
    let (mem, mut driver, mut queue) = bed(0);
    let heads: Vec<u16> = (0..4)
        .map(|n| driver.add(&[(DATA + n, 1, true)], false).unwrap())
        .collect();
    let pop = |queue: &mut DeviceQueue| queue.pop(&mem).unwrap().map(|chain| chain.head);
    for head in &heads[..3] {
        assert_eq!(pop(&mut queue), Some(*head));
    }
    queue.put_back(heads[2]);
    queue.put_back(heads[1]);
    queue.put_back(heads[1]);
    assert_eq!(queue.in_flight(), 1);
    assert_eq!(queue.save().in_flight, heads[..3]);
    assert_eq!(queue.available(&mem), Ok(3));
    for head in &heads[1..] {
        assert_eq!(pop(&mut queue), Some(*head));
    }
    assert_eq!(pop(&mut queue), None);
}

#[test]
fn a_restored_queue_goes_on_where_it_was() {
    let (mem, mut driver, mut queue) = bed(EVENT_IDX);
    let mut heads = Vec::new();
    for n in 0..5 {
        heads.push(driver.add(&[(DATA + n, 1, true)], false).unwrap());
    }
    for _ in 0..3 {
        queue.pop(&mem).unwrap().expect("a chain");
    }
    queue.add_used(&mem, heads[1], 1).unwrap();
    let saved = queue.save();
    assert_eq!((saved.next_avail, saved.next_used), (3, 1));
    assert_eq!(saved.in_flight, [heads[0], heads[2]]);
    let mut queue = DeviceQueue::restore("test", driver.queue(), EVENT_IDX, &saved).unwrap();
    assert_eq!(queue.save(), saved);
    let again: Vec<u16> = std::iter::from_fn(|| queue.pop(&mem).unwrap())
        .map(|chain| chain.head)
        .collect();
    assert_eq!(again, [heads[0], heads[2], heads[3], heads[4]]);
    for bad in [vec![SIZE], vec![1, 2, 1]] {
        let saved = SavedQueue {
            in_flight: bad,
            ..saved.clone()
        };
        let refused = DeviceQueue::restore("test", driver.queue(), 0, &saved);
        assert!(matches!(refused, Err(RestoreError::Impossible { .. })));
    }
}

#[test]
fn a_chain_is_given_back_once() {
    let (mem, mut driver, mut queue) = bed(0);
    let head = driver.add(&[(DATA, 1, true)], false).unwrap();
    let unknown = Err(DeviceFault::UnknownToken);
    assert_eq!(queue.add_used(&mem, head, 0), unknown);
    queue.pop(&mem).unwrap().expect("a chain");
    queue.add_used(&mem, head, 0).unwrap();
    assert_eq!(queue.add_used(&mem, head, 0), unknown);
    assert_eq!(queue.add_used(&mem, SIZE, 0), unknown);
    driver.offer(head);
    queue.pop(&mem).unwrap().expect("a chain");
    driver.offer(head);
    let fault = DeviceFault::HeadInUse { head };
    assert_eq!(queue.pop(&mem).expect_err("a fault"), fault);
}

/// VirtIO 1.3 §2.7.7.2 "Device Requirements: Used Buffer Notification Suppression".
#[test]
fn interrupts_are_sent_when_the_driver_wants_them() {
    for features in [0, EVENT_IDX] {
        let (mem, mut driver, mut queue) = bed(features);
        let one = |driver: &mut Driver, queue: &mut DeviceQueue| {
            let head = driver.add(&[(DATA, 1, true)], false).unwrap();
            queue.pop(&mem).unwrap().expect("a chain");
            queue.add_used(&mem, head, 1).unwrap();
            queue.needs_notification(&mem).unwrap()
        };
        assert!(driver.sleep());
        assert!(one(&mut driver, &mut queue), "it sleeps for the first");
        driver.no_interrupts();
        assert!(!one(&mut driver, &mut queue), "it wants none");
        assert!(!driver.sleep(), "two are there");
        while driver.take_used().is_some() {}
        assert!(driver.sleep());
        assert!(one(&mut driver, &mut queue));
        if features != 0 {
            assert!(!one(&mut driver, &mut queue), "it has heard of one");
        }
    }
}

#[test]
fn notifications_are_asked_for_only_when_wanted() {
    for features in [0, EVENT_IDX] {
        let (mem, mut driver, mut queue) = bed(features);
        driver.add(&[(DATA, 1, true)], false).unwrap();
        assert!(driver.must_kick(), "the first one");
        queue.disable_notification(&mem).unwrap();
        driver.add(&[(DATA, 1, true)], false).unwrap();
        assert!(!driver.must_kick());
        queue.pop(&mem).unwrap().expect("a chain");
        assert!(queue.enable_notification(&mem).unwrap(), "one is there");
        queue.pop(&mem).unwrap().expect("a chain");
        assert!(!queue.enable_notification(&mem).unwrap());
        driver.add(&[(DATA, 1, true)], false).unwrap();
        assert!(driver.must_kick());
    }
}
