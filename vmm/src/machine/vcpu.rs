//! A vCPU's thread: runs the guest, and serves its accesses to registers.

use super::control::Outcome;
use super::counts::{Counts, ExitKind};
use super::layout;
use super::life::Life;

use super::signal::{self, Kick};
use crate::VmError;
use crate::arch::x86_64::boot::Entry;
use crate::kvm::machine::MachineVm;
use crate::kvm::machine_vcpu::{Cpus, MachineExit, MachineVcpu};
use crate::threads::{self, Begun, Confine, ThreadKind};
use instar_devices::bus::Bus;
use std::sync::Arc;

/// What all vCPUs share.
#[derive(Debug)]
pub struct Shared {
    /// The machine.
    pub vm: Arc<MachineVm>,
    /// What vCPUs are made from.
    pub cpus: Cpus,
    /// Where the first one starts.
    pub entry: Entry,
    /// Ports.
    pub ports: Bus,
    /// Memory-mapped registers.
    pub registers: Bus,
    /// Starting and ending.
    pub life: Arc<Life>,
    /// What happens.
    pub counts: Counts,
}

/// Starts the thread of vCPU `index`, which waits until the machine runs.
///
/// # Errors
/// [`VmError::Start`].
pub fn start(shared: &Arc<Shared>, index: u8, confine: &Confine) -> Result<Begun, VmError> {
    let (shared, here) = (Arc::clone(shared), Arc::clone(shared));
    let prepare = move || {
        let mut vcpu = MachineVcpu::new(&here.vm, &here.cpus, index, &here.entry)?;
        let kick = Kick::of_this_thread(vcpu.immediate_exit())?;
        here.life.enter(kick.clone());
        Ok((vcpu, kick))
    };
    threads::begin(
        ThreadKind::MachineVcpu,
        confine,
        prepare,
        move |(mut vcpu, kick)| {
            if let Err(error) = shared.serve(&mut vcpu) {
                shared.life.end(Outcome::Failed(error.to_string()));
            }
            signal::forget();
            shared.life.leave(&kick);
        },
    )
}

impl Shared {
    /// The life of the thread.
    fn serve(&self, vcpu: &mut MachineVcpu) -> Result<(), VmError> {
        loop {
            // In this order: a signal after the first step has the third one return at once.
            signal::clear();
            if !self.life.may_run() {
                return Ok(());
            }
            self.run(vcpu)?;
        }
    }

    /// Runs the guest until its next exit, and serves that.
    fn run(&self, vcpu: &mut MachineVcpu) -> Result<(), VmError> {
        match vcpu.run()? {
            MachineExit::PortRead(port, width, data) => {
                self.counts.exit(ExitKind::PortRead);
                for element in data.chunks_mut(width) {
                    self.ports.read(port.into(), element);
                }
            }
            MachineExit::PortWrite(port, width, data) => {
                self.counts.exit(ExitKind::PortWrite);
                for element in data.chunks(width) {
                    self.write_port(port, element);
                }
            }
            MachineExit::MmioRead(address, data) => {
                self.counts.exit(ExitKind::MmioRead);
                self.registers.read(address, data);
            }
            MachineExit::MmioWrite(address, data) => {
                self.counts.exit(ExitKind::MmioWrite);
                self.registers.write(address, data);
            }
            MachineExit::Interrupted => self.counts.exit(ExitKind::Interrupted),
            MachineExit::TripleFault => {
                let at = vcpu.position();
                let reason = format!("the guest stopped with a triple fault at {at:#x}");
                self.life.end(Outcome::Failed(reason));
            }
        }
        Ok(())
    }

    fn write_port(&self, port: u16, data: &[u8]) {
        match data.first() {
            Some(value) if port == layout::MARK_PORT => self.counts.mark(*value),
            _ => drop(self.ports.write(port.into(), data)),
        }
    }
}
