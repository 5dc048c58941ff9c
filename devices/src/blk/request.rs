//! From a descriptor chain to a typed request. VirtIO 1.3 §5.2.6 "Device Operation".

use super::backend::{Errno, IoKind, IoRequest};
use super::device::BlkConfig;
use super::{
    DISCARD_SEGMENT_BYTES, DeviceFault, GuestBuffer, MAX_OFFSET, MAX_SEGMENT_SECTORS,
    MAX_STATUS_EXTENTS, SEGMENTS_BYTES, WRITE_ZEROES_UNMAP,
};
use crate::virtio::chain::{Chain, drop_front, gather, take_back, total_len};
use instar_shared::blk::{
    CopyArg, ID_BYTES, MAX_REQUEST_BYTES, RANGE_WRITE_ZEROS, RangeArg, RequestHeader, RequestType,
    SECTOR_SIZE, Status, StatusExtent, VendorFooter,
};
use instar_shared::device::{
    FEATURE_BLOCK_STATUS, FEATURE_BYTE_IO, FEATURE_BYTE_WRITE, FEATURE_COPY, MAX_DEVICES,
};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_WRITE_ZEROES};
use vm_memory::GuestMemory;

/// A request whose chain is sound.
#[derive(Debug)]
pub(super) struct Request {
    /// What to do.
    pub action: Action,
    /// Where the outcome goes.
    pub footer: Footer,
}

/// What to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// Hand it to the backend.
    Io(IoRequest),
    /// Hand these to the backend, none of which has buffers; the request is done when all are.
    Several(Vec<IoKind>),
    /// Put the identifier into these buffers.
    GetId(Vec<GuestBuffer>),
    /// Put the length into these buffers.
    GetLength(Vec<GuestBuffer>),
    /// Nothing: the request makes no sense, or is not on offer.
    Refuse(Status, Errno),
}

/// The writable end of a chain.
#[derive(Clone, Debug)]
pub(super) struct Footer {
    /// [`VendorFooter`] or one status byte.
    pub vendor: bool,
    /// Its bytes; more than one buffer if the driver framed it so.
    pub buffers: Vec<GuestBuffer>,
}

impl Footer {
    /// Length in bytes.
    pub(super) const fn len(&self) -> u32 {
        footer_len(self.vendor)
    }
}

#[allow(clippy::cast_possible_truncation)] // 16
const HEADER_BYTES: u32 = size_of::<RequestHeader>() as u32;

#[allow(clippy::cast_possible_truncation)] // 1 or 8
const fn footer_len(vendor: bool) -> u32 {
    if vendor {
        size_of::<VendorFooter>() as u32
    } else {
        1
    }
}

/// The parts of a chain, once the header is known.
struct Parts {
    head: u16,
    start: u64,
    out_data: Vec<GuestBuffer>,
    in_data: Vec<GuestBuffer>,
}

/// Reads the header and decides what the request is.
pub(super) fn parse<M: GuestMemory>(
    mem: &M,
    config: &BlkConfig,
    chain: Chain,
) -> Result<Request, DeviceFault> {
    let head = chain.head;
    let mut raw = [0; size_of::<RequestHeader>()];
    let short = DeviceFault::HeaderShort { head };
    let (mut out_data, mut in_data) = (chain.readable, chain.writable);
    if total_len(&out_data) < raw.len() as u64 {
        return Err(short);
    }
    if !gather(mem, &out_data, &mut raw) {
        return Err(DeviceFault::Memory);
    }
    if !drop_front(&mut out_data, HEADER_BYTES) {
        return Err(short);
    }
    let header = RequestHeader::read_from_bytes(raw.as_bytes()).map_err(|_| short)?;

    let raw_type = header.request_type.get();
    let vendor = config.vendor_features != 0 && raw_type >= RequestType::ReadBytes.raw();
    let buffers = take_back(&mut in_data, footer_len(vendor));
    let buffers = buffers.ok_or(DeviceFault::FooterShort { head })?;
    let parts = Parts {
        head,
        start: header.sector.get(),
        out_data,
        in_data,
    };
    let action = match RequestType::try_from(raw_type) {
        Ok(_) if vendor && header.reserved.get() != 0 => INVALID,
        Ok(kind) => act(mem, config, kind, parts)?,
        Err(_) => Action::Refuse(Status::Unsupported, Errno::EOPNOTSUPP),
    };
    Ok(Request {
        action,
        footer: Footer { vendor, buffers },
    })
}

