//! A request on its way, whoever goes on with it.

use super::calls;
use super::copy::CopyChange;
use super::host::HostFile;
use super::range::RangeChange;
use super::transfer::{Step, Transfer};
use crate::memory::GuestSlot;
use instar_devices::blk::Errno;

/// A request that is not done yet.
#[derive(Debug)]
pub enum Work {
    /// Fills guest buffers.
    Read(Transfer),
    /// Writes guest buffers.
    Write(Transfer),
    /// Changes a range.
    Range(RangeChange),
    /// Copies from another file.
    Copy(CopyChange),
    /// Makes what was written durable.
    Sync,
}

impl Work {
    /// Goes on; a read with `nowait` only as far as the page cache has it.
    pub fn go_on(&mut self, file: &HostFile, memory: &GuestSlot, nowait: bool) -> Step {
        match self {
            Self::Read(transfer) => transfer.read(file, memory, nowait),
            Self::Write(transfer) => transfer.write(file, memory),
            Self::Range(change) => change.go_on(file),
            Self::Copy(copy) => copy.go_on(file),
            Self::Sync => match calls::sync(file) {
                Ok(()) => Step::Finished,
                Err(libc::EINTR) => Step::WouldBlock,
                Err(raw) => Step::Failed(u32::try_from(raw).map_or(Errno::EIO, Errno)),
            },
        }
    }

    /// Goes on until it is done, or `stop` says so; sleeps as it must.
    pub fn finish(
        &mut self,
        file: &HostFile,
        memory: &GuestSlot,
        stop: impl Fn() -> bool,
    ) -> Result<u32, Errno> {
        loop {
            match self.go_on(file, memory, false) {
                Step::Finished => return Ok(self.filled()),
                Step::Failed(errno) => return Err(errno),
                Step::WouldBlock if stop() => return Err(Errno::EIO),
                Step::WouldBlock => {}
            }
        }
    }

    /// Bytes that it has written to the guest when it is done.
    pub fn filled(&self) -> u32 {
        match self {
            Self::Read(transfer) => u32::try_from(transfer.len()).unwrap_or(u32::MAX),
            Self::Write(_) | Self::Range(_) | Self::Copy(_) | Self::Sync => 0,
        }
    }

    /// Whether it takes long enough to be handed to another thread, as it does if it is about `long_bytes` or more.
    pub fn is_long(&self, long_bytes: u64) -> bool {
        match self {
            Self::Read(transfer) | Self::Write(transfer) => transfer.len() >= long_bytes,
            Self::Range(change) => change.len() >= long_bytes,
            Self::Copy(_) | Self::Sync => true,
        }
    }
}
