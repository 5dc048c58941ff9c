//! The control doorbells: one request at a time through the control page.

use super::OperationHost;
use super::devices::Devices;
use crate::VmError;
use crate::memory::GuestSlot;
use instar_shared::control::{
    ControlPage, FileAccess, FileRequest, FileResponse, FileRole, FileStatus, MAX_NAME_BYTES,
    MemoryGrant, SizeAnnouncement, SizeStatus,
};
use instar_shared::layout::{CONTROL, HEAP_START, LARGE_PAGE_SIZE};
use std::mem::offset_of;

/// What the guest's allocator and its small allocations need besides what was asked for.
const RESERVE_BYTES: u64 = 12 << 20;

fn field(offset: usize) -> u64 {
    CONTROL.start.saturating_add(offset as u64)
}

/// How many bytes of the record window the guest says it filled; the count is cleared.
pub fn take_record_bytes(slot: &GuestSlot) -> Result<u32, VmError> {
    let at = field(offset_of!(ControlPage, record_bytes));
    let filled: [u8; 4] = slot.load(at)?;
    slot.store(at, &[0_u8; 4])?;
    Ok(u32::from_le_bytes(filled))
}

/// The guest's heap: what it has, and what the memory cap lets it have.
#[derive(Clone, Copy, Debug)]
pub struct Heap {
    /// First address past what is mapped.
    pub end: u64,
    /// First address past what may ever be.
    pub limit: u64,
}

/// How a memory request is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Bytes that may be used.
    pub bytes: u64,
    /// Where the heap ends then; the caller maps what is new.
    pub heap_end: u64,
}

impl Heap {
    /// Grants `wanted` bytes besides a reserve, or as much as the cap leaves.
    pub fn grant(self, wanted: u64) -> Grant {
        let now = self.end.saturating_sub(HEAP_START);
        let reserve = RESERVE_BYTES.min(now / 2);
        if wanted <= now - reserve {
            return Grant {
                bytes: wanted,
                heap_end: self.end,
            };
        }
        // The new part is a heap of its own to the allocator, so the whole wish must fit in it.
        let room = self.limit.saturating_sub(self.end);
        let more = wanted
            .saturating_add(LARGE_PAGE_SIZE)
            .checked_next_multiple_of(LARGE_PAGE_SIZE);
        let more = more.unwrap_or(u64::MAX).min(room);
        let bytes = more
            .saturating_sub(LARGE_PAGE_SIZE)
            .min(wanted)
            .max(now - reserve);
        Grant {
            bytes,
            heap_end: self.end + more,
        }
    }
}

/// Reads a memory request.
pub fn memory_wanted(slot: &GuestSlot) -> Result<u64, VmError> {
    let request: MemoryGrant = slot.load(field(offset_of!(ControlPage, memory)))?;
    Ok(request.wanted.get())
}

/// Writes the answer to a memory request.
pub fn answer_memory(slot: &GuestSlot, wanted: u64, grant: Grant) -> Result<(), VmError> {
    let answer = MemoryGrant {
        wanted: wanted.into(),
        granted: grant.bytes.into(),
        heap_end: grant.heap_end.into(),
    };
    slot.store(field(offset_of!(ControlPage, memory)), &answer)
}

/// Answers an open request: validates its numbers, asks the host, makes the device.
pub fn open_file(
    slot: &GuestSlot,
    devices: &mut Devices,
    host: &mut dyn OperationHost,
) -> Result<(), VmError> {
    let request: FileRequest = slot.load(field(offset_of!(ControlPage, file_request)))?;
    let response = match free_slot(&request, devices) {
        None => response(FileStatus::Invalid),
        Some(to) => match host.open_file(&request) {
            Ok(file) => {
                devices.add(to, file)?;
                response(FileStatus::Opened)
            }
            Err(refusal) => refusal,
        },
    };
    slot.store(field(offset_of!(ControlPage, file_response)), &response)
}

/// Answers a size announcement: asks the host, and widens the device's window.
pub fn announce_size(
    slot: &GuestSlot,
    devices: &mut Devices,
    host: &mut dyn OperationHost,
) -> Result<(), VmError> {
    let at = field(offset_of!(ControlPage, announcement));
    let announced: SizeAnnouncement = slot.load(at)?;
    let invalid = (SizeStatus::Invalid, 0);
    let answer = u16::try_from(announced.slot.get())
        .ok()
        .filter(|to| devices.is_present(*to) && announced.reserved.get() == 0)
        .ok_or(invalid)
        .and_then(|to| Ok((to, host.announce_size(to, announced.bytes.get())?)))
        .and_then(|(to, max)| devices.set_max_len(to, max).then_some(()).ok_or(invalid));
    let (status, errno) = answer.err().unwrap_or((SizeStatus::Granted, 0));
    let answer = SizeAnnouncement {
        status: status.raw().into(),
        errno: errno.into(),
        ..announced
    };
    slot.store(at, &answer)
}

