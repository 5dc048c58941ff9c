//! Bitmaps are given up: version 2 has none.

use alloc::vec::Vec;
use instar_plan_txn::{Transaction, TxnError};
use instar_qcow2::bitmaps::{BitmapDirectory, BitmapTableEntry};
use instar_storage::StorageMut;

/// Bytes of a bitmap table that are read at once.
const CHUNK_BYTES: u64 = 64 << 10;

/// Frees the clusters of all bitmaps and of their directory. True if there were any.
pub fn drop_all<S: StorageMut>(txn: &mut Transaction<'_, S>) -> Result<bool, TxnError> {
    let Some(extension) = txn.header.extensions.bitmaps.take() else {
        return Ok(false);
    };
    for bitmap in BitmapDirectory::new(txn.storage(), extension) {
        let bitmap = bitmap.map_err(|_| TxnError::Corrupt {
            what: "bitmap directory",
        })?;
        if !bitmap.satisfies_constraints(&txn.header) {
            return Err(TxnError::Corrupt {
                what: "bitmap directory entry",
            });
        }
        free_data(txn, bitmap.table_offset.get(), bitmap.table_bytes())?;
        txn.free(bitmap.table_offset, bitmap.table_bytes())?;
    }
    txn.free(extension.directory_offset, extension.directory_size)?;
    Ok(true)
}

/// Frees what a bitmap table refers to.
fn free_data<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    offset: u64,
    bytes: u64,
) -> Result<(), TxnError> {
    let mut chunk = Vec::new();
    let mut done = 0_u64;
    while done < bytes {
        let len = bytes.saturating_sub(done).min(CHUNK_BYTES);
        chunk.resize(usize::try_from(len).unwrap_or(0), 0);
        txn.read(offset.saturating_add(done), &mut chunk)?;
        for raw in chunk.as_chunks::<8>().0 {
            let host = BitmapTableEntry::from_be_bytes(*raw).host_offset();
            if host.get() != 0 {
                txn.free(host, 1)?;
            }
        }
        done = done.saturating_add(len);
    }
    Ok(())
}
