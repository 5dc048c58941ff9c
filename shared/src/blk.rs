//! Block requests. VirtIO 1.3 §5.2.6 "Device Operation", plus our vendor requests.
//!
//! A request is a descriptor chain: a [`RequestHeader`] the device reads, data
//! buffers, and a footer the device writes. The standard footer is one status
//! byte. Vendor requests end in a [`VendorFooter`], whose last byte is that
//! same status, preceded by the host's errno.

use zerocopy::little_endian::{U32, U64};

/// Unit of [`RequestHeader::sector`] in standard requests.
pub const SECTOR_SIZE: u64 = 512;
/// Largest data length of one request: bounds the I/O vector of a chain.
pub const MAX_REQUEST_BYTES: u64 = 64 << 20;
/// Length of a device identifier. VirtIO 1.3 §5.2.6.
pub const ID_BYTES: usize = 20;

wire_enum! {
    /// Request types: VirtIO 1.3 §5.2.6, and from 0x8000_0000 on our own.
    pub enum RequestType: u32 {
        /// Read sectors.
        In = 0,
        /// Write sectors.
        Out = 1,
        /// Make completed writes durable.
        Flush = 4,
        /// Read the identifier, [`ID_BYTES`] bytes.
        GetId = 8,
        /// Discard sectors.
        Discard = 11,
        /// Write zeroes to sectors.
        WriteZeroes = 13,
        /// Vendor: read any number of bytes from any byte offset (`sector` is a byte offset).
        /// Past the end the bytes are zeros.
        ReadBytes = 0x8000_0000,
        /// Vendor: the exact length in bytes now; data is one `U64`.
        GetLength = 0x8000_0001,
        /// Vendor: runs of data and holes from byte offset `sector` on; data is an array of
        /// [`StatusExtent`], filled from the front and ended by the first `len` of 0.
        BlockStatus = 0x8000_0002,
        /// Vendor: write any number of bytes at byte offset `sector`. Past the end the file grows,
        /// up to the device's limit.
        WriteBytes = 0x8000_0003,
        /// Vendor: make the file exactly `sector` bytes long. No data.
        SetLength = 0x8000_0004,
        /// Vendor: reserve space from byte offset `sector` on; data is a [`RangeArg`] whose flags are
        /// 0 (`fallocate`) or [`RANGE_WRITE_ZEROS`]. The file grows if it is shorter.
        Allocate = 0x8000_0005,
        /// Vendor: the bytes from offset `sector` on are no longer needed; data is a [`RangeArg`].
        DiscardBytes = 0x8000_0006,
        /// Vendor: the bytes from offset `sector` on read as zeros; data is a [`RangeArg`].
        ZeroBytes = 0x8000_0007,
        /// Vendor: make completed writes durable, with `FEATURE_ORDERED` all that came before it; unlike `Flush` it
        /// says why it failed. No data.
        Sync = 0x8000_0008,
        /// Vendor: copy from the file of another slot, or from another range of this one, to byte offset
        /// `sector`; data is a [`CopyArg`]. Bytes past the source's end are zeros. The file grows if it is
        /// shorter. Where the host can share blocks it does. Ranges of one file that overlap are EINVAL.
        CopyRange = 0x8000_0009,
    }
}

impl RequestType {
    /// Whether the request ends in a [`VendorFooter`].
    #[must_use]
    pub const fn is_vendor(self) -> bool {
        self.raw() >= 0x8000_0000
    }
}

wire_enum! {
    /// The status byte. VirtIO 1.3 §5.2.6.
    pub enum Status: u8 {
        /// Done.
        Ok = 0,
        /// The request failed; vendor footers say why.
        IoErr = 1,
        /// The device does not know or does not offer the request.
        Unsupported = 2,
    }
}

wire_struct! {
    /// What every request starts with.
    pub struct RequestHeader {
        /// A [`RequestType`].
        pub request_type: U32,
        /// Zero.
        pub reserved: U32,
        /// First sector; a byte offset in vendor requests.
        pub sector: U64,
    }
}
wire_layout!(RequestHeader, size = 16, { request_type @ 0, reserved @ 4, sector @ 8 });

wire_struct! {
    /// What a vendor request ends with.
    pub struct VendorFooter {
        /// The host's errno (Linux numbering) if the status is [`Status::IoErr`], else 0.
        pub errno: U32,
        /// Zero.
        pub reserved: [u8; 3],
        /// A [`Status`].
        pub status: u8,
    }
}
wire_layout!(VendorFooter, size = 8, { errno @ 0, reserved @ 4, status @ 7 });

/// The extent holds data.
pub const EXTENT_DATA: u64 = 1 << 0;

wire_struct! {
    /// One run of [`RequestType::BlockStatus`].
    pub struct StatusExtent {
        /// Length in bytes; 0 ends the list.
        pub len: U64,
        /// [`EXTENT_DATA`] or 0 for a hole.
        pub flags: U64,
    }
}
wire_layout!(StatusExtent, size = 16, { len @ 0, flags @ 8 });

/// [`RequestType::Allocate`]: reserve by writing zeros.
pub const RANGE_WRITE_ZEROS: u64 = 1 << 0;

wire_struct! {
    /// The data of vendor requests that are about a range rather than its bytes.
    pub struct RangeArg {
        /// Length in bytes, not 0.
        pub len: U64,
        /// `RANGE_*`.
        pub flags: U64,
    }
}
wire_layout!(RangeArg, size = 16, { len @ 0, flags @ 8 });

wire_struct! {
    /// The data of [`RequestType::CopyRange`].
    pub struct CopyArg {
        /// Length in bytes, not 0.
        pub len: U64,
        /// First byte that is read.
        pub from_offset: U64,
        /// Slot of the file that is read.
        pub from_slot: U32,
        /// Zero.
        pub reserved: U32,
    }
}
wire_layout!(CopyArg, size = 24, { len @ 0, from_offset @ 8, from_slot @ 16, reserved @ 20 });
