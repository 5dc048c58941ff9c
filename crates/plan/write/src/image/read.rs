//! What a guest reads.

use super::WriteImage;
use crate::mapping::Mapping;
use crate::{WriteError, zeroed};
use instar_qcow2::entries::CompressedDescriptor;
use instar_storage::StorageMut;

impl<S: StorageMut> WriteImage<'_, S> {
    /// Fills `buf` with what a guest reads at `guest` now; writes to places that were given must have ended.
    ///
    /// # Errors
    /// The tables, the data or the backing file cannot be read.
    pub fn read_at(&mut self, guest: u64, buf: &mut [u8]) -> Result<(), WriteError> {
        self.check_range(guest, buf.len() as u64)?;
        let (bits, unit) = (self.header.cluster_bits, self.division.unit());
        let (mut at, mut rest) = (guest, buf);
        while !rest.is_empty() {
            let (cluster, start) = (at >> bits.get(), at & bits.mask());
            let old = self.mapping(cluster)?;
            let whole = if old.compressed.is_some() {
                bits.size_bytes()
            } else {
                unit
            };
            let skip = start & whole.saturating_sub(1);
            let len = usize::try_from(whole.saturating_sub(skip)).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at_mut(len.min(rest.len()));
            if let Some(data) = old.compressed {
                let mut all = zeroed(whole)?;
                self.decompress(data, &mut all)?;
                let skip = usize::try_from(skip).unwrap_or(usize::MAX);
                let part = all.get(skip..).unwrap_or_default();
                now.iter_mut().zip(part).for_each(|(to, from)| *to = *from);
            } else {
                self.read_unit(cluster, &old, start, now)?;
            }
            at = at.saturating_add(now.len() as u64);
            rest = later;
        }
        Ok(())
    }

    /// Reads a unit of a cluster that is not compressed, at byte `offset` of it.
    pub(super) fn read_unit(
        &mut self,
        cluster: u64,
        old: &Mapping,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<(), WriteError> {
        let unit = self.units(offset, 1);
        if old.data & unit != 0 {
            let at = self.data_place(cluster, old.host).advanced(offset);
            let read = match self.cipher {
                Some(cipher) => cipher.read(self.file(), at, buf),
                None => self.file().read_at(at.host, buf),
            };
            return Ok(read?);
        }
        if old.zeros & unit != 0 {
            buf.fill(0);
            return Ok(());
        }
        let guest = (cluster << self.header.cluster_bits.get()).saturating_add(offset);
        self.below.read_below(guest, buf)
    }

    /// Unpacks a compressed cluster, whole.
    pub(super) fn decompress(
        &mut self,
        data: CompressedDescriptor,
        buf: &mut [u8],
    ) -> Result<(), WriteError> {
        let mut packed = zeroed(data.size_bytes())?;
        self.image.read_at(data.offset.get(), &mut packed)?;
        let kind = self.header.compression_type;
        let taken = self.codec.decompress(kind, &packed, buf);
        taken.map_err(|_| WriteError::Corrupt {
            what: "compressed cluster",
        })
    }
}
