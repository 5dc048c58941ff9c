//! The files of all devices, for copies between them.

use super::host::HostFile;
use instar_devices::blk::Errno;
use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, PoisonError};

/// Which file stands behind each device slot.
#[derive(Clone, Debug, Default)]
pub struct Files {
    by_slot: Arc<Mutex<BTreeMap<u16, Entry>>>,
}

/// A file, and which one it is on the host.
#[derive(Clone, Debug)]
struct Entry {
    file: Arc<HostFile>,
    identity: Option<Identity>,
}

/// Device and inode; of a block device its own number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity(u64, u64);

impl Files {
    /// `file` stands behind `slot` now.
    pub fn insert(&self, slot: u16, file: &Arc<HostFile>) {
        let entry = Entry {
            file: Arc::clone(file),
            identity: identity(file),
        };
        self.lock().insert(slot, entry);
    }

    /// The file behind `from`, if its bytes from `from_offset` on may be copied to `offset` of `to`'s.
    ///
    /// # Errors
    /// EINVAL: there is no such file, or the ranges overlap, or nobody can say that they do not.
    pub fn source(
        &self,
        (from, from_offset): (u16, u64),
        (to, offset): (u16, u64),
        len: u64,
    ) -> Result<Arc<HostFile>, Errno> {
        let files = self.lock();
        let (Some(source), Some(target)) = (files.get(&from), files.get(&to)) else {
            return Err(Errno::EINVAL);
        };
        let other = match (source.identity, target.identity) {
            (Some(source), Some(target)) => source != target,
            _ => false,
        };
        let (from_offset, offset) = (source.file.place(from_offset), target.file.place(offset));
        if other || from_offset.abs_diff(offset) >= len {
            return Ok(Arc::clone(&source.file));
        }
        Err(Errno::EINVAL)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u16, Entry>> {
        self.by_slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[allow(clippy::useless_conversion)] // the widths of `stat` differ between hosts
fn identity(file: &File) -> Option<Identity> {
    let stat = rustix::fs::fstat(file).ok()?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    let wide = |number: i128| u64::try_from(number).ok();
    if kind == rustix::fs::FileType::BlockDevice {
        return Some(Identity(u64::MAX, wide(i128::from(stat.st_rdev))?));
    }
    Some(Identity(
        wide(i128::from(stat.st_dev))?,
        wide(i128::from(stat.st_ino))?,
    ))
}
