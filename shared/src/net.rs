//! virtio-net: what stands in the buffers of its queues. VirtIO 1.3 §5.1 "Network Device".

use zerocopy::little_endian::{U16, U64};

wire_struct! {
    /// Header of every packet. VirtIO 1.3 §5.1.6 "Device Operation".
    pub struct Header {
        /// `VIRTIO_NET_HDR_F_*`.
        pub flags: u8,
        /// `VIRTIO_NET_HDR_GSO_*`.
        pub gso_type: u8,
        /// Length of the headers in bytes.
        pub hdr_len: U16,
        /// Bytes of each segment beyond the headers.
        pub gso_size: U16,
        /// Where the checksum begins.
        pub csum_start: U16,
        /// Where the checksum is put, from there.
        pub csum_offset: U16,
        /// Buffers that the packet takes, on its way to the driver.
        pub num_buffers: U16,
    }
}
wire_layout!(Header, size = 12, {
    flags @ 0, gso_type @ 1, hdr_len @ 2, gso_size @ 4, csum_start @ 6, csum_offset @ 8, num_buffers @ 10,
});

wire_struct! {
    /// The device's configuration, as far as this device has it. VirtIO 1.3 §5.1.4.
    pub struct Config {
        /// The guest's address.
        pub mac: [u8; 6],
        /// [`STATUS_LINK_UP`].
        pub status: U16,
        /// For several pairs of queues, which there are not.
        pub max_virtqueue_pairs: U16,
        /// Longest packet in bytes, where `VIRTIO_NET_F_MTU` is offered.
        pub mtu: U16,
    }
}
wire_layout!(Config, size = 12, { mac @ 0, status @ 6, max_virtqueue_pairs @ 8, mtu @ 10 });

/// `status`: the link is up (`VIRTIO_NET_S_LINK_UP`).
pub const STATUS_LINK_UP: u16 = 1;

wire_struct! {
    /// The one command of the control queue that this device has; a status byte ends it. VirtIO 1.3 §5.1.6.5.
    pub struct SetOffloads {
        /// [`CONTROL_GUEST_OFFLOADS`]: of another command, only this and the next field are known.
        pub class: u8,
        /// [`CONTROL_GUEST_OFFLOADS_SET`].
        pub command: u8,
        /// Feature bits of what the driver takes from now on.
        pub bits: U64,
    }
}
wire_layout!(SetOffloads, size = 10, { class @ 0, command @ 1, bits @ 2 });

/// Class: what the device may hand to the driver unfinished. VirtIO 1.3 §5.1.6.5.6.
pub const CONTROL_GUEST_OFFLOADS: u8 = 5;
/// Its command: a 64-bit set of feature bits follows.
pub const CONTROL_GUEST_OFFLOADS_SET: u8 = 0;

wire_enum! {
    /// How a command ended (`VIRTIO_NET_OK`, `VIRTIO_NET_ERR`). VirtIO 1.3 §5.1.6.5.
    pub enum ControlStatus: u8 {
        /// Done.
        Ok = 0,
        /// Refused.
        Err = 1,
    }
}
