//! The fields of the header that a writer changes: qcow2 "Header".

use crate::WriteError;
use instar_qcow2::Header;
use instar_storage::{StorageMut, Write};

/// What does not tear.
const SECTOR: usize = 512;
/// Where the refcount table's offset is, with its clusters behind it.
const REFCOUNT_TABLE: core::ops::Range<usize> = 48..60;
/// Where autoclear bits are, from version 3 on.
const AUTOCLEAR: core::ops::Range<usize> = 88..96;

/// Clears autoclear bits that a writer does not know, or that are not true.
pub fn keep_known_autoclear(header: &mut Header) {
    let bitmaps = u64::from(header.extensions.bitmaps.is_some());
    let raw_data = header.autoclear.data_file_raw() && header.incompatible.external_data_file();
    header.autoclear.0 = bitmaps | (u64::from(raw_data) << 1);
}

/// Makes the place of the refcount table and the autoclear bits durable, in one sector.
pub fn write_fields<S: StorageMut>(image: &S, header: &Header) -> Result<(), WriteError> {
    let mut old = [0; SECTOR];
    image.read_at(0, &mut old)?;
    let mut new = old;
    let (offset, clusters) = (
        header.refcount_table_offset.get(),
        header.refcount_table_clusters,
    );
    let table = offset
        .to_be_bytes()
        .into_iter()
        .chain(clusters.to_be_bytes());
    let fields = new.get_mut(REFCOUNT_TABLE).unwrap_or_default();
    fields
        .iter_mut()
        .zip(table)
        .for_each(|(to, from)| *to = from);
    if header.version >= 3 {
        let fields = new.get_mut(AUTOCLEAR).unwrap_or_default();
        let bits = header.autoclear.0.to_be_bytes();
        fields
            .iter_mut()
            .zip(bits)
            .for_each(|(to, from)| *to = from);
    }
    if new == old {
        return Ok(());
    }
    let write = Write {
        offset: 0,
        buf: &new,
    };
    Ok(image.write_through(&[write], 0)?)
}
