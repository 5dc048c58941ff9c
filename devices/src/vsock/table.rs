//! The connections of a device, and who has its turn.

use super::MAX_CONNECTIONS;
use super::backend::ConnectionId;
use super::connection::{Connection, Ports};
use std::collections::{BTreeMap, VecDeque};

/// First port of the host for connections that its programs begin; the others follow.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Past the last one.
const HOST_PORTS_END: u32 = 1 << 31;

/// All connections.
#[derive(Debug)]
pub(super) struct Table {
    connections: BTreeMap<ConnectionId, Connection>,
    /// Those that the guest knows.
    by_ports: BTreeMap<Ports, ConnectionId>,
    /// Those with something to send to the guest, perhaps.
    turns: VecDeque<ConnectionId>,
    next_id: u32,
    next_port: u32,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            connections: BTreeMap::new(),
            by_ports: BTreeMap::new(),
            turns: VecDeque::new(),
            next_id: 0,
            next_port: FIRST_HOST_PORT,
        }
    }
}

impl Table {
    /// Number of connections, those included that only deliver what is left.
    pub fn len(&self) -> usize {
        self.connections.len()
    }

    /// Drops all connections; their names are not given again soon.
    pub fn clear(&mut self) {
        self.connections.clear();
        self.by_ports.clear();
        self.turns.clear();
    }

    /// The connection of these ports, as the guest knows it.
    pub fn find(&self, ports: Ports) -> Option<ConnectionId> {
        self.by_ports.get(&ports).copied()
    }

    /// Whether there is room for another.
    pub fn has_room(&self) -> bool {
        self.connections.len() < MAX_CONNECTIONS
    }

    /// Adds a connection, if there is room and its ports are free.
    pub fn add(&mut self, connection: Connection) -> Option<ConnectionId> {
        if !self.has_room() || self.by_ports.contains_key(&connection.ports) {
            return None;
        }
        let mut id = ConnectionId(self.next_id);
        while self.connections.contains_key(&id) {
            id = ConnectionId(id.0.wrapping_add(1));
        }
        self.next_id = id.0.wrapping_add(1);
        self.by_ports.insert(connection.ports, id);
        self.connections.insert(id, connection);
        Some(id)
    }

    /// A port of the host that no connection to `guest` has.
    pub fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            let next = host.saturating_add(1);
            self.next_port = if next < HOST_PORTS_END {
                next
            } else {
                FIRST_HOST_PORT
            };
            // There are more ports than connections.
            if !self.by_ports.contains_key(&Ports { guest, host }) {
                return host;
            }
        }
    }

    /// Changes a connection: afterwards it has its turn, or is gone. Nothing happens if there is none of that name.
    pub fn with(&mut self, id: ConnectionId, change: impl FnOnce(&mut Connection)) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        change(connection);
        if !std::mem::replace(&mut connection.queued, true) {
            self.turns.push_back(id);
        }
        self.settle(id);
    }

    /// Whether a connection waits for its turn.
    pub fn has_turns(&self) -> bool {
        !self.turns.is_empty()
    }

    /// The first packet that a connection in turn has by `make`; it is last in turn then. One that has none is not in
    /// turn any more.
    pub fn next<T>(
        &mut self,
        mut make: impl FnMut(&mut Connection) -> Option<T>,
    ) -> Option<(Ports, T)> {
        while let Some(id) = self.turns.pop_front() {
            let Some(connection) = self.connections.get_mut(&id) else {
                continue;
            };
            let ports = connection.ports;
            let made = make(connection);
            connection.queued = made.is_some();
            if connection.queued {
                self.turns.push_back(id);
            }
            self.settle(id);
            if let Some(made) = made {
                return Some((ports, made));
            }
        }
        None
    }

    /// Forgets what is gone.
    fn settle(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        let (ports, gone) = (connection.ports, connection.is_gone());
        if connection.is_left() && self.by_ports.get(&ports) == Some(&id) {
            self.by_ports.remove(&ports);
        }
        if gone {
            self.connections.remove(&id);
        }
    }
}
