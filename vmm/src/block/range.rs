//! Changes of a range that may be long: done in pieces, between which limits are looked at.

use super::calls::{self, RangeCall};
use super::host::HostFile;
use super::transfer::Step;
use instar_devices::blk::Errno;

/// Longest piece of one `fallocate` or device call.
const CALL_BYTES: u64 = 1 << 30;
/// Shortest piece that a call which was interrupted is cut to.
const MIN_CALL_BYTES: u64 = 1 << 20;
/// Longest piece written by one call.
const PIECE_BYTES: u64 = 1 << 20;
/// Pieces done before limits are looked at.
const PIECES_PER_STEP: u32 = 8;
/// What the offsets and lengths of device calls are multiples of: no sector is larger.
const DEVICE_ALIGN: u64 = 4096;

/// What a range becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Reserved: `fallocate`.
    Reserved,
    /// Reserved where there is no `fallocate`: what the range holds is written again, as the C library does it.
    Rewritten,
    /// Zeros, written.
    Written,
    /// Zeros; blocks may be given back if `unmap`.
    Zeros {
        /// Whether the range may become a hole.
        unmap: bool,
    },
    /// Anything.
    Discarded,
}

/// A change on its way: what is left of it.
#[derive(Debug)]
pub struct RangeChange {
    at: u64,
    end: u64,
    change: Change,
    block_device: bool,
    /// Longest piece of the next call.
    piece: u64,
    buffer: Vec<u8>,
}

impl RangeChange {
    /// The change of `offset..end`, which is in what the file may have.
    pub const fn new(offset: u64, end: u64, change: Change, block_device: bool) -> Self {
        Self {
            at: offset,
            end,
            change,
            block_device,
            piece: CALL_BYTES,
            buffer: Vec::new(),
        }
    }

    /// Bytes that are left.
    pub const fn len(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }

    /// Goes on for a while; [`Step::WouldBlock`] if there is more to do.
    pub fn go_on(&mut self, file: &HostFile) -> Step {
        for _ in 0..PIECES_PER_STEP {
            if self.at >= self.end {
                return Step::Finished;
            }
            match self.piece(file) {
                Ok(()) => {}
                Err(libc::EINTR) => {
                    self.piece = (self.piece / 4).max(MIN_CALL_BYTES);
                    return Step::WouldBlock;
                }
                Err(raw) => return Step::Failed(Errno(u32::try_from(raw).unwrap_or(Errno::EIO.0))),
            }
        }
        Step::WouldBlock
    }

    /// Does the next piece, with the call that serves it.
    fn piece(&mut self, file: &HostFile) -> Result<(), calls::Raw> {
        let Some(call) = self.call() else {
            return self.write(file, self.end);
        };
        let mut to = self.end.min(self.at.saturating_add(self.piece));
        if self.block_device {
            // Device calls take whole blocks: the ragged ends are written, or no hint is given.
            let start = self.at.next_multiple_of(DEVICE_ALIGN);
            to -= to % DEVICE_ALIGN;
            if self.at < start || to <= start {
                let ragged = if self.at < start { start } else { self.end };
                return self.ragged(file, ragged.min(self.end));
            }
        }
        let turn = file.turn();
        let outcome = calls::range(file, call, file.place(self.at), to - self.at);
        drop(turn);
        match outcome {
            Ok(()) => self.at = to,
            Err(raw) if is_unsupported(raw, self.block_device) => self.do_without(raw)?,
            Err(raw) => return Err(raw),
        }
        Ok(())
    }

    /// The call that makes the change; `None` if zeros are written.
    const fn call(&self) -> Option<RangeCall> {
        match (self.change, self.block_device) {
            (Change::Written | Change::Rewritten, _) => None,
            (Change::Reserved, _) => Some(RangeCall::Reserve),
            (Change::Zeros { unmap: true }, false) | (Change::Discarded, false) => {
                Some(RangeCall::Punch)
            }
            (Change::Zeros { unmap: false }, false) => Some(RangeCall::ZeroBlocks),
            (Change::Zeros { .. }, true) => Some(RangeCall::DeviceZeros),
            (Change::Discarded, true) => Some(RangeCall::DeviceDiscard),
        }
    }

    /// The part up to `to` of a device's range that is no whole block.
    fn ragged(&mut self, file: &HostFile, to: u64) -> Result<(), calls::Raw> {
        if self.change == Change::Discarded {
            self.at = to;
            return Ok(());
        }
        self.write(file, to)
    }

    /// The host has no such call: zeros are written, a hint is not given.
    const fn do_without(&mut self, raw: calls::Raw) -> Result<(), calls::Raw> {
        match self.change {
            Change::Reserved if !self.block_device => self.change = Change::Rewritten,
            Change::Zeros { .. } => self.change = Change::Written,
            Change::Discarded => self.at = self.end,
            Change::Reserved | Change::Rewritten | Change::Written => return Err(raw),
        }
        Ok(())
    }

    /// Writes zeros, or what is there, up to `to` at most.
    fn write(&mut self, file: &HostFile, to: u64) -> Result<(), calls::Raw> {
        let len = to.saturating_sub(self.at).min(PIECE_BYTES);
        let len = usize::try_from(len).map_err(|_| libc::EINVAL)?;
        if self.buffer.len() < len {
            self.buffer = vec![0; len];
        }
        let piece = self.buffer.get_mut(..len).ok_or(libc::EINVAL)?;
        if self.change == Change::Rewritten {
            let read = file.read_at(piece, self.at)?;
            piece.get_mut(read..).unwrap_or_default().fill(0);
        }
        let written = file.write_at(piece, self.at)?;
        if written == 0 {
            return Err(libc::EIO);
        }
        self.at = self.at.saturating_add(written as u64);
        Ok(())
    }
}

/// Whether the host cannot do the call at all, rather than failed to.
const fn is_unsupported(raw: calls::Raw, block_device: bool) -> bool {
    match raw {
        libc::EOPNOTSUPP | libc::ENOSYS | libc::ENOTTY => true,
        libc::EINVAL => block_device,
        _ => false,
    }
}
