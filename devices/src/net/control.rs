//! Commands of the driver. VirtIO 1.3 §5.1.6.5 "Control Virtqueue".

use super::Offloads;
use crate::virtio::chain::{gather, scatter};
use crate::virtio::{Chain, DeviceFault, Memory};
use instar_shared::net::{
    CONTROL_GUEST_OFFLOADS, CONTROL_GUEST_OFFLOADS_SET, ControlStatus, SetOffloads,
};
use instar_shared::zerocopy::IntoBytes;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6,
};

/// Feature bits of what a guest may take unfinished.
pub(super) const OFFLOAD_BITS: u64 = 1 << VIRTIO_NET_F_GUEST_CSUM
    | 1 << VIRTIO_NET_F_GUEST_TSO4
    | 1 << VIRTIO_NET_F_GUEST_TSO6
    | 1 << VIRTIO_NET_F_GUEST_ECN;

/// Does the command in `chain`: what the guest takes from now on, if that was it; and how many bytes were written.
pub(super) fn command(
    memory: &Memory,
    chain: &Chain,
    accepted: u64,
) -> Result<(Option<u64>, u32), DeviceFault> {
    let mut command = SetOffloads::zeroed();
    let whole = gather(memory, &chain.readable, command.as_mut_bytes());
    let bits = command.bits.get();
    let known =
        command.class == CONTROL_GUEST_OFFLOADS && command.command == CONTROL_GUEST_OFFLOADS_SET;
    // §5.1.6.5.6.2: only what was accepted can be turned on.
    let set = (whole && known && bits & !(accepted & OFFLOAD_BITS) == 0).then_some(bits);
    let status = if set.is_some() {
        ControlStatus::Ok
    } else {
        ControlStatus::Err
    };
    let written = scatter(memory, &chain.writable, &[status.raw()])?;
    if written == 0 {
        return Err(DeviceFault::FooterShort { head: chain.head });
    }
    Ok((set, written))
}

/// What the bits say. VirtIO 1.3 §5.1.3.1: segmentation needs checksums.
pub(super) fn offloads(bits: u64) -> Offloads {
    let has = |bit: u32| bits & (1_u64 << bit) != 0;
    let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
    let (tso4, tso6) = (has(VIRTIO_NET_F_GUEST_TSO4), has(VIRTIO_NET_F_GUEST_TSO6));
    Offloads {
        checksum,
        tso4: checksum && tso4,
        tso6: checksum && tso6,
        ecn: checksum && (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN),
    }
}
