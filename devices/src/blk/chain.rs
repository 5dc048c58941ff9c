//! From descriptors to validated buffers. VirtIO 1.3 §2.7.5 "The Virtqueue Descriptor Table".

use super::DeviceFault;
use super::backend::GuestBuffer;
use instar_shared::ring::{DESC_F_NEXT, DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// The buffers of one descriptor chain, framing gone: where descriptors begin and end means
/// nothing (VirtIO 1.3 §2.7.4.1 "Device Requirements: Message Framing").
#[derive(Debug, Default)]
pub(super) struct Chain {
    /// What the device reads, in order.
    pub readable: Vec<GuestBuffer>,
    /// What the device writes, in order.
    pub writable: Vec<GuestBuffer>,
}

/// Reads the chain that starts at `head`, each descriptor once.
pub(super) fn read_chain<M: GuestMemory>(
    mem: &M,
    queue: &Queue,
    head: u16,
) -> Result<Chain, DeviceFault> {
    let mut chain = Chain::default();
    let mut index = head;
    // VirtIO 1.3 §2.7.5.3.1: a chain is no longer than the queue.
    for _ in 0..queue.size() {
        let descriptor = read_descriptor(mem, queue, index)?;
        let buffer = check_buffer(mem, index, &descriptor)?;
        if descriptor.flags() & DESC_F_WRITE != 0 {
            chain.writable.push(buffer);
        } else if chain.writable.is_empty() {
            chain.readable.push(buffer);
        } else {
            return Err(DeviceFault::BufferOrder { index });
        }
        if descriptor.flags() & DESC_F_NEXT == 0 {
            return Ok(chain);
        }
        index = descriptor.next();
    }
    Err(DeviceFault::ChainLoop { head })
}

fn read_descriptor<M: GuestMemory>(
    mem: &M,
    queue: &Queue,
    index: u16,
) -> Result<Descriptor, DeviceFault> {
    if index >= queue.size() {
        return Err(DeviceFault::DescriptorIndex {
            index,
            size: queue.size(),
        });
    }
    let offset = u64::from(index).saturating_mul(size_of::<Descriptor>() as u64);
    let addr = queue
        .desc_table()
        .checked_add(offset)
        .ok_or(DeviceFault::QueueOutside)?;
    mem.read_obj(GuestAddress(addr))
        .map_err(|_| DeviceFault::QueueOutside)
}

fn check_buffer<M: GuestMemory>(
    mem: &M,
    index: u16,
    descriptor: &Descriptor,
) -> Result<GuestBuffer, DeviceFault> {
    let (addr, len, flags) = (descriptor.addr(), descriptor.len(), descriptor.flags());
    if flags & !(DESC_F_NEXT | DESC_F_WRITE) != 0 {
        return Err(DeviceFault::DescriptorFlags { index, flags });
    }
    if len == 0 {
        return Err(DeviceFault::EmptyBuffer { index });
    }
    let access = if flags & DESC_F_WRITE != 0 {
        Permissions::Write
    } else {
        Permissions::Read
    };
    let outside = DeviceFault::BufferOutside {
        index,
        addr: addr.0,
        len,
    };
    addr.0.checked_add(u64::from(len)).ok_or(outside)?;
    if !mem.check_range(addr, len as usize, access) {
        return Err(outside);
    }
    Ok(GuestBuffer { addr, len })
}

/// Bytes of all buffers; at most queue size × 4 GiB, so it cannot overflow.
pub(super) fn total_len(buffers: &[GuestBuffer]) -> u64 {
    buffers
        .iter()
        .fold(0, |sum, buffer| sum.saturating_add(u64::from(buffer.len)))
}

/// Cuts `buffers` after `at` bytes; `None` if there are fewer.
pub(super) fn split_at(
    buffers: &[GuestBuffer],
    at: u64,
) -> Option<(Vec<GuestBuffer>, Vec<GuestBuffer>)> {
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let mut left = at;
    for buffer in buffers {
        let here = u32::try_from(left.min(u64::from(buffer.len))).ok()?;
        left = left.checked_sub(u64::from(here))?;
        if here > 0 {
            front.push(GuestBuffer {
                addr: buffer.addr,
                len: here,
            });
        }
        if here < buffer.len {
            back.push(GuestBuffer {
                addr: GuestAddress(buffer.addr.0.checked_add(u64::from(here))?),
                len: buffer.len.checked_sub(here)?,
            });
        }
    }
    (left == 0).then_some((front, back))
}

/// Copies the first bytes of `buffers` into `out`; false if there are too few or they cannot be read.
pub(super) fn gather<M: GuestMemory>(mem: &M, buffers: &[GuestBuffer], out: &mut [u8]) -> bool {
    let mut rest = out;
    for buffer in buffers {
        let len = rest.len().min(buffer.len as usize);
        let Some((now, later)) = rest.split_at_mut_checked(len) else {
            return false;
        };
        if mem.read_slice(now, buffer.addr).is_err() {
            return false;
        }
        rest = later;
    }
    rest.is_empty()
}
