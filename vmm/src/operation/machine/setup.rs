//! What a guest finds when it starts: mappings and the boot page.

use crate::VmError;
use crate::arch::{Access, Mapping};
use crate::hypervisor::Vcpu;
use crate::operation::secrets;
use instar_shared::abi::ABI_VERSION;
use instar_shared::boot::{BOOT_MAGIC, BootPage};
use instar_shared::layout::{
    BOOT, CONFIG, CONTROL, DEVICE_TABLE, HEAP_START, LARGE_PAGE_SIZE, MAX_SLOT_SIZE, MIN_HEAP_SIZE,
    QUEUES, RECORDS, RESULT, Region, STACK, stack_of,
};
use std::time::SystemTime;

/// The heap for a memory cap: whole large pages, within what the page tables can map.
pub fn heap_bytes(cap: u64) -> u64 {
    let most = MAX_SLOT_SIZE - HEAP_START;
    let cap = cap.clamp(MIN_HEAP_SIZE, most);
    cap - cap % LARGE_PAGE_SIZE
}

/// Everything ring 3 may reach.
pub fn mappings(image: &[Mapping], heap_bytes: u64, vcpus: u8) -> Vec<Mapping> {
    let read = [BOOT, CONFIG, DEVICE_TABLE].map(|region| map(region, Access::Read));
    let heap = Region {
        start: HEAP_START,
        size: heap_bytes,
    };
    let write = [RESULT, CONTROL, RECORDS, STACK, QUEUES, heap]
        .map(|region| map(region, Access::ReadWrite));
    let stacks = (1..vcpus).filter_map(stack_of);
    let stacks = stacks.map(|stack| map(stack, Access::ReadWrite));
    let image = image.iter().copied();
    image.chain(read).chain(write).chain(stacks).collect()
}

/// A whole region, where the guest finds it.
pub const fn map(region: Region, access: Access) -> Mapping {
    Mapping {
        start: region.start,
        size: region.size,
        access,
    }
}

/// The boot page.
///
/// # Errors
/// [`VmError::Random`]: there may be keys to make, and the kernel has no random bytes.
pub fn boot_page(
    vcpu: &impl Vcpu,
    heap_end: u64,
    vcpus: u8,
    secrets: &[secrets::Secret],
) -> Result<BootPage, VmError> {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut entropy = [0; 64];
    let filled = random(&mut entropy);
    if !secrets.is_empty() {
        filled.map_err(VmError::Random)?;
    }
    Ok(BootPage {
        magic: BOOT_MAGIC.into(),
        abi_version: ABI_VERSION.into(),
        vcpus: u32::from(vcpus).into(),
        heap_start: HEAP_START.into(),
        heap_end: heap_end.into(),
        cpu_features: vcpu.cpu_features().into(),
        tsc_hz: vcpu.counter_hz().into(),
        wall_clock_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).into(),
        entropy,
        secrets: u32::try_from(secrets.len()).unwrap_or(u32::MAX).into(),
        ..BootPage::zeroed()
    })
}

/// Fills `bytes` from the kernel; what it does not give stays zero.
#[cfg(target_os = "linux")]
fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    let flags = rustix::rand::GetRandomFlags::empty();
    let wanted = bytes.len();
    let given = rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut *bytes, flags))?;
    if given == wanted {
        Ok(())
    } else {
        Err(std::io::ErrorKind::UnexpectedEof.into())
    }
}

/// Fills `bytes` from the kernel; what it does not give stays zero.
#[cfg(not(target_os = "linux"))]
fn random(bytes: &mut [u8]) -> std::io::Result<()> {
    // SAFETY: the buffer is valid for its length; getentropy writes at most 256 bytes.
    match unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}
