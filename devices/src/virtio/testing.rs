//! What a device of a test tells its driver.

use super::driver::Driver;
use super::{Activation, Interrupt, Memory};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts what it is told.
#[derive(Debug, Default)]
pub struct Told {
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    queues: BTreeMap<u16, u32>,
    config: u32,
    resets: u32,
}

impl Told {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// What a device gets of a driver that has accepted `features`, with interrupts that come here.
    #[must_use]
    pub fn activation(
        self: &Arc<Self>,
        memory: &Memory,
        features: u64,
        queues: &[&Driver],
    ) -> Activation {
        Activation {
            features,
            memory: memory.clone(),
            queues: queues.iter().map(|driver| Some(driver.queue())).collect(),
            interrupt: Arc::clone(self) as Arc<dyn Interrupt>,
        }
    }

    /// Whether queue `index` has interrupted since this was last asked.
    #[must_use]
    pub fn take_queue(&self, index: u16) -> bool {
        self.with(|counts| counts.queues.remove(&index).is_some())
    }

    /// Changes of the configuration that were told.
    #[must_use]
    pub fn config_changes(&self) -> u32 {
        self.with(|counts| counts.config)
    }

    /// How often the driver was told that it has to reset.
    #[must_use]
    pub fn resets(&self) -> u32 {
        self.with(|counts| counts.resets)
    }

    fn with<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        work(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Interrupt for Told {
    fn queue(&self, index: u16) {
        self.with(|counts| {
            let count = counts.queues.entry(index).or_default();
            *count = count.saturating_add(1);
        });
    }

    fn config(&self) {
        self.with(|counts| counts.config = counts.config.saturating_add(1));
    }

    fn needs_reset(&self) {
        self.with(|counts| counts.resets = counts.resets.saturating_add(1));
    }
}
