//! Numbers of the contract, written a second time.
//!
//! A failure here means that the contract changed. Do not just mend the number:
//! raise [`crate::abi::ABI_VERSION`] and say in `docs/abi.md` what changed.

use crate::{device, doorbell, layout};

#[test]
fn regions_are_ordered_aligned_and_apart() {
    let mut end = 0;
    for (name, region) in layout::REGIONS {
        assert_eq!(region.start % layout::REGION_ALIGN, 0, "{name}");
        assert!(
            region.start > end || *name == "image",
            "{name} touches the region before it"
        );
        end = region.end();
    }
    assert!(layout::HEAP_START > end);
    assert_eq!(layout::HEAP_START % layout::LARGE_PAGE_SIZE, 0);
}

#[test]
fn tables_fill_their_regions() {
    let entries = u64::from(device::MAX_DEVICES);
    assert!(entries * size_of::<device::DeviceEntry>() as u64 <= layout::DEVICE_TABLE.size);
    assert_eq!(entries * device::QUEUE_STRIDE, layout::QUEUES.size);
    assert!(size_of::<crate::control::ControlPage>() as u64 <= layout::CONTROL.size);
    assert!(size_of::<crate::boot::BootPage>() as u64 <= layout::BOOT.size);
    assert!(size_of::<crate::check::CheckResult>() as u64 <= layout::RESULT.size);
    assert!(size_of::<crate::edit::EditResult>() as u64 <= layout::RESULT.size);
}

#[test]
fn queue_parts_do_not_overlap() {
    let n = u64::from(device::QUEUE_SIZE);
    assert!(16 * n <= device::AVAIL_OFFSET);
    assert!(device::AVAIL_OFFSET + 6 + 2 * n <= device::USED_OFFSET);
    assert!(device::USED_OFFSET + 6 + 8 * n <= device::QUEUE_STRIDE);
}

#[test]
fn each_vcpu_has_a_stack_and_room_for_its_last_words() {
    for index in 1..layout::MAX_VCPUS {
        let stack = layout::stack_of(index).unwrap();
        assert_eq!(stack.start % layout::REGION_ALIGN, 0);
        let before = layout::stack_of(index - 1).unwrap();
        assert!(stack.start >= before.end() + layout::REGION_ALIGN);
        assert!(stack.end() <= layout::FURTHER_STACKS.end());
        let note = layout::panic_note_of(index).unwrap();
        assert!(note >= layout::RESULT.start + 1024);
        assert!(note + layout::PANIC_NOTE_BYTES <= layout::RESULT.end());
    }
    assert!(layout::stack_of(layout::MAX_VCPUS).is_none() && layout::panic_note_of(0).is_none());
    assert!(layout::PANIC_TEXT_BYTES as u64 + 4 <= layout::PANIC_NOTE_BYTES);
}

#[test]
fn numbers_of_version_10() {
    assert_eq!(crate::abi::ABI_VERSION, 10);
    assert_eq!(
        (
            doorbell::KICK_PORT,
            doorbell::WAIT_PORT,
            doorbell::TRAP_PORT_BASE
        ),
        (0x510, 0x514, 0x80)
    );
    assert_eq!(layout::IMAGE.start, 0x20_0000);
    assert_eq!(layout::HEAP_START, 0x200_0000);
    assert_eq!(doorbell::VCPU_BASE, 0xffff_0100);
    assert_eq!(crate::boot::BOOT_MAGIC, 0x5241_5453);
    assert_eq!(layout::SECRETS.start, 0x117_0000);
    assert!(layout::SECRETS.end() <= layout::DMA_START);
    assert_eq!(layout::LIVE.start, 0x118_0000);
    assert!(layout::LIVE.end() <= layout::DMA_START);
    let answers = crate::live::ANSWERS_AT + u64::from(crate::live::WINDOW_BYTES);
    assert_eq!(answers, layout::LIVE.size);
    assert!(size_of::<crate::live::LivePage>() as u64 <= crate::live::ANSWERS_AT);
    let kinds: Vec<u32> = crate::live::QueryKind::ALL
        .iter()
        .map(|kind| kind.raw())
        .collect();
    assert_eq!(kinds, (1..=10).collect::<Vec<_>>());
    assert_eq!(crate::secret::SECRET_MAGIC, 0x5443_4553);
    let roles: Vec<u32> = crate::secret::SecretRole::ALL
        .iter()
        .map(|role| role.raw())
        .collect();
    assert_eq!(roles, [1, 2, 3]);
}

#[test]
fn requests_of_version_9() {
    use crate::blk::RequestType;
    let numbers: Vec<u32> = RequestType::ALL.iter().map(|kind| kind.raw()).collect();
    let (virtio, vendor) = numbers.split_at(6);
    assert_eq!(virtio, [0, 1, 4, 8, 11, 13]);
    assert_eq!(vendor, (0x8000_0000..=0x8000_0009).collect::<Vec<_>>());
    let features = (
        device::FEATURE_BYTE_IO,
        device::FEATURE_BLOCK_STATUS,
        device::FEATURE_BYTE_WRITE,
        device::FEATURE_COPY,
        device::FEATURE_ORDERED,
    );
    assert_eq!(features, (1, 2, 4, 8, 16));
    assert_eq!(crate::blk::RANGE_WRITE_ZEROS, 1);
}
