use super::*;
use crate::virtio::driver::{DRIVER_BYTES, Driver};
use crate::virtio::testing::Told;
use vm_memory::GuestAddress;

const BASE: u64 = 0x10_0000;
const DATA: u64 = BASE + DRIVER_BYTES;

/// Bytes that count.
#[derive(Debug)]
struct Counting(u8);

impl Entropy for Counting {
    fn fill(&mut self, bytes: &mut [u8]) -> bool {
        for byte in bytes {
            self.0 = self.0.wrapping_add(1);
            *byte = self.0;
        }
        true
    }
}

struct Bed {
    memory: Memory,
    driver: Driver,
    device: VirtioRng,
    told: Arc<Told>,
}

impl Bed {
    fn new() -> Self {
        let memory = Memory::from_ranges(&[(GuestAddress(BASE), 0x20_0000)]).unwrap();
        let mut device = VirtioRng::new(Box::new(Counting(0)));
        let driver = Driver::new(&memory, BASE, QUEUE_SIZE, device.features());
        let told = Told::new();
        device.activate(told.activation(&memory, device.features(), &[&driver]));
        Self {
            memory,
            driver,
            device,
            told,
        }
    }
}

#[test]
fn buffers_are_filled_up_to_the_cap() {
    let mut bed = Bed::new();
    let head = bed
        .driver
        .add(&[(DATA, 7, true), (DATA + 8, 300, true)], true);
    let large = bed
        .driver
        .add(&[(DATA, MAX_BYTES + 1, true), (DATA, 9, true)], false);
    assert!(bed.driver.sleep());
    bed.device.kick(0);
    assert!(bed.told.take_queue(0));
    assert_eq!(bed.driver.take_used(), head.map(|head| (head, 307)));
    assert_eq!(bed.driver.take_used(), large.map(|head| (head, MAX_BYTES)));
    let mut bytes = [0; 16];
    bed.memory
        .read_slice(&mut bytes, GuestAddress(DATA))
        .unwrap();
    assert!(bytes.iter().any(|byte| *byte != 0));
}

#[test]
fn a_driver_that_sends_something_has_to_reset() {
    let mut bed = Bed::new();
    bed.driver.add(&[(DATA, 8, false)], false);
    bed.device.kick(0);
    bed.device.kick(0);
    assert_eq!(bed.told.resets(), 1);
    assert_eq!(bed.driver.take_used(), None);
    let saved = bed.device.save();
    bed.device.reset();
    let features = bed.device.features();
    let again = bed.told.activation(&bed.memory, features, &[&bed.driver]);
    bed.device.restore(&saved, Some(again)).unwrap();
    assert_eq!(bed.device.save(), saved);
}

#[test]
fn nothing_happens_before_activation_and_after_reset() {
    let mut bed = Bed::new();
    bed.device.reset();
    bed.driver.add(&[(DATA, 8, true)], false);
    bed.device.kick(0);
    assert_eq!(bed.driver.take_used(), None);
    assert_eq!(bed.device.save(), DeviceState::Rng(None));
    bed.device.restore(&DeviceState::Rng(None), None).unwrap();
    assert_eq!(
        bed.device.restore(&DeviceState::Blk(None), None),
        Err(RestoreError::Kind)
    );
}

#[test]
fn a_source_that_is_dry_gives_nothing() {
    #[derive(Debug)]
    struct Dry;
    impl Entropy for Dry {
        fn fill(&mut self, _: &mut [u8]) -> bool {
            false
        }
    }
    let mut bed = Bed::new();
    bed.device.entropy = Box::new(Dry);
    let head = bed.driver.add(&[(DATA, 8, true)], false);
    bed.device.kick(0);
    assert_eq!(bed.driver.take_used(), head.map(|head| (head, 0)));
}