/// The device slot that the request names, if the whole request makes sense.
fn free_slot(request: &FileRequest, devices: &Devices) -> Option<u16> {
    let to = u16::try_from(request.slot.get())
        .ok()
        .filter(|slot| devices.is_free(*slot))?;
    u16::try_from(request.parent_slot.get())
        .ok()
        .filter(|slot| devices.is_present(*slot))?;
    FileRole::try_from(request.role.get()).ok()?;
    FileAccess::try_from(request.access.get()).ok()?;
    usize::try_from(request.name_len.get())
        .ok()
        .filter(|len| *len <= MAX_NAME_BYTES)?;
    Some(to)
}

fn response(status: FileStatus) -> FileResponse {
    FileResponse {
        status: status.raw().into(),
        errno: 0.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operation::{OperationFile, Said};
    use instar_shared::record::RecordKind;

    const MIB: u64 = 1 << 20;

    fn heap(now: u64, cap: u64) -> Heap {
        Heap {
            end: HEAP_START + now,
            limit: HEAP_START + cap,
        }
    }

    #[test]
    fn small_wishes_come_from_what_is_there() {
        let grant = heap(32 * MIB, 1 << 30).grant(20 * MIB);
        assert_eq!(
            grant,
            Grant {
                bytes: 20 * MIB,
                heap_end: HEAP_START + 32 * MIB
            }
        );
    }

    #[test]
    fn large_wishes_fit_whole_in_the_new_part() {
        let grant = heap(32 * MIB, 1 << 30).grant(100 * MIB);
        assert_eq!(
            grant,
            Grant {
                bytes: 100 * MIB,
                heap_end: HEAP_START + 134 * MIB
            }
        );
    }

    /// Grants slot 1 and says no to slot 2; nobody asks about other slots.
    struct Granting;

    impl OperationHost for Granting {
        fn open_file(&mut self, _: &FileRequest) -> Result<OperationFile, FileResponse> {
            Err(response(FileStatus::Invalid))
        }

        fn announce_size(&mut self, slot: u16, bytes: u64) -> Result<u64, (SizeStatus, u32)> {
            match slot {
                1 => Ok(bytes + 1),
                2 => Err((SizeStatus::Failed, 28)),
                _ => panic!("there is no slot {slot}"),
            }
        }

        fn record(&mut self, _: RecordKind, _: &[u8]) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn announcement_reaches_the_host_if_there_is_such_a_file() {
        let memory = GuestSlot::new(64 << 20).unwrap();
        let mut devices = Devices::with_threads(std::sync::Arc::clone(&memory), None);
        for slot in [1, 2] {
            let file = OperationFile {
                direct_align: 0,
                said: Said::default(),
                file: std::fs::File::open("/dev/null").unwrap(),
                read_only: false,
                block_device: false,
                len_bytes: 0,
                max_len_bytes: 0,
            };
            devices.add(slot, file).unwrap();
        }
        let at = field(offset_of!(ControlPage, announcement));
        for (slot, reserved, expected) in [
            (1, 0, (SizeStatus::Granted, 0)),
            (1, 1, (SizeStatus::Invalid, 0)),
            (2, 0, (SizeStatus::Failed, 28)),
            (3, 0, (SizeStatus::Invalid, 0)),
            (0x1_0001, 0, (SizeStatus::Invalid, 0)),
        ] {
            let announced = SizeAnnouncement {
                bytes: 100.into(),
                slot: slot.into(),
                reserved: reserved.into(),
                ..SizeAnnouncement::zeroed()
            };
            memory.store(at, &announced).unwrap();
            announce_size(&memory, &mut devices, &mut Granting).unwrap();
            let answer: SizeAnnouncement = memory.load(at).unwrap();
            let answer = (answer.status.get(), answer.errno.get());
            assert_eq!(answer, (expected.0.raw(), expected.1), "slot {slot}");
        }
    }

    #[test]
    fn no_wish_passes_the_cap() {
        for cap in [4 * MIB, 32 * MIB, 34 * MIB, 64 * MIB, 256 << 30] {
            let before = heap(cap.min(32 * MIB), cap);
            for wanted in [0, 1, 20 * MIB, 21 * MIB, cap, u64::MAX] {
                let grant = before.grant(wanted);
                assert!(grant.heap_end <= before.limit && grant.heap_end >= before.end);
                assert!(grant.bytes <= cap, "{cap:#x} {wanted:#x}");
                assert_eq!(grant.heap_end % LARGE_PAGE_SIZE, 0);
            }
        }
    }
}
