//! Version 3 to version 2.

use crate::change::Written;
use crate::tables::Survey;
use crate::{AmendError, bitmaps, zeros};
use instar_plan_txn::{Monitor, Transaction, TxnError};
use instar_qcow2::header::{
    AutoclearFeatures, CompatibleFeatures, CompressionType, CryptMethod, IncompatibleFeatures,
};
use instar_storage::StorageMut;

/// Refcounts of version 2 have 2^4 bits.
const VERSION_2_REFCOUNT_ORDER: u32 = 4;
/// Incompatible features that version 2 does without: dirty (the refcounts are right by now), and the
/// compression type, which is judged by whether there are compressed clusters.
const LAPSING_FEATURES: u64 = 1 << 0 | 1 << 3;

/// Judges whether version 2 can hold the state that `txn` has; `survey` is of that state.
pub fn check<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    survey: &Survey,
) -> Result<(), AmendError> {
    check_features(txn)?;
    let header = &txn.header;
    if header.compression_type == CompressionType::Zstd && survey.compressed {
        return Err(AmendError::DowngradeZstd);
    }
    let has_zeros = survey.plain_zeros > 0 || survey.allocated_zeros > 0;
    if has_zeros && header.crypt_method != CryptMethod::None && header.backing_file.is_some() {
        return Err(AmendError::DowngradeEncryptedZeros);
    }
    Ok(())
}

/// What the header and the snapshot table say against version 2.
fn check_features<S: StorageMut>(txn: &mut Transaction<'_, S>) -> Result<(), AmendError> {
    if txn.header.refcount_order != VERSION_2_REFCOUNT_ORDER {
        return Err(AmendError::DowngradeRefcountBits);
    }
    if txn.header.incompatible.external_data_file() {
        return Err(AmendError::DowngradeDataFile);
    }
    let disk_size = txn.header.whole_sectors_size();
    let snapshots = txn.read_snapshots();
    let snapshots = snapshots.map_err(AmendError::in_step(AmendError::Header))?;
    let fits = |size: u64| u32::try_from(size).is_ok();
    if !snapshots
        .iter()
        .all(|s| s.disk_size == disk_size && fits(s.vm_state_size))
    {
        return Err(AmendError::DowngradeSnapshots);
    }
    match txn.header.incompatible.0 & !LAPSING_FEATURES {
        0 => Ok(()),
        bits => Err(AmendError::DowngradeFeatures { bits }),
    }
}

/// Makes the new state one of version 2, which [`check`] has allowed.
pub fn downgrade<S: StorageMut>(
    txn: &mut Transaction<'_, S>,
    survey: &mut Survey,
    monitor: &mut dyn Monitor,
) -> Result<Written, TxnError> {
    let freed = bitmaps::drop_all(txn)?;
    let expanded = zeros::expand(txn, survey, monitor)?;
    let header = &mut txn.header;
    header.version = 2;
    header.incompatible = IncompatibleFeatures(0);
    header.compatible = CompatibleFeatures(0);
    header.autoclear = AutoclearFeatures(0);
    header.compression_type = CompressionType::Zlib;
    Ok(Written::when(freed || expanded))
}
