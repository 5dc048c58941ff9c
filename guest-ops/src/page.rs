//! Wire structs at fixed addresses, read and written as a whole and volatile.

use crate::Platform;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ptr::NonNull;
use instar_shared::boot::BootPage;
use instar_shared::control::{
    ControlPage, FileRequest, FileResponse, MemoryGrant, SizeAnnouncement,
};
use instar_shared::device::{DeviceEntry, entry_address};
use instar_shared::layout::{BOOT, CONTROL};
use instar_shared::zerocopy::little_endian::{U16, U32};
use instar_shared::zerocopy::{FromBytes, IntoBytes};

/// A wire struct that the host may change whenever a doorbell rings.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shared<T> {
    pointer: NonNull<u8>,
    wire: PhantomData<*mut T>,
}

impl<T: FromBytes + IntoBytes + Copy> Shared<T> {
    /// The struct at guest address `addr`.
    pub(crate) fn at<P: Platform>(platform: &P, addr: u64) -> Self {
        Self {
            pointer: platform.pointer(addr, size_of::<T>()),
            wire: PhantomData,
        }
    }

    /// A copy of what stands there now.
    pub(crate) fn read(&self) -> T {
        let mut value = T::new_zeroed();
        let bytes = value.as_mut_bytes();
        // SAFETY: the platform gave a pointer that is valid for the struct's length.
        unsafe { read_volatile(self.pointer.as_ptr(), bytes) };
        value
    }

    /// As [`Self::read`], of what nobody writes while the operation runs.
    pub(crate) fn read_constant(&self) -> T {
        const { assert!(align_of::<T>() == 1) };
        // SAFETY: as for `read`; nobody writes it meanwhile; any bytes are a valid `T`, whose alignment is 1.
        unsafe { self.pointer.cast::<T>().read() }
    }

    /// Writes all of it.
    pub(crate) fn write(&self, mut value: T) {
        // SAFETY: as for `read`; only writable regions are written.
        unsafe { write_volatile(self.pointer.as_ptr(), value.as_mut_bytes()) };
    }
}

/// Fills `to` with what stands at `from`. A volatile read of a struct would be an instruction for each of its bytes.
///
/// # Safety
/// `from` is valid for reads of the length of `to`.
#[inline(never)]
unsafe fn read_volatile(from: *const u8, to: &mut [u8]) {
    for (index, byte) in to.iter_mut().enumerate() {
        // SAFETY: it is within the length, as the caller promises.
        *byte = unsafe { from.wrapping_add(index).read_volatile() };
    }
}

/// Puts `from` at `to`.
///
/// # Safety
/// `to` is valid for writes of the length of `from`.
#[inline(never)]
unsafe fn write_volatile(to: *mut u8, from: &[u8]) {
    for (index, byte) in from.iter().enumerate() {
        // SAFETY: as for `read_volatile`.
        unsafe { to.wrapping_add(index).write_volatile(*byte) };
    }
}

/// The boot page.
pub(crate) type Boot = Shared<BootPage>;

impl Boot {
    pub(crate) fn new<P: Platform>(platform: &P) -> Self {
        Self::at(platform, BOOT.start)
    }
}

/// The cancel word of the boot page.
pub(crate) fn cancel_word<P: Platform>(platform: &P) -> Shared<U32> {
    field(platform, BOOT.start, offset_of!(BootPage, cancel))
}

/// The device table entry of `slot`, `None` if there is no such slot.
pub(crate) fn device_entry<P: Platform>(platform: &P, slot: u16) -> Option<DeviceEntry> {
    let addr = entry_address(slot)?;
    Some(Shared::at(platform, addr).read())
}

/// What the user says of the files below the image in `slot`.
pub(crate) fn said_below<P: Platform>(platform: &P, slot: u16) -> Option<Shared<U16>> {
    let addr = entry_address(slot)?;
    Some(field(platform, addr, offset_of!(DeviceEntry, below)))
}

/// The number of filled bytes in the record window.
pub(crate) fn record_bytes<P: Platform>(platform: &P) -> Shared<U32> {
    field(
        platform,
        CONTROL.start,
        offset_of!(ControlPage, record_bytes),
    )
}

/// The file request of the control page.
pub(crate) fn file_request<P: Platform>(platform: &P) -> Shared<FileRequest> {
    field(
        platform,
        CONTROL.start,
        offset_of!(ControlPage, file_request),
    )
}

/// The file response of the control page.
pub(crate) fn file_response<P: Platform>(platform: &P) -> Shared<FileResponse> {
    field(
        platform,
        CONTROL.start,
        offset_of!(ControlPage, file_response),
    )
}

/// The memory grant of the control page.
pub(crate) fn memory_grant<P: Platform>(platform: &P) -> Shared<MemoryGrant> {
    field(platform, CONTROL.start, offset_of!(ControlPage, memory))
}

/// The size announcement of the control page.
pub(crate) fn announcement<P: Platform>(platform: &P) -> Shared<SizeAnnouncement> {
    field(
        platform,
        CONTROL.start,
        offset_of!(ControlPage, announcement),
    )
}

fn field<P: Platform, T: FromBytes + IntoBytes + Copy>(
    platform: &P,
    start: u64,
    offset: usize,
) -> Shared<T> {
    Shared::at(platform, start.saturating_add(offset as u64))
}
