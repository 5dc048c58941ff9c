//! What a worker has to do with rounds before and after its own.

use super::host::Host;
use super::outcome;
use crate::output::JobError;
use crate::wire::{self, Dirty, Reply};
use instar_shared::op::Outcome;
use instar_shared::record::{Failure, FailureKind, NeedsRepair, REPAIR_SILENT, RecordKind};
use instar_shared::zerocopy::{FromBytes, IntoBytes};
use instar_vmm::operation::{Completed, RunError};

/// What is said of an image that was repaired and is dirty all the same.
const STILL_DIRTY: &[u8] = b"it is still marked dirty after its repair";
/// In front of why a repair failed.
const NOT_REPAIRED: &[u8] = b"Could not repair dirty image: ";
/// What is said of an image that is dirty and would be in use for as long as a guest is.
const DIRTY: &[u8] =
    b"It is marked dirty, as whoever used it last has not closed it: 'instar check -r all' repairs it";

/// What an operation ends for before it has written anything.
#[derive(Clone, Copy, Debug)]
pub enum Needs {
    /// An image must be repaired first.
    Repair(NeedsRepair),
    /// It lacks a part that its fuller program has.
    Fuller,
}

/// Lines that the user sees.
pub struct Lines {
    /// Lines so far.
    pub seen: u64,
    /// Lines that an earlier round has shown; `None`: this one repairs.
    pub shown: Option<u64>,
    /// A repair shows nothing.
    pub silent: bool,
}

impl Host<'_> {
    /// Takes one record over.
    ///
    /// # Errors
    /// Why it is malformed.
    pub fn show(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        if self.needs.is_some() {
            return Err("a record after the last one".into());
        }
        let Some(shown) = self.lines.shown else {
            return self.show_of_repair(kind, payload);
        };
        match kind {
            RecordKind::NeedsRepair => {
                let dirty = NeedsRepair::read_from_bytes(payload)
                    .map_err(|_| "the record's length is wrong")?;
                if dirty.flags.get() & !REPAIR_SILENT != 0 {
                    return Err(format!("a repair with the flags {:#x}", dirty.flags.get()));
                }
                self.needs = Some(Needs::Repair(dirty));
                return Ok(());
            }
            RecordKind::NeedsFuller if payload.is_empty() => {
                self.needs = Some(Needs::Fuller);
                return Ok(());
            }
            RecordKind::Line | RecordKind::Diagnostic | RecordKind::Prefixed => {
                self.lines.seen = self.lines.seen.saturating_add(1);
                if self.lines.seen <= shown {
                    return Ok(());
                }
            }
            _ => {}
        }
        self.output.record(kind, payload, &self.files)
    }

    /// Of a repair the user sees what it finds; how it failed is for the operation to say.
    fn show_of_repair(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        match kind {
            RecordKind::Diagnostic | RecordKind::Prefixed if self.lines.silent => Ok(()),
            RecordKind::Diagnostic | RecordKind::Prefixed => {
                self.output.record(kind, payload, &self.files)
            }
            RecordKind::Failure => {
                let (_, text) = Failure::read_from_prefix(payload)
                    .map_err(|_| "the record's length is wrong")?;
                self.complaint.get_or_insert_with(|| text.to_vec());
                Ok(())
            }
            RecordKind::Progress => {
                let kind = RecordKind::Preparing;
                self.output.record(kind, payload, &self.files)
            }
            RecordKind::Panic => Ok(()),
            _ => Err(format!(
                "records of the kind {kind:?} do not belong to a repair"
            )),
        }
    }

    /// The end of the job; `None` if another round follows.
    ///
    /// # Errors
    /// The guest asks for the repair of what it may not change, or for a fuller program that there is not.
    pub fn last(&mut self, completed: Completed) -> Result<Option<Completed>, JobError> {
        let ended = outcome(&completed.result);
        if self.lines.shown.is_none() {
            if ended == Some(Outcome::Cancelled) {
                return Ok(Some(completed));
            }
            let complaint = match (ended, self.complaint.take()) {
                (Some(Outcome::Done), None) => Vec::new(),
                (_, complaint) => complaint.unwrap_or_else(|| b"it did not say why".to_vec()),
            };
            return match self.broker.ask(&wire::encode_repaired(&complaint)) {
                Ok((Reply::Noted, _)) => Ok(None),
                _ => Err(broken("a repair that nothing follows on")),
            };
        }
        match self.needs.take() {
            Some(Needs::Repair(needs)) => self.ask_for_repair(needs, completed),
            Some(Needs::Fuller) => match self.broker.ask(&wire::encode_fuller(self.lines.seen)) {
                Ok((Reply::Noted, _)) => Ok(None),
                _ => Err(broken("a fuller program that there is not")),
            },
            None if !self.has_sequel || ended != Some(Outcome::Done) => Ok(Some(completed)),
            None => match self.broker.ask(&wire::DONE) {
                Ok((Reply::Noted, _)) => {
                    self.output.hand_on();
                    Ok(None)
                }
                _ => Err(broken("an end that nothing follows on")),
            },
        }
    }

    /// Has an image repaired before the operation runs again, unless that was tried.
    fn ask_for_repair(
        &mut self,
        needs: NeedsRepair,
        completed: Completed,
    ) -> Result<Option<Completed>, JobError> {
        if self.asked_by.is_some() {
            let slot = u16::try_from(needs.slot.get()).unwrap_or(0);
            self.complain(slot, DIRTY)?;
            return Ok(Some(completed));
        }
        let unknown = || broken("the repair of an image that it may not change");
        let dirty = Dirty {
            slot: u16::try_from(needs.slot.get()).map_err(|_| unknown())?,
            silent: needs.flags.get() & REPAIR_SILENT != 0,
            shown: self.lines.seen,
        };
        match self.broker.ask(&wire::encode_repair(&dirty)) {
            Ok((Reply::Noted, _)) => Ok(None),
            Ok((Reply::Tried(complaint), _)) => {
                let why = if complaint.is_empty() {
                    STILL_DIRTY
                } else {
                    &complaint
                };
                self.complain(dirty.slot, &[NOT_REPAIRED, why].concat())?;
                Ok(Some(completed))
            }
            _ => Err(unknown()),
        }
    }

    /// Says what is wrong with the image, as the operation would.
    fn complain(&mut self, slot: u16, complaint: &[u8]) -> Result<(), JobError> {
        let head = Failure {
            kind: FailureKind::OpenImage.raw().into(),
            slot: u32::from(slot).into(),
        };
        let payload = [head.as_bytes(), complaint].concat();
        let taken = self
            .output
            .record(RecordKind::Failure, &payload, &self.files);
        taken.map_err(|what| JobError::Run(RunError::Protocol(what)))
    }
}

/// The guest broke the contract.
fn broken(what: &str) -> JobError {
    JobError::Run(RunError::Protocol(what.into()))
}
