//! The control doorbells: one request at a time through the control page.

use super::OperationHost;
use super::devices::Devices;
use crate::VmError;
use crate::memory::GuestSlot;
use instar_shared::control::{
    ControlPage, FileAccess, FileRequest, FileResponse, FileRole, FileStatus, MAX_NAME_BYTES, MemoryGrant,
};
use instar_shared::layout::CONTROL;
use std::mem::offset_of;

/// Working memory that stays with the guest's own allocations, whatever it asks for.
const RESERVE_BYTES: u64 = 16 << 20;

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

/// Answers a memory request; how much was granted.
pub fn grant_memory(slot: &GuestSlot, heap_bytes: u64) -> Result<u64, VmError> {
    let at = field(offset_of!(ControlPage, memory));
    let request: MemoryGrant = slot.load(at)?;
    let most = heap_bytes.saturating_sub(RESERVE_BYTES.min(heap_bytes / 4));
    let granted = request.wanted.get().min(most);
    slot.store(at, &MemoryGrant { wanted: request.wanted, granted: granted.into() })?;
    Ok(granted)
}

/// Answers an open request: validates its numbers, asks the host, makes the device.
pub fn open_file(slot: &GuestSlot, devices: &mut Devices, host: &mut dyn OperationHost) -> Result<(), VmError> {
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

/// The device slot that the request names, if the whole request makes sense.
fn free_slot(request: &FileRequest, devices: &Devices) -> Option<u16> {
    let to = u16::try_from(request.slot.get()).ok().filter(|slot| devices.is_free(*slot))?;
    u16::try_from(request.parent_slot.get()).ok().filter(|slot| devices.is_present(*slot))?;
    FileRole::try_from(request.role.get()).ok()?;
    FileAccess::try_from(request.access.get()).ok()?;
    usize::try_from(request.name_len.get()).ok().filter(|len| *len <= MAX_NAME_BYTES)?;
    Some(to)
}

fn response(status: FileStatus) -> FileResponse {
    FileResponse { status: status.raw().into(), errno: 0.into() }
}
