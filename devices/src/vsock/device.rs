//! The device: its queues, and what goes between them and the connections.

use super::backend::{Backend, ConnectionId, Readiness, Stream};
use super::connection::{Connection, Outgoing, Ports};
use super::slices;
use super::state::{STATE_VERSION, VsockState};
use super::table::Table;
use super::{
    BUFFER_BYTES, EVENT_QUEUE, MAX_DATA_BYTES, MAX_REPLIES, QUEUE_SIZES, RX_QUEUE, TURN_PACKETS,
    TX_QUEUE,
};
use crate::virtio::chain::{gather, scatter, split_at};
use crate::virtio::{
    Activation, Chain, DeviceFault, DeviceQueue, DeviceState, GuestBuffer, Interrupt, Memory,
    RestoreError, VirtioDevice,
};
use instar_shared::vsock::{
    Config, EVENT_TRANSPORT_RESET, Event, HOST_CID, Header, Op, TYPE_STREAM,
};
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::{U16, U32, U64};
use std::collections::VecDeque;
use std::sync::Arc;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// `VIRTIO_VSOCK_F_STREAM`. VirtIO 1.3 §5.10.3.
const F_STREAM: u32 = 0;

/// Length of a header in bytes.
const HEADER_BYTES: u64 = size_of::<Header>() as u64;

/// A virtio socket device.
#[derive(Debug)]
pub struct VsockDevice<B> {
    guest_cid: u32,
    backend: B,
    table: Table,
    /// Packets that belong to no connection.
    replies: VecDeque<Header>,
    active: Option<Active>,
    /// The driver is to hear that all connections are gone.
    owes_event: bool,
    /// A turn ended with work left.
    more: bool,
}

/// What the driver has given.
#[derive(Debug)]
struct Active {
    memory: Memory,
    interrupt: Arc<dyn Interrupt>,
    /// By index.
    queues: [Option<DeviceQueue>; 3],
    /// The driver broke the rules: nothing is touched any more.
    faulted: bool,
}

/// A queue with what is needed to serve it.
type Served<'a> = (&'a Memory, &'a dyn Interrupt, &'a mut DeviceQueue);

impl Active {
    fn queue(&mut self, index: u16) -> Option<Served<'_>> {
        let queue = self.queues.get_mut(usize::from(index))?.as_mut()?;
        Some((&self.memory, &*self.interrupt, queue))
    }
}

impl<B: Backend> VsockDevice<B> {
    /// A device for the guest with address `guest_cid`, at least [`instar_shared::vsock::FIRST_GUEST_CID`].
    #[must_use]
    pub fn new(guest_cid: u32, backend: B) -> Self {
        Self {
            guest_cid,
            backend,
            table: Table::default(),
            replies: VecDeque::new(),
            active: None,
            owes_event: false,
            more: false,
        }
    }

    /// Where streams come from.
    pub const fn backend(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Number of connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.table.len()
    }

    /// A program of the host wants to reach `port` of the guest. `None`, and the stream is dropped: the driver is not
    /// ready, or there are too many connections. [`Self::serve`] goes on with it.
    pub fn connect(&mut self, port: u32, stream: Box<dyn Stream>) -> Option<ConnectionId> {
        self.active.as_ref().filter(|active| !active.faulted)?;
        if !self.table.has_room() {
            return None;
        }
        let host = self.table.free_port(port);
        let ports = Ports { guest: port, host };
        let id = self.table.add(Connection::requested(ports, stream))?;
        self.table.with(id, |_| ());
        Some(id)
    }

    /// How [`Backend::dial`] went; nothing happens if the guest does not want the connection any more. [`Self::serve`]
    /// goes on with it.
    pub fn dialed(&mut self, id: ConnectionId, stream: Option<Box<dyn Stream>>) {
        self.table.with(id, |connection| connection.dialed(stream));
    }

    /// What became possible with a connection's stream. [`Self::serve`] goes on with it.
    pub fn ready(&mut self, id: ConnectionId, readiness: Readiness) {
        self.table
            .with(id, |connection| connection.ready(readiness));
    }

    /// Whether [`Self::serve`] has ended with work left, because it was the others' turn.
    #[must_use]
    pub const fn has_more(&self) -> bool {
        self.more
    }

    /// Serves all queues, for as long as a turn is.
    pub fn serve(&mut self) {
        let Some(mut active) = self.active.take() else {
            return;
        };
        self.more = false;
        if !active.faulted && self.serve_queues(&mut active).is_err() {
            active.faulted = true;
            active.interrupt.needs_reset();
            self.forget();
        }
        self.active = Some(active);
    }

