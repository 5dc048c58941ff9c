//! Drivers that break the rules, and a backend that does.

use super::*;

#[test]
fn bad_buffers_are_faults() {
    let end = BASE + SIZE as u64;
    for (addr, len) in [
        (0, 16),
        (BASE - 1, 2),
        (end - 1, 2),
        (end, 1),
        (u64::MAX, 1),
        (u64::MAX - 4, 64),
        (DATA, u32::MAX),
    ] {
        let fault = Bed::fault(&[HEADER, (addr, len, true), FOOTER]);
        assert_eq!(
            fault,
            DeviceFault::BufferOutside {
                index: 1,
                addr,
                len
            }
        );
    }
    let fault = Bed::fault(&[HEADER, (DATA, 0, true), FOOTER]);
    assert_eq!(fault, DeviceFault::EmptyBuffer { index: 1 });
    let fault = Bed::fault(&[HEADER, (DATA, 8, true), (DATA, 8, false), FOOTER]);
    assert_eq!(fault, DeviceFault::BufferOrder { index: 2 });
    let fault = Bed::fault(&[HEADER, (DATA, 8, false), FOOTER]);
    assert_eq!(fault, DeviceFault::DataDirection { head: 0 });
    let fault = Bed::fault(&[(HEADERS, 15, false), (DATA, 8, true), FOOTER]);
    assert_eq!(fault, DeviceFault::HeaderShort { head: 0 });
    assert_eq!(Bed::fault(&[FOOTER]), DeviceFault::HeaderShort { head: 0 });
    assert_eq!(
        Bed::fault(&[HEADER, (FOOTERS, 7, true)]),
        DeviceFault::FooterShort { head: 0 }
    );
    assert_eq!(Bed::fault(&[HEADER]), DeviceFault::FooterShort { head: 0 });
}

#[test]
fn bad_descriptors_are_faults() {
    let mut bed = Bed::new(8192);
    bed.header(0, RequestType::ReadBytes.raw(), 0);
    bed.descriptor(0, HEADER, Some(1));
    bed.descriptor(1, (DATA, 8, true), Some(2));
    bed.descriptor(2, FOOTER, Some(1));
    bed.offer(0);
    assert_eq!(bed.kick(), Err(DeviceFault::ChainLoop { head: 0 }));

    let mut bed = Bed::new(8192);
    bed.descriptor(0, HEADER, Some(QUEUE));
    bed.offer(0);
    assert_eq!(
        bed.kick(),
        Err(DeviceFault::DescriptorIndex {
            index: QUEUE,
            size: QUEUE
        })
    );

    let mut bed = Bed::new(8192);
    bed.offer(u16::MAX);
    assert_eq!(
        bed.kick(),
        Err(DeviceFault::DescriptorIndex {
            index: u16::MAX,
            size: QUEUE
        })
    );

    for flags in [4_u16, 8, 0x8000] {
        let mut bed = Bed::new(8192);
        bed.descriptor(0, HEADER, None);
        bed.mem.write_obj(flags, GuestAddress(BASE + 12)).unwrap();
        bed.offer(0);
        assert_eq!(
            bed.kick(),
            Err(DeviceFault::DescriptorFlags { index: 0, flags })
        );
    }
}

/// VirtIO 1.3 §2.7.13.3: no more than the queue size is available.
#[test]
fn avail_index_jump_is_a_fault() {
    for index in [QUEUE + 1, u16::MAX, 0x8000] {
        let bed = &mut Bed::new(8192);
        bed.set_avail(index);
        assert_eq!(bed.kick(), Err(DeviceFault::AvailIndex { index, seen: 0 }));
    }
}

#[test]
fn queue_outside_memory_is_a_fault() {
    let mut bed = Bed::new(8192);
    let mut queue = queue();
    queue
        .try_set_used_ring_address(GuestAddress(BASE + SIZE as u64 - 64))
        .unwrap();
    bed.device = BlkDevice::new(*bed.device.config(), queue);
    assert_eq!(bed.kick(), Err(DeviceFault::QueueOutside));
}

#[test]
fn head_in_flight_cannot_be_offered_again() {
    let mut bed = Bed::new(8192);
    bed.backend.order = CompletionOrder::Held;
    bed.request(0, RequestType::ReadBytes, 0, &[(DATA, 16, true)]);
    assert_eq!(bed.kick(), Ok(0));
    bed.offer(0);
    assert_eq!(bed.kick(), Err(DeviceFault::HeadInUse { head: 0 }));
    assert_eq!(bed.device.in_flight(), 1);
}

/// Random rings: any outcome but a panic, and nothing is written outside the device's memory.
#[test]
fn random_rings_never_panic() {
    let mut seed = 0x1234_5678_u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    };
    let mut faults = 0;
    for _ in 0..4000 {
        let mut bed = Bed::new(4096);
        for index in 0..QUEUE {
            let addr = [HEADERS, DATA, FOOTERS, BASE, 0, u64::MAX][(next() % 6) as usize]
                .wrapping_add(next() % 32);
            let len = [8, 16, 512, 1, 0, u32::MAX][(next() % 6) as usize];
            let link = (next() % 2 == 0).then(|| (next() % 18) as u16);
            bed.descriptor(index, (addr, len, next() % 2 == 0), link);
        }
        let kinds = RequestType::ALL;
        bed.header(
            0,
            kinds[(next() % kinds.len() as u64) as usize].raw(),
            next(),
        );
        for _ in 0..next() % 4 {
            bed.offer((next() % 17) as u16);
        }
        faults += u32::from(bed.kick().is_err());
    }
    assert!(
        faults > 1000,
        "{faults} faults: the rings are not random enough"
    );
    assert!(faults < 4000);
}

#[test]
fn backend_token_that_is_not_in_flight_is_a_fault() {
    struct Liar;
    impl BlockBackend for Liar {
        fn submit(&mut self, _: Token, _: IoRequest) -> Submission {
            Submission::Pending
        }
        fn poll(&mut self) -> Option<(Token, Completion)> {
            Some((77, Completion { result: Ok(0) }))
        }
        fn stop(&mut self) {}
        fn len_bytes(&mut self) -> Result<u64, Errno> {
            Err(Errno::EIO)
        }
    }
    let mut bed = Bed::new(8192);
    assert_eq!(
        bed.device.complete(&bed.mem, &mut Liar),
        Err(DeviceFault::UnknownToken)
    );
}
