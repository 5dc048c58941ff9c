//! From descriptors to validated buffers. VirtIO 1.3 §2.7.5 "The Virtqueue Descriptor Table".

use super::DeviceFault;
use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory, Permissions};

/// Length of a descriptor in bytes.
const DESCRIPTOR_BYTES: u32 = 16;
#[allow(clippy::cast_possible_truncation)] // flags have 16 bits
const F_NEXT: u16 = VRING_DESC_F_NEXT as u16;
#[allow(clippy::cast_possible_truncation)]
const F_WRITE: u16 = VRING_DESC_F_WRITE as u16;
#[allow(clippy::cast_possible_truncation)]
const F_INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_BYTES as usize);

/// A run of guest memory. Never empty, and validated to lie in the device's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestBuffer {
    /// Guest address of the first byte.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// The buffers of one descriptor chain, framing gone: where descriptors begin and end means
/// nothing (VirtIO 1.3 §2.7.4.1 "Device Requirements: Message Framing").
///
/// Belongs to the device until [`super::DeviceQueue::add_used`] or [`super::DeviceQueue::put_back`].
#[derive(Debug)]
pub struct Chain {
    /// First descriptor: the chain's name.
    pub head: u16,
    /// What the device reads, in order.
    pub readable: Vec<GuestBuffer>,
    /// What the device writes, in order.
    pub writable: Vec<GuestBuffer>,
}

/// Where the next descriptor is.
#[derive(Clone, Copy)]
struct Table {
    addr: u64,
    /// Number of descriptors.
    len: u16,
    indirect: bool,
}

/// Reads the chain that starts at `head`, each descriptor once. `indirect`: `VIRTIO_F_INDIRECT_DESC` was accepted.
pub(super) fn read_chain<M: GuestMemory>(
    mem: &M,
    queue: &Queue,
    head: u16,
    indirect: bool,
) -> Result<Chain, DeviceFault> {
    let mut chain = Chain {
        head,
        readable: Vec::new(),
        writable: Vec::new(),
    };
    let mut table = Table {
        addr: queue.desc_table(),
        len: queue.size(),
        indirect: false,
    };
    let mut index = head;
    // VirtIO 1.3 §2.7.5.3.1: a chain is no longer than the queue, wherever its descriptors are.
    let mut left = if indirect {
        queue.max_size()
    } else {
        queue.size()
    };
    while left > 0 {
        let descriptor = read_descriptor(mem, table, index)?;
        if indirect && descriptor.flags() & F_INDIRECT != 0 {
            table = enter_table(table, index, &descriptor, left)?;
            index = 0;
            continue;
        }
        left = left.saturating_sub(1);
        let buffer = check_buffer(mem, index, &descriptor)?;
        if descriptor.flags() & F_WRITE != 0 {
            chain.writable.push(buffer);
        } else if chain.writable.is_empty() {
            chain.readable.push(buffer);
        } else {
            return Err(DeviceFault::BufferOrder { index });
        }
        if descriptor.flags() & F_NEXT == 0 {
            return Ok(chain);
        }
        index = descriptor.next();
    }
    Err(DeviceFault::ChainLoop { head })
}

/// The table that `descriptor` names. VirtIO 1.3 §2.7.5.3.2: whether it is write-only means nothing.
fn enter_table(
    from: Table,
    index: u16,
    descriptor: &Descriptor,
    longest: u16,
) -> Result<Table, DeviceFault> {
    let (flags, len) = (descriptor.flags(), descriptor.len());
    if flags & !(F_INDIRECT | F_WRITE) != 0 {
        return Err(DeviceFault::DescriptorFlags { index, flags });
    }
    let count = len.checked_div(DESCRIPTOR_BYTES).unwrap_or(0);
    let count = u16::try_from(count).ok().filter(|count| {
        *count > 0 && *count <= longest && len.is_multiple_of(DESCRIPTOR_BYTES) && !from.indirect
    });
    Ok(Table {
        addr: descriptor.addr().0,
        len: count.ok_or(DeviceFault::IndirectTable { index, len })?,
        indirect: true,
    })
}

fn read_descriptor<M: GuestMemory>(
    mem: &M,
    table: Table,
    index: u16,
) -> Result<Descriptor, DeviceFault> {
    if index >= table.len {
        return Err(DeviceFault::DescriptorIndex {
            index,
            size: table.len,
        });
    }
    let offset = u64::from(index).saturating_mul(u64::from(DESCRIPTOR_BYTES));
    let outside = if table.indirect {
        DeviceFault::IndirectTable {
            index,
            len: u32::from(table.len).saturating_mul(DESCRIPTOR_BYTES),
        }
    } else {
        DeviceFault::QueueOutside
    };
    let addr = table.addr.checked_add(offset).ok_or(outside)?;
    mem.read_obj(GuestAddress(addr)).map_err(|_| outside)
}