/// The request is known, but its numbers make no sense.
const INVALID: Action = Action::Refuse(Status::IoErr, Errno::EINVAL);

/// Whether the device offers `kind`.
fn offered(config: &BlkConfig, kind: RequestType) -> bool {
    match kind {
        RequestType::In | RequestType::Out | RequestType::Flush | RequestType::GetId => true,
        RequestType::Discard => config.has_virtio_feature(VIRTIO_BLK_F_DISCARD),
        RequestType::WriteZeroes => config.has_virtio_feature(VIRTIO_BLK_F_WRITE_ZEROES),
        RequestType::ReadBytes | RequestType::GetLength => {
            config.vendor_features & FEATURE_BYTE_IO != 0
        }
        RequestType::BlockStatus => config.vendor_features & FEATURE_BLOCK_STATUS != 0,
        // A read-only device does not offer them, and says why it refuses.
        RequestType::WriteBytes
        | RequestType::SetLength
        | RequestType::Allocate
        | RequestType::DiscardBytes
        | RequestType::ZeroBytes => {
            config.vendor_features & FEATURE_BYTE_WRITE != 0
                || (config.vendor_features != 0 && config.read_only)
        }
        RequestType::CopyRange => {
            config.vendor_features & FEATURE_COPY != 0
                || (config.vendor_features != 0 && config.read_only)
        }
        RequestType::Sync => config.vendor_features & FEATURE_BYTE_WRITE != 0,
    }
}

/// Whether a request of `kind` changes the store; its data, if any, is what the device reads.
const fn changes(kind: RequestType) -> bool {
    match kind {
        RequestType::Out
        | RequestType::Discard
        | RequestType::WriteZeroes
        | RequestType::WriteBytes
        | RequestType::SetLength
        | RequestType::Allocate
        | RequestType::DiscardBytes
        | RequestType::ZeroBytes
        | RequestType::CopyRange => true,
        RequestType::In
        | RequestType::Flush
        | RequestType::GetId
        | RequestType::ReadBytes
        | RequestType::GetLength
        | RequestType::BlockStatus
        | RequestType::Sync => false,
    }
}

/// Checks direction, size and range, in that order.
fn act<M: GuestMemory>(
    mem: &M,
    config: &BlkConfig,
    kind: RequestType,
    parts: Parts,
) -> Result<Action, DeviceFault> {
    if !offered(config, kind) {
        return Ok(Action::Refuse(Status::Unsupported, Errno::EOPNOTSUPP));
    }
    let writes = changes(kind);
    let (data, other) = if writes {
        (&parts.out_data, &parts.in_data)
    } else {
        (&parts.in_data, &parts.out_data)
    };
    if !other.is_empty() {
        return Err(DeviceFault::DataDirection { head: parts.head });
    }
    let len = total_len(data);
    if len > MAX_REQUEST_BYTES || !size_fits(kind, len) {
        return Ok(INVALID);
    }
    if writes && config.read_only {
        return Ok(Action::Refuse(Status::IoErr, Errno::EROFS));
    }
    perform(mem, config, kind, len, parts)
}

/// Whether a request of `kind` may have `len` data bytes.
fn size_fits(kind: RequestType, len: u64) -> bool {
    const EXTENT: u64 = size_of::<StatusExtent>() as u64;
    match kind {
        RequestType::In | RequestType::Out => len > 0 && len.is_multiple_of(SECTOR_SIZE),
        RequestType::Flush | RequestType::Sync | RequestType::SetLength => len == 0,
        RequestType::GetId => len == ID_BYTES as u64,
        RequestType::Discard | RequestType::WriteZeroes => {
            len > 0
                && len.is_multiple_of(DISCARD_SEGMENT_BYTES as u64)
                && len <= SEGMENTS_BYTES as u64
        }
        RequestType::ReadBytes | RequestType::WriteBytes => len > 0,
        RequestType::Allocate | RequestType::DiscardBytes | RequestType::ZeroBytes => {
            len == size_of::<RangeArg>() as u64
        }
        RequestType::CopyRange => len == size_of::<CopyArg>() as u64,
        RequestType::GetLength => len == 8,
        RequestType::BlockStatus => {
            len > 0
                && len.is_multiple_of(EXTENT)
                && len <= EXTENT.saturating_mul(MAX_STATUS_EXTENTS as u64)
        }
    }
}

