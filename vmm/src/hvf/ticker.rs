//! A thread that takes the vCPU out of the guest ten times a second.
//!
//! A request that comes between two runs makes the next one return at once, so no tick is lost.

use crate::VmError;
use applevisor::vcpu::VcpuHandle;
use applevisor::vm::{GicDisabled, VirtualMachineInstance};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

const PERIOD: Duration = Duration::from_millis(100);
/// Small: the thread does no more than one call.
const STACK_BYTES: usize = 64 << 10;

/// The thread; ends with the value.
#[derive(Debug)]
pub struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    /// Starts it for `vcpu` of `vm`.
    ///
    /// # Errors
    /// [`VmError::Start`].
    pub fn start(
        vm: VirtualMachineInstance<GicDisabled>,
        vcpu: VcpuHandle,
    ) -> Result<Self, VmError> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let body = move || {
            let vcpus = [vcpu];
            loop {
                std::thread::park_timeout(PERIOD);
                if stopped.load(Ordering::Relaxed) || vm.vcpus_exit(&vcpus).is_err() {
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("ticker".into())
            .stack_size(STACK_BYTES)
            .spawn(body);
        let thread = thread.map_err(|source| VmError::Start {
            what: "the vCPU timer",
            source,
        })?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}