fn check_buffer<M: GuestMemory>(
    mem: &M,
    index: u16,
    descriptor: &Descriptor,
) -> Result<GuestBuffer, DeviceFault> {
    let (addr, len, flags) = (descriptor.addr(), descriptor.len(), descriptor.flags());
    if flags & !(F_NEXT | F_WRITE) != 0 {
        return Err(DeviceFault::DescriptorFlags { index, flags });
    }
    if len == 0 {
        return Err(DeviceFault::EmptyBuffer { index });
    }
    let access = if flags & F_WRITE != 0 {
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
#[must_use]
pub fn total_len(buffers: &[GuestBuffer]) -> u64 {
    buffers
        .iter()
        .fold(0, |sum, buffer| sum.saturating_add(u64::from(buffer.len)))
}

/// Cuts `buffers` after `at` bytes; `None` if there are fewer.
#[must_use]
pub fn split_at(buffers: &[GuestBuffer], at: u64) -> Option<(Vec<GuestBuffer>, Vec<GuestBuffer>)> {
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

/// Takes the first `len` bytes off `buffers`; false if there are fewer, and then the rest is of no use.
#[must_use]
pub fn drop_front(buffers: &mut Vec<GuestBuffer>, len: u32) -> bool {
    let (mut left, mut whole) = (len, 0_usize);
    for buffer in buffers.iter_mut() {
        if let Some(more) = left.checked_sub(buffer.len) {
            (left, whole) = (more, whole.saturating_add(1));
            continue;
        }
        buffer.addr.0 = buffer.addr.0.saturating_add(u64::from(left));
        buffer.len = buffer.len.saturating_sub(left);
        left = 0;
        break;
    }
    buffers.drain(..whole);
    left == 0
}

/// Takes the last `len` bytes off `buffers` and returns them; `None` if there are fewer, and then the rest is of no use.
#[must_use]
pub fn take_back(buffers: &mut Vec<GuestBuffer>, len: u32) -> Option<Vec<GuestBuffer>> {
    let (mut left, mut from) = (len, buffers.len());
    for (index, buffer) in buffers.iter_mut().enumerate().rev() {
        if left == 0 {
            break;
        }
        from = index;
        if let Some(more) = left.checked_sub(buffer.len) {
            left = more;
            continue;
        }
        let mut taken = *buffer;
        buffer.len = buffer.len.saturating_sub(left);
        taken.addr.0 = taken.addr.0.saturating_add(u64::from(buffer.len));
        taken.len = left;
        let mut back = buffers.split_off(index.saturating_add(1));
        back.insert(0, taken);
        return Some(back);
    }
    (left == 0).then(|| buffers.split_off(from))
}

/// Copies the first bytes of `buffers` into `out`; false if there are too few or they cannot be read.
#[must_use]
pub fn gather<M: GuestMemory>(mem: &M, buffers: &[GuestBuffer], out: &mut [u8]) -> bool {
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

/// Writes `bytes` into `buffers` from the front; says how many fitted.
///
/// # Errors
/// [`DeviceFault::Memory`].
pub fn scatter<M: GuestMemory>(
    mem: &M,
    buffers: &[GuestBuffer],
    bytes: &[u8],
) -> Result<u32, DeviceFault> {
    let mut rest = bytes;
    let mut written = 0_u32;
    for buffer in buffers {
        let len = buffer
            .len
            .min(u32::try_from(rest.len()).unwrap_or(u32::MAX));
        let split = rest.split_at_checked(len as usize);
        let (now, later) = split.ok_or(DeviceFault::Memory)?;
        if now.is_empty() {
            break;
        }
        let copied = mem.write_slice(now, buffer.addr);
        copied.map_err(|_| DeviceFault::Memory)?;
        written = written.saturating_add(len);
        rest = later;
    }
    Ok(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffers(lens: &[u32]) -> Vec<GuestBuffer> {
        let buffer = |(n, len): (u64, &u32)| GuestBuffer {
            addr: GuestAddress(n * 100),
            len: *len,
        };
        (0..).zip(lens).map(buffer).collect()
    }

    #[test]
    fn both_ends_are_cut_as_a_split_does() {
        for lens in [
            &[][..],
            &[16],
            &[3, 13],
            &[7, 20, 1],
            &[1, 1, 1, 1],
            &[40, 8],
        ] {
            let all = buffers(lens);
            let total = total_len(&all);
            for at in 0..=total + 2 {
                let split = split_at(&all, at);
                let mut rest = all.clone();
                let dropped = drop_front(&mut rest, u32::try_from(at).unwrap());
                assert_eq!(dropped.then_some(rest), split.clone().map(|(_, back)| back));
                let mut rest = all.clone();
                let len = u32::try_from(total + 2 - at).unwrap();
                let taken = take_back(&mut rest, len).map(|back| (rest, back));
                let split = (total + 2 - at <= total)
                    .then(|| split_at(&all, at - 2))
                    .flatten();
                assert_eq!(taken, split, "{lens:?} {at}");
            }
        }
    }
}
