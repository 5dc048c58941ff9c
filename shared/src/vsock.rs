//! virtio-vsock: what stands in the buffers of its queues. VirtIO 1.3 §5.10 "Socket Device".

use zerocopy::little_endian::{U16, U32, U64};

/// The host's address. VirtIO 1.3 §5.10.4.
pub const HOST_CID: u64 = 2;
/// First address that a guest may have: 0 and 1 are reserved, 2 is the host. VirtIO 1.3 §5.10.4.
pub const FIRST_GUEST_CID: u32 = 3;

/// `type` of a stream's packets. VirtIO 1.3 §5.10.6 (`VIRTIO_VSOCK_TYPE_STREAM`).
pub const TYPE_STREAM: u16 = 1;

/// `flags` of [`Op::Shutdown`]: the sender will receive no more. VirtIO 1.3 §5.10.6.6.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `flags` of [`Op::Shutdown`]: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// `id` of an [`Event`]: communication was interrupted, all connections are gone. VirtIO 1.3 §5.10.6.7.
pub const EVENT_TRANSPORT_RESET: u32 = 0;

wire_enum! {
    /// What a packet is. VirtIO 1.3 §5.10.6.
    pub enum Op: u16 {
        /// Connect.
        Request = 1,
        /// The connection is accepted.
        Response = 2,
        /// The connection is gone, or was never there.
        Rst = 3,
        /// One or both directions end.
        Shutdown = 4,
        /// Data.
        Rw = 5,
        /// How much may be sent.
        CreditUpdate = 6,
        /// Asks for [`Op::CreditUpdate`].
        CreditRequest = 7,
    }
}

wire_struct! {
    /// Header of every packet, the data follow. VirtIO 1.3 §5.10.6 "Device Operation".
    pub struct Header {
        /// Address of the sender.
        pub src_cid: U64,
        /// Address of the receiver.
        pub dst_cid: U64,
        /// Port of the sender.
        pub src_port: U32,
        /// Port of the receiver.
        pub dst_port: U32,
        /// Bytes of data.
        pub len: U32,
        /// Kind of socket: [`TYPE_STREAM`].
        pub kind: U16,
        /// An [`Op`].
        pub op: U16,
        /// Of [`Op::Shutdown`]: `SHUTDOWN_*`.
        pub flags: U32,
        /// Bytes that the sender has room for in all.
        pub buf_alloc: U32,
        /// Bytes that have left that room, modulo 2^32.
        pub fwd_cnt: U32,
    }
}
wire_layout!(Header, size = 44, {
    src_cid @ 0, dst_cid @ 8, src_port @ 16, dst_port @ 20, len @ 24, kind @ 28, op @ 30,
    flags @ 32, buf_alloc @ 36, fwd_cnt @ 40,
});

wire_struct! {
    /// What the device puts into the event queue. VirtIO 1.3 §5.10.6.7 "Device Events".
    pub struct Event {
        /// [`EVENT_TRANSPORT_RESET`].
        pub id: U32,
    }
}
wire_layout!(Event, size = 4, { id @ 0 });

wire_struct! {
    /// The device's configuration. VirtIO 1.3 §5.10.4.
    pub struct Config {
        /// The guest's address; its upper half is zero.
        pub guest_cid: U64,
    }
}
wire_layout!(Config, size = 8, { guest_cid @ 0 });
