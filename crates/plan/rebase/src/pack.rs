//! Clusters that are compressed before they are written.

use crate::RebaseError;
use crate::copy::Copy;
use crate::window::Window;
use alloc::vec::Vec;
use core::ops::Range;
use instar_codec::Encoder;
use instar_layers::CompressionType;
use instar_plan_write::WriteError;
use instar_storage::StorageMut;
use instar_storage::overlap::Overlap;

/// Compresses clusters one after the other.
#[derive(Debug)]
pub struct Packer {
    encoder: Encoder,
    cluster: usize,
    out: Vec<u8>,
}

impl Packer {
    /// For clusters of `cluster` bytes.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(kind: CompressionType, cluster: usize) -> Result<Self, RebaseError> {
        let mut out = Vec::new();
        // One byte less than the cluster, or it is no gain.
        let room = cluster.saturating_sub(1);
        let reserved = out.try_reserve_exact(room);
        reserved.map_err(|_| RebaseError::OutOfMemory)?;
        out.resize(room, 0);
        Ok(Self {
            encoder: Encoder::new(kind, cluster).ok_or(RebaseError::OutOfMemory)?,
            cluster,
            out,
        })
    }

    /// What `input`, a cluster, is compressed to, if that is less.
    fn compress(&mut self, input: &[u8]) -> Option<&[u8]> {
        let len = self.encoder.compress(input, &mut self.out)?;
        self.out.get(..len)
    }
}

impl<S: StorageMut, O: Overlap> Copy<'_, S, O> {
    /// Writes what the old chain shows in a range of whole clusters, compressed where the image has nothing of a
    /// cluster.
    pub fn pack(&mut self, window: &mut Window, range: Range<usize>) -> Result<(), RebaseError> {
        let cluster = self.packer.as_ref().map_or(1, |packer| packer.cluster);
        let mut at = range.start;
        while at < range.end {
            let here = at..at.saturating_add(cluster).min(range.end);
            at = here.end;
            let free = window.not_kept(&here);
            if free.as_slice() == core::slice::from_ref(&here) && self.pack_one(window, &here)? {
                continue;
            }
            for part in free {
                self.plain(window, part, false)?;
            }
        }
        Ok(())
    }

    /// Writes one cluster compressed; false if that is no gain.
    fn pack_one(&mut self, window: &Window, range: &Range<usize>) -> Result<bool, RebaseError> {
        let mut bytes = self.old_bytes(window, range)?;
        let (Some(packer), Some(writer)) = (&mut self.packer, &mut self.writer) else {
            return Ok(false);
        };
        // The last cluster is filled up.
        bytes.resize(packer.cluster, 0);
        let Some(packed) = packer.compress(&bytes) else {
            return Ok(false);
        };
        let len = u32::try_from(packed.len()).map_err(|_| RebaseError::OutOfMemory)?;
        let offset = match writer.place_compressed(window.guest(range.start), len) {
            Err(WriteError::Occupied) => return Ok(false),
            placed => placed?,
        };
        let packed = packed.to_vec();
        self.submit_spare(offset, packed)?;
        Ok(true)
    }
}
