//! The device: its queues, features and configuration.

use super::control::{self, OFFLOAD_BITS};
use super::receive::{Receiver, Stop};
use super::state::{NetState, STATE_VERSION};
use super::{
    ALONE_PACKETS, CONTROL_QUEUE, MAX_PACKET_BYTES, NetBackend, QUEUE_SIZES, RX_QUEUE,
    TOLD_PACKETS, TURN_PACKETS, TX_QUEUE,
};
use crate::virtio::{
    Activation, DeviceFault, DeviceQueue, DeviceState, Interrupt, Memory, RestoreError,
    VirtioDevice, slices,
};
use instar_shared::net::{Config, Header, STATUS_LINK_UP};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::U16;
use std::io::{self, ErrorKind};
use std::sync::Arc;
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// What is always offered.
const FEATURES: u64 = 1 << VIRTIO_NET_F_MAC
    | 1 << VIRTIO_NET_F_MRG_RXBUF
    | 1 << VIRTIO_NET_F_STATUS
    | 1 << VIRTIO_NET_F_CTRL_VQ
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX;
/// What is offered where packets may be unfinished.
const OFFLOADS: u64 = OFFLOAD_BITS
    | 1 << VIRTIO_NET_F_CSUM
    | 1 << VIRTIO_NET_F_HOST_TSO4
    | 1 << VIRTIO_NET_F_HOST_TSO6
    | 1 << VIRTIO_NET_F_HOST_ECN
    | 1 << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS;

/// In messages.
const DEVICE: &str = "network";

/// A virtio network device.
#[derive(Debug)]
pub struct NetDevice<B> {
    mac: [u8; 6],
    /// Longest packet in bytes, if the driver is told.
    mtu: Option<u16>,
    /// Packets are whole on either side.
    whole: bool,
    backend: B,
    active: Option<Active>,
    /// The backend may have a packet.
    readable: bool,
    /// Packets that are taken to come alone.
    alone: u32,
    /// The backend may take one.
    writable: bool,
    /// A turn ended with work left.
    more: bool,
}

/// What the driver has given.
#[derive(Debug)]
struct Active {
    features: u64,
    /// Of the features, what the guest takes unfinished now.
    offloads: u64,
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    /// By index.
    queues: [Option<DeviceQueue>; 3],
    receiver: Receiver,
    /// The driver broke the rules: nothing is touched any more.
    faulted: bool,
}

impl Active {
    /// Tells the driver of what was used, if it wants to hear.
    fn tell(&mut self, index: u16) -> Result<(), DeviceFault> {
        if let Some(Some(queue)) = self.queues.get_mut(usize::from(index))
            && queue.needs_notification(&self.memory)?
        {
            self.interrupt.queue(index);
        }
        Ok(())
    }
}

impl<B: NetBackend> NetDevice<B> {
    /// A network card with address `mac`.
    #[must_use]
    pub const fn new(mac: [u8; 6], backend: B) -> Self {
        Self {
            mac,
            mtu: None,
            whole: false,
            backend,
            active: None,
            readable: true,
            alone: 0,
            writable: true,
            more: false,
        }
    }

    /// Tells the driver how long packets may be, in bytes without the Ethernet header. VirtIO 1.3 §5.1.4.
    #[must_use]
    pub const fn with_mtu(mut self, mtu: Option<u16>) -> Self {
        self.mtu = mtu;
        self
    }

    /// Offers no offload: the backend takes packets as a wire does, with their checksums and no longer than they may be.
    #[must_use]
    pub const fn with_whole_packets(mut self) -> Self {
        self.whole = true;
        self
    }

    /// Where packets go to and come from.
    pub const fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// The backend may have a packet, or take one. Serves the queues.
    pub fn ready(&mut self, readable: bool, writable: bool) {
        let sends = writable && !self.writable;
        self.readable |= readable;
        self.writable |= writable;
        self.serve(|device, active| {
            device.receive(active)?;
            if sends { device.send(active) } else { Ok(()) }
        });
    }