    fn serve_queues(&mut self, active: &mut Active) -> Result<(), DeviceFault> {
        self.send_event(active)?;
        // First, so that there is room for replies.
        self.send(active)?;
        let waits = self.receive(active)?;
        self.send(active)?;
        self.more |= waits && self.replies.len() < MAX_REPLIES;
        Ok(())
    }

    fn forget(&mut self) {
        self.table.clear();
        self.replies.clear();
        self.more = false;
    }

    /// Takes what the guest sends; true if it stopped for want of room for replies.
    fn receive(&mut self, active: &mut Active) -> Result<bool, DeviceFault> {
        let Some((memory, interrupt, queue)) = active.queue(TX_QUEUE) else {
            return Ok(false);
        };
        let mut left = TURN_PACKETS;
        'turn: loop {
            queue.disable_notification(memory)?;
            while left > 0 && self.replies.len() < MAX_REPLIES {
                let Some(chain) = queue.pop(memory)? else {
                    if queue.enable_notification(memory)? {
                        continue 'turn;
                    }
                    break 'turn;
                };
                self.receive_chain(memory, &chain)?;
                queue.add_used(memory, chain.head, 0)?;
                left = left.saturating_sub(1);
            }
            self.more |= left == 0;
            break;
        }
        if queue.needs_notification(memory)? {
            interrupt.queue(TX_QUEUE);
        }
        Ok(self.replies.len() >= MAX_REPLIES)
    }

    fn receive_chain(&mut self, memory: &Memory, chain: &Chain) -> Result<(), DeviceFault> {
        let short = DeviceFault::HeaderShort { head: chain.head };
        let mut header = Header::zeroed();
        if !gather(memory, &chain.readable, header.as_mut_bytes()) {
            return Err(short);
        }
        let (_, data) = split_at(&chain.readable, HEADER_BYTES).ok_or(short)?;
        self.receive_packet(memory, &header, &data)
    }

    fn receive_packet(
        &mut self,
        memory: &Memory,
        header: &Header,
        data: &[GuestBuffer],
    ) -> Result<(), DeviceFault> {
        // VirtIO 1.3 §5.10.6.4.1: the sender's address is the guest's; what is not is dropped.
        if header.src_cid.get() != u64::from(self.guest_cid) {
            return Ok(());
        }
        let op = Op::try_from(header.op.get()).ok();
        let known = header.dst_cid.get() == HOST_CID && header.kind.get() == TYPE_STREAM;
        let ports = Ports {
            guest: header.src_port.get(),
            host: header.dst_port.get(),
        };
        let id = self.table.find(ports).filter(|_| known);
        match (id, op) {
            (Some(id), Some(op)) => {
                let all = slices::of(memory, data)?;
                let len = if op == Op::Rw { header.len.get() } else { 0 };
                let len = usize::try_from(len).unwrap_or(usize::MAX);
                // More than was sent is no packet.
                let op = if len > slices::len(&all) {
                    Op::Request
                } else {
                    op
                };
                let data = slices::front(&all, len);
                self.table
                    .with(id, |connection| connection.receive(op, header, &data));
            }
            (None, Some(Op::Rst)) => {}
            (None, Some(Op::Request)) if known && self.dial(ports, header) => {}
            _ => self.replies.push_back(refusal(header)),
        }
        Ok(())
    }

    /// The guest wants to reach a port of the host; false if that cannot be.
    fn dial(&mut self, ports: Ports, header: &Header) -> bool {
        let Some(id) = self.table.add(Connection::dialing(ports, header)) else {
            return false;
        };
        if self.backend.dial(id, ports.host).is_err() {
            self.table.with(id, |connection| connection.dialed(None));
        }
        true
    }

    /// Sends what replies and connections have for the guest.
    fn send(&mut self, active: &mut Active) -> Result<(), DeviceFault> {
        let Some((memory, interrupt, queue)) = active.queue(RX_QUEUE) else {
            return Ok(());
        };
        let mut left = TURN_PACKETS;
        queue.disable_notification(memory)?;
        while self.table.has_turns() || !self.replies.is_empty() {
            if left == 0 {
                self.more = true;
                break;
            }
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_notification(memory)? {
                    queue.disable_notification(memory)?;
                    continue;
                }
                break;
            };
            let written = self.send_packet(memory, &chain)?;
            if written == 0 {
                queue.put_back(chain.head);
                break;
            }
            queue.add_used(memory, chain.head, written)?;
            left = left.saturating_sub(1);
        }
        if queue.needs_notification(memory)? {
            interrupt.queue(RX_QUEUE);
        }
        Ok(())
    }

    /// Puts a packet into `chain`; how many bytes it has, 0 if there is none.
    fn send_packet(&mut self, memory: &Memory, chain: &Chain) -> Result<u32, DeviceFault> {
        let short = DeviceFault::RoomShort { head: chain.head };
        let (_, room) = split_at(&chain.writable, HEADER_BYTES).ok_or(short)?;
        let room = slices::front(&slices::of(memory, &room)?, MAX_DATA_BYTES);
        if room.is_empty() {
            return Err(short);
        }
        let header = match self.replies.pop_front() {
            Some(header) => header,
            None => match self.table.next(|connection| connection.next_packet(&room)) {
                Some((ports, packet)) => self.header(ports, packet),
                None => return Ok(0),
            },
        };
        let written = scatter(memory, &chain.writable, header.as_bytes())?;
        Ok(written.saturating_add(header.len.get()))
    }

    fn header(&self, ports: Ports, packet: Outgoing) -> Header {
        Header {
            src_cid: U64::new(HOST_CID),
            dst_cid: U64::new(self.guest_cid.into()),
            src_port: U32::new(ports.host),
            dst_port: U32::new(ports.guest),
            len: U32::new(packet.len),
            kind: U16::new(TYPE_STREAM),
            op: U16::new(packet.op.raw()),
            flags: U32::new(packet.flags),
            buf_alloc: U32::new(BUFFER_BYTES),
            fwd_cnt: U32::new(packet.fwd_cnt),
        }
    }

    /// Tells the driver that all connections are gone, if it is to hear that.
    fn send_event(&mut self, active: &mut Active) -> Result<(), DeviceFault> {
        let Some((memory, interrupt, queue)) = active.queue(EVENT_QUEUE) else {
            return Ok(());
        };
        while self.owes_event {
            let Some(chain) = queue.pop(memory)? else {
                if queue.enable_notification(memory)? {
                    continue;
                }
                break;
            };
            let event = Event {
                id: U32::new(EVENT_TRANSPORT_RESET),
            };
            let written = scatter(memory, &chain.writable, event.as_bytes())?;
            if usize::try_from(written) != Ok(size_of::<Event>()) {
                return Err(DeviceFault::RoomShort { head: chain.head });
            }
            queue.add_used(memory, chain.head, written)?;
            self.owes_event = false;
            if queue.needs_notification(memory)? {
                interrupt.queue(EVENT_QUEUE);
            }
        }
        Ok(())
    }

    /// Takes the queues over; `saved` says how far a device was in them.
    fn start(
        &mut self,
        activation: Activation,
        saved: Option<&VsockState>,
    ) -> Result<(), RestoreError> {
        let features = activation.features;
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
        self.active = Some(Active {
            memory: activation.memory,
            interrupt: activation.interrupt,
            queues,
            faulted: saved.is_some_and(|saved| saved.needs_reset),
        });
        Ok(())
    }
}