fn perform<M: GuestMemory>(
    mem: &M,
    config: &BlkConfig,
    kind: RequestType,
    len: u64,
    parts: Parts,
) -> Result<Action, DeviceFault> {
    let sectors = || sector_range(config, parts.start, len);
    let io = |kind, buffers| Action::Io(IoRequest { kind, buffers });
    let action = match kind {
        RequestType::In => match sectors() {
            Some(offset) => io(IoKind::Read { offset }, parts.in_data),
            None => INVALID,
        },
        RequestType::Out => match sectors() {
            Some(offset) => io(IoKind::Write { offset }, parts.out_data),
            None => INVALID,
        },
        RequestType::Flush | RequestType::Sync => io(IoKind::Flush, Vec::new()),
        RequestType::GetId => Action::GetId(parts.in_data),
        RequestType::GetLength => Action::GetLength(parts.in_data),
        RequestType::Discard | RequestType::WriteZeroes => {
            return segments(mem, config, kind, &parts.out_data);
        }
        RequestType::ReadBytes => match byte_range(parts.start, len) {
            Some(offset) => io(IoKind::Read { offset }, parts.in_data),
            None => INVALID,
        },
        RequestType::BlockStatus => match byte_range(parts.start, 0) {
            Some(offset) => io(IoKind::BlockStatus { offset }, parts.in_data),
            None => INVALID,
        },
        RequestType::WriteBytes => match byte_range(parts.start, len) {
            Some(offset) => io(IoKind::Write { offset }, parts.out_data),
            None => INVALID,
        },
        RequestType::SetLength => match byte_range(parts.start, 0) {
            Some(len) => io(IoKind::SetLength { len }, Vec::new()),
            None => INVALID,
        },
        RequestType::Allocate | RequestType::DiscardBytes | RequestType::ZeroBytes => {
            return range(mem, kind, parts.start, &parts.out_data);
        }
        RequestType::CopyRange => return copy(mem, parts.start, &parts.out_data),
    };
    Ok(action)
}

/// The segments of a discard or write-zeroes request. VirtIO 1.3 §5.2.6. If one makes no sense, nothing is done.
fn segments<M: GuestMemory>(
    mem: &M,
    config: &BlkConfig,
    kind: RequestType,
    data: &[GuestBuffer],
) -> Result<Action, DeviceFault> {
    let len = usize::try_from(total_len(data)).map_err(|_| DeviceFault::Memory)?;
    let mut raw = [0; SEGMENTS_BYTES];
    let raw = raw.get_mut(..len).ok_or(DeviceFault::Memory)?;
    if !gather(mem, data, raw) {
        return Err(DeviceFault::Memory);
    }
    let segments = raw.chunks_exact(DISCARD_SEGMENT_BYTES);
    let kinds: Result<Vec<IoKind>, Action> =
        segments.map(|bytes| segment(config, kind, bytes)).collect();
    Ok(match kinds {
        Err(refused) => refused,
        Ok(kinds) => match *kinds.as_slice() {
            [kind] => Action::Io(IoRequest {
                kind,
                buffers: Vec::new(),
            }),
            _ => Action::Several(kinds),
        },
    })
}