    /// Whether packets of the guest wait until the backend takes them.
    #[must_use]
    pub const fn waits_for_room(&self) -> bool {
        !self.writable
    }

    /// Whether a packet of the backend waits until the guest has buffers for it.
    #[must_use]
    pub const fn waits_for_buffers(&self) -> bool {
        self.readable && !self.more
    }

    /// Whether a turn has ended with work left: [`Self::go_on`] is to be called.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.more
    }

    /// Serves the queues for another turn.
    pub fn go_on(&mut self) {
        self.more = false;
        self.serve(|device, active| {
            device.send(active)?;
            device.receive(active)
        });
    }

    fn serve(&mut self, work: impl FnOnce(&mut Self, &mut Active) -> Result<(), DeviceFault>) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        if !active.faulted && work(self, &mut active).is_err() {
            active.faulted = true;
            active.interrupt.needs_reset();
        }
        self.active = Some(active);
    }

    /// Moves packets to the guest.
    fn receive(&mut self, active: &mut Active) -> Result<(), DeviceFault> {
        let mut left = TURN_PACKETS;
        while self.readable {
            if left == 0 {
                self.more = true;
                break;
            }
            let Some(Some(queue)) = active.queues.get_mut(usize::from(RX_QUEUE)) else {
                return Ok(());
            };
            let memory = &active.memory;
            match active.receiver.receive(memory, queue, &mut self.backend)? {
                None => {
                    left = left.saturating_sub(1);
                    if self.alone > 0 && self.backend.tells_again() {
                        self.alone = self.alone.saturating_sub(1);
                        self.readable = false;
                    }
                }
                Some(Stop::NoPacket) => {
                    self.readable = false;
                    match TURN_PACKETS.saturating_sub(left) {
                        0 => {}
                        1 => self.alone = ALONE_PACKETS,
                        _ => self.alone = 0,
                    }
                }
                Some(Stop::NoBuffer) => {
                    if !queue.enable_notification(memory)? {
                        break;
                    }
                }
            }
            queue.disable_notification(memory)?;
            if left.is_multiple_of(TOLD_PACKETS) {
                active.tell(RX_QUEUE)?;
            }
        }
        active.tell(RX_QUEUE)
    }

    /// Moves packets of the guest to the backend.
    fn send(&mut self, active: &mut Active) -> Result<(), DeviceFault> {
        let Some(Some(queue)) = active.queues.get_mut(usize::from(TX_QUEUE)) else {
            return Ok(());
        };
        let memory = &active.memory;
        let mut left = TURN_PACKETS;
        while self.writable {
            if left == 0 {
                self.more = true;
                break;
            }
            if self.is_blocked(B::flush) {
                break;
            }
            queue.disable_notification(memory)?;
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let packet = slices::of(memory, &chain.readable)?;
            let len = slices::len(&packet);
            if len < size_of::<Header>() {
                return Err(DeviceFault::HeaderShort { head: chain.head });
            }
            if len <= MAX_PACKET_BYTES && self.is_blocked(|backend| backend.send(&packet)) {
                queue.put_back(chain.head);
                break;
            }
            queue.add_used(memory, chain.head, 0)?;
            left = left.saturating_sub(1);
        }
        active.tell(TX_QUEUE)
    }

    /// Sends; true if the backend takes nothing now. A packet that it refuses is lost, as packets may be.
    fn is_blocked(&mut self, send: impl Fn(&mut B) -> io::Result<()>) -> bool {
        loop {
            match send(&mut self.backend) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.writable = false;
                    return true;
                }
                _ => return false,
            }
        }
    }

    /// Does what the driver commands.
    fn control(&mut self, active: &mut Active) -> Result<(), DeviceFault> {
        let Some(Some(queue)) = active.queues.get_mut(usize::from(CONTROL_QUEUE)) else {
            return Ok(());
        };
        let memory = &active.memory;
        for _ in 0..TURN_PACKETS {
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let (set, written) = control::command(memory, &chain, active.features)?;
            if let Some(bits) = set {
                active.offloads = bits;
                self.backend.set_offloads(control::offloads(bits));
            }
            queue.add_used(memory, chain.head, written)?;
        }
        active.tell(CONTROL_QUEUE)
    }

    /// Takes the queues over; `saved` says how far a device was in them.
    fn start(
        &mut self,
        activation: Activation,
        saved: Option<&NetState>,
    ) -> Result<(), RestoreError> {
        let features = activation.features;
        let offloads = saved.map_or(features, |saved| saved.offloads) & OFFLOAD_BITS;
        if offloads & !features != 0 {
            let what = "offloads";
            return Err(RestoreError::Impossible {
                device: DEVICE,
                what,
            });
        }
        let mut queues = [const { None }; 3];
        for (index, (place, queue)) in queues.iter_mut().zip(activation.queues).enumerate() {
            let saved = saved.and_then(|saved| saved.queues.get(index)?.as_ref());
            *place = match (queue, saved) {
                (None, _) => None,
                (Some(queue), None) => Some(DeviceQueue::new(queue, features)),
                (Some(queue), Some(saved)) => {
                    Some(DeviceQueue::restore(DEVICE, queue, features, saved)?)
                }
            };
        }
        self.backend.set_offloads(control::offloads(offloads));
        self.active = Some(Active {
            features,
            offloads,
            memory: activation.memory,
            interrupt: activation.interrupt,
            queues,
            receiver: Receiver::new(features & (1 << VIRTIO_NET_F_MRG_RXBUF) != 0),
            faulted: saved.is_some_and(|saved| saved.needs_reset),
        });
        // Whatever the backend has said before, it is asked.
        self.readable = true;
        self.writable = true;
        Ok(())
    }
}