/// In messages.
const DEVICE: &str = "vsock";

/// Says that there is no such connection.
fn refusal(of: &Header) -> Header {
    Header {
        src_cid: of.dst_cid,
        dst_cid: of.src_cid,
        src_port: of.dst_port,
        dst_port: of.src_port,
        kind: of.kind,
        op: U16::new(Op::Rst.raw()),
        ..Header::zeroed()
    }
}

impl<B: Backend> VirtioDevice for VsockDevice<B> {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn features(&self) -> u64 {
        1 << F_STREAM | 1 << VIRTIO_RING_F_INDIRECT_DESC | 1 << VIRTIO_RING_F_EVENT_IDX
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn read_config(&self, offset: u32, data: &mut [u8]) {
        let config = Config {
            guest_cid: U64::new(self.guest_cid.into()),
        };
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = config.as_bytes().get(from..).unwrap_or_default();
        data.fill(0);
        for (to, byte) in data.iter_mut().zip(bytes) {
            *to = *byte;
        }
    }

    fn activate(&mut self, activation: Activation) {
        self.forget();
        // Without a saved state there is nothing to refuse.
        let _ = self.start(activation, None);
    }

    fn kick(&mut self, _index: u16) {
        self.serve();
    }

    fn reset(&mut self) {
        self.active = None;
        self.owes_event = false;
        self.forget();
    }

    fn save(&self) -> DeviceState {
        let saved = |queue: &Option<DeviceQueue>| queue.as_ref().map(DeviceQueue::save);
        let active = self.active.as_ref();
        DeviceState::Vsock(VsockState {
            version: STATE_VERSION,
            guest_cid: self.guest_cid,
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
        let DeviceState::Vsock(state) = state else {
            return Err(RestoreError::Kind);
        };
        RestoreError::unless_version(DEVICE, state.version, STATE_VERSION)?;
        if state.guest_cid != self.guest_cid {
            return Err(RestoreError::Impossible {
                device: DEVICE,
                what: "a guest's address",
            });
        }
        self.reset();
        if let Some(activation) = activation {
            self.start(activation, Some(state))?;
            self.owes_event = true;
        }
        Ok(())
    }
}