/// What one segment asks for.
fn segment(config: &BlkConfig, kind: RequestType, bytes: &[u8]) -> Result<IoKind, Action> {
    use instar_shared::zerocopy::little_endian::{U32, U64};
    let (sector, rest) = U64::read_from_prefix(bytes).map_err(|_| INVALID)?;
    let [sectors, flags] = <[U32; 2]>::read_from_bytes(rest).map_err(|_| INVALID)?;
    let (sectors, flags) = (sectors.get(), flags.get());
    let unmap = flags & WRITE_ZEROES_UNMAP != 0;
    // VirtIO 1.3 §5.2.6.2: unknown flags, and unmap on a discard, are unsupported.
    if flags & !WRITE_ZEROES_UNMAP != 0 || (unmap && kind == RequestType::Discard) {
        return Err(Action::Refuse(Status::Unsupported, Errno::EOPNOTSUPP));
    }
    let len = u64::from(sectors).saturating_mul(SECTOR_SIZE);
    let offset = sector_range(config, sector.get(), len);
    let offset = offset.filter(|_| sectors <= MAX_SEGMENT_SECTORS);
    let offset = offset.ok_or(INVALID)?;
    Ok(if kind == RequestType::Discard {
        IoKind::Discard { offset, len }
    } else {
        IoKind::WriteZeroes { offset, len, unmap }
    })
}

/// The range of a vendor request that is about one.
fn range<M: GuestMemory>(
    mem: &M,
    kind: RequestType,
    start: u64,
    data: &[GuestBuffer],
) -> Result<Action, DeviceFault> {
    let mut raw = [0; size_of::<RangeArg>()];
    if !gather(mem, data, &mut raw) {
        return Err(DeviceFault::Memory);
    }
    let arg = RangeArg::read_from_bytes(raw.as_bytes()).map_err(|_| DeviceFault::Memory)?;
    let (len, flags) = (arg.len.get(), arg.flags.get());
    let known = if kind == RequestType::Allocate {
        RANGE_WRITE_ZEROS
    } else {
        0
    };
    let Some(offset) = byte_range(start, len).filter(|_| len > 0 && flags & !known == 0) else {
        return Ok(INVALID);
    };
    let kind = match kind {
        RequestType::Allocate => IoKind::Allocate {
            offset,
            len,
            zeros: flags & RANGE_WRITE_ZEROS != 0,
        },
        RequestType::DiscardBytes => IoKind::Discard { offset, len },
        _ => IoKind::WriteZeroes {
            offset,
            len,
            unmap: true,
        },
    };
    Ok(Action::Io(IoRequest {
        kind,
        buffers: Vec::new(),
    }))
}

/// A copy from another device's file.
fn copy<M: GuestMemory>(mem: &M, start: u64, data: &[GuestBuffer]) -> Result<Action, DeviceFault> {
    let mut raw = [0; size_of::<CopyArg>()];
    if !gather(mem, data, &mut raw) {
        return Err(DeviceFault::Memory);
    }
    let arg = CopyArg::read_from_bytes(raw.as_bytes()).map_err(|_| DeviceFault::Memory)?;
    let len = arg.len.get();
    let ranges = byte_range(start, len).zip(byte_range(arg.from_offset.get(), len));
    let ranges = ranges.filter(|_| len > 0 && arg.reserved.get() == 0);
    let slot = u16::try_from(arg.from_slot.get()).ok();
    let slot = slot.filter(|slot| *slot < MAX_DEVICES);
    let (Some((offset, from_offset)), Some(from_slot)) = (ranges, slot) else {
        return Ok(INVALID);
    };
    Ok(Action::Io(IoRequest {
        kind: IoKind::Copy {
            from_slot,
            from_offset,
            offset,
            len,
        },
        buffers: Vec::new(),
    }))
}

/// Byte offset of a sector range that lies in the capacity.
fn sector_range(config: &BlkConfig, sector: u64, len: u64) -> Option<u64> {
    let offset = sector.checked_mul(SECTOR_SIZE)?;
    let end = offset.checked_add(len)?;
    let capacity = config.capacity_sectors().checked_mul(SECTOR_SIZE)?;
    (end <= capacity && end <= MAX_OFFSET).then_some(offset)
}

/// The byte offset, if the range can be named on the host.
fn byte_range(offset: u64, len: u64) -> Option<u64> {
    (offset.checked_add(len)? <= MAX_OFFSET).then_some(offset)
}