impl<B: NetBackend> VirtioDevice for NetDevice<B> {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let mtu = self.mtu.map_or(0, |_| 1 << VIRTIO_NET_F_MTU);
        let offloads = if self.whole { 0 } else { OFFLOADS };
        FEATURES | offloads | mtu
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = Config {
            mac: self.mac,
            status: U16::new(STATUS_LINK_UP),
            max_virtqueue_pairs: U16::ZERO,
            mtu: U16::new(self.mtu.unwrap_or(0)),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.as_bytes().get(from..).unwrap_or_default();
        data.fill(0);
        for (to, byte) in data.iter_mut().zip(bytes) {
            *to = *byte;
        }
    }

    fn activate(&mut self, activation: Activation) {
        // Without a saved state there is nothing to refuse.
        let _ = self.start(activation, None);
    }

    fn kick(&mut self, index: u16) {
        self.serve(|device, active| match index {
            RX_QUEUE => device.receive(active),
            TX_QUEUE => device.send(active),
            CONTROL_QUEUE => device.control(active),
            _ => Ok(()),
        });
    }

    fn reset(&mut self) {
        self.active = None;
        self.more = false;
    }

    fn save(&self) -> DeviceState {
        let saved = |queue: &Option<DeviceQueue>| queue.as_ref().map(DeviceQueue::save);
        let active = self.active.as_ref();
        DeviceState::Net(NetState {
            version: STATE_VERSION,
            offloads: active.map_or(0, |active| active.offloads),
            queues: active
                .map_or_else(Vec::new, |active| active.queues.iter().map(saved).collect()),
            needs_reset: active.is_some_and(|active| active.faulted),
        })
    }

    fn restore(
        &mut self,
        state: &DeviceState,
        activation: Option<Activation>,
    ) -> Result<(), RestoreError> {
        let DeviceState::Net(state) = state else {
            return Err(RestoreError::Kind);
        };
        RestoreError::unless_version(DEVICE, state.version, STATE_VERSION)?;
        self.reset();
        match activation {
            Some(activation) => self.start(activation, Some(state)),
            None => Ok(()),
        }
    }
}
