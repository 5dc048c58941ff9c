//! What vCPUs count and note for the report while they run.

use super::control::{MAX_MARKS, Mark};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

/// Kinds of exits.
#[derive(Clone, Copy, Debug)]
pub enum ExitKind {
    /// The guest reads from a port.
    PortRead,
    /// The guest writes to a port.
    PortWrite,
    /// The guest reads where there is no memory.
    MmioRead,
    /// The guest writes where there is no memory.
    MmioWrite,
    /// A signal.
    Interrupted,
}

const KINDS: [(ExitKind, &str); 5] = [
    (ExitKind::PortRead, "port-read"),
    (ExitKind::PortWrite, "port-write"),
    (ExitKind::MmioRead, "mmio-read"),
    (ExitKind::MmioWrite, "mmio-write"),
    (ExitKind::Interrupted, "interrupted"),
];

/// The counters.
#[derive(Debug)]
pub struct Counts {
    began: Instant,
    exits: [AtomicU64; KINDS.len()],
    marks: Mutex<Vec<Mark>>,
}

impl Counts {
    /// Nothing yet; times count from `began` on.
    pub fn new(began: Instant) -> Self {
        Self {
            began,
            exits: Default::default(),
            marks: Mutex::default(),
        }
    }

    /// An exit.
    pub fn exit(&self, kind: ExitKind) {
        if let Some(count) = self.exits.get(kind as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The guest marks something.
    pub fn mark(&self, value: u8) {
        let at = self.began.elapsed();
        let exits = self.exits.iter().map(|count| count.load(Ordering::Relaxed));
        let exits = exits.fold(0, u64::saturating_add);
        let mut marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        if marks.len() < MAX_MARKS {
            marks.push(Mark { value, at, exits });
        }
    }

    /// Exits by kind.
    pub fn exits(&self) -> BTreeMap<&'static str, u64> {
        let counts = self.exits.iter();
        let named = KINDS.iter().zip(counts);
        named
            .map(|((_, name), count)| (*name, count.load(Ordering::Relaxed)))
            .collect()
    }

    /// What the guest has marked.
    pub fn marks(&self) -> Vec<Mark> {
        let marks = self.marks.lock().unwrap_or_else(PoisonError::into_inner);
        marks.clone()
    }
}
