//! What the actions of a command come to: judged in their order, before anything is written.

use crate::directory::{self, Place, entry_bytes};
use crate::report::{ActionError, NotPersistent, Reason};
use alloc::vec::Vec;
use instar_plan_txn::TxnError;
use instar_qcow2::Header;
use instar_qcow2::bitmaps::{
    Bitmap, MAX_BITMAP_BYTES, MAX_BITMAP_NAME_BYTES, MIN_GRANULARITY_BITS,
};
use instar_qcow2::extensions::{MAX_BITMAP_DIRECTORY_BYTES, MAX_BITMAPS};
use instar_storage::Storage;

/// The smallest default granularity, as a logarithm: 4 KiB.
const MIN_DEFAULT_BITS: u32 = 12;
/// The largest default granularity, as a logarithm: 64 KiB.
const MAX_DEFAULT_BITS: u32 = 16;

/// One action on the bitmap that a command names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action<'a> {
    /// Make it, enabled and without a set bit.
    Add {
        /// Bytes of the disk per bit, of which QEMU looks at the low 32 bits; 0: the cluster size, but no less
        /// than 4 KiB and no more than 64 KiB.
        granularity: u64,
    },
    /// Remove it.
    Remove,
    /// Clear all its bits.
    Clear,
    /// Record writes from now on.
    Enable,
    /// Record no writes from now on.
    Disable,
    /// Set the bits that are set in another one.
    Merge {
        /// Name of the other one.
        source: &'a [u8],
    },
}

impl Action<'_> {
    /// The word for it in a failure.
    const fn verb(&self) -> &'static str {
        match self {
            Self::Add { .. } => "add",
            Self::Remove => "remove",
            Self::Clear => "clear",
            Self::Enable => "enable",
            Self::Disable => "disable",
            Self::Merge { .. } => "merge",
        }
    }
}

/// What a command asks for.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The bitmap's name; any bytes.
    pub name: &'a [u8],
    /// What to do to it, in this order.
    pub actions: &'a [Action<'a>],
}

/// Where the bitmaps are that are merged.
#[derive(Debug)]
pub enum SourceImage<'a, T> {
    /// In the image that is changed.
    Same,
    /// In an image that has no bitmaps, since it is not qcow2.
    Raw,
    /// In another qcow2 image.
    Other {
        /// The other image's file.
        storage: &'a T,
        /// Its header.
        header: &'a Header,
    },
}

/// Where the bits of a bitmap start from, before its merges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// Those that the image has.
    Stored,
    /// None.
    Zeros,
}

/// The named bitmap as the actions leave it.
#[derive(Clone, Debug)]
pub(crate) struct Dest {
    pub(crate) granularity_bits: u8,
    pub(crate) auto: bool,
    inconsistent: bool,
    pub(crate) base: Base,
    /// Bitmaps to be merged, of the source image.
    pub(crate) sources: Vec<Bitmap>,
}

/// What is to become of the named bitmap.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// The one that the image has.
    pub(crate) before: Option<Place>,
    /// The one that it had is to go.
    pub(crate) removed: bool,
    /// What is to be there in the end.
    pub(crate) now: Option<Dest>,
}

impl Wanted {
    /// True if there is to be a bitmap whose bits are known.
    pub(crate) fn needs_table(&self) -> bool {
        self.now.as_ref().is_some_and(|dest| !dest.inconsistent)
    }

    fn usable(&mut self, name: &[u8]) -> Result<&mut Dest, Reason> {
        let name = name.to_vec();
        match &mut self.now {
            None => Err(Reason::NotFound { name }),
            Some(dest) if dest.inconsistent => Err(Reason::Inconsistent { name }),
            Some(dest) => Ok(dest),
        }
    }
}

/// What the actions come to.
pub(crate) struct Judged {
    pub(crate) wanted: Wanted,
    pub(crate) failed: Option<ActionError>,
}

/// Judges the actions in their order, up to the first that cannot be done.
///
/// # Errors
/// The store's.
pub(crate) fn judge<S: Storage, T: Storage>(
    storage: &S,
    header: &Header,
    source: &SourceImage<'_, T>,
    request: &Request<'_>,
) -> Result<Judged, TxnError> {
    let before = directory::find(storage, header, request.name, 0)?;
    let now = before.as_ref().map(|place| Dest {
        granularity_bits: place.bitmap.granularity_bits,
        auto: place.bitmap.auto(),
        inconsistent: place.bitmap.in_use(),
        base: Base::Stored,
        sources: Vec::new(),
    });
    let mut judge = Judge {
        storage,
        header,
        source,
        name: request.name,
        wanted: Wanted {
            before,
            removed: false,
            now,
        },
    };
    let mut failed = None;
    for action in request.actions {
        if let Err(reason) = judge.act(action)? {
            failed = Some(action_error(action, request.name, reason));
            break;
        }
    }
    let wanted = judge.wanted;
    Ok(Judged { wanted, failed })
}

/// Judges the actions for an image without bitmaps: the first cannot be done.
pub(crate) fn judge_raw(request: &Request<'_>) -> Option<ActionError> {
    let name = request.name;
    let action = request.actions.first()?;
    let reason = match action {
        Action::Add { granularity } => match check_new(name, *granularity, MAX_DEFAULT_BITS) {
            Ok(_) => Reason::NoBitmaps,
            Err(reason) => reason,
        },
        _ => Reason::NotFound {
            name: name.to_vec(),
        },
    };
    Some(action_error(action, name, reason))
}

fn action_error(action: &Action<'_>, name: &[u8], reason: Reason) -> ActionError {
    ActionError {
        verb: action.verb(),
        name: name.to_vec(),
        reason,
    }
}

/// Judges name and granularity of a new bitmap; gives the granularity's logarithm.
fn check_new(name: &[u8], granularity: u64, cluster_bits: u32) -> Result<u8, Reason> {
    if name.is_empty() {
        return Err(Reason::EmptyName);
    }
    let bits = if granularity == 0 {
        cluster_bits.clamp(MIN_DEFAULT_BITS, MAX_DEFAULT_BITS)
    } else {
        let [.., a, b, c, d] = granularity.to_be_bytes();
        let granularity = u32::from_be_bytes([a, b, c, d]);
        let bits = granularity.trailing_zeros();
        if !granularity.is_power_of_two() || bits < MIN_GRANULARITY_BITS.into() {
            return Err(Reason::Granularity);
        }
        bits
    };
    u8::try_from(bits).map_err(|_| Reason::Granularity)
}

/// The judgement under way.
struct Judge<'j, 't, S, T> {
    storage: &'j S,
    header: &'j Header,
    source: &'j SourceImage<'t, T>,
    name: &'j [u8],
    wanted: Wanted,
}

impl<S: Storage, T: Storage> Judge<'_, '_, S, T> {
    fn act(&mut self, action: &Action<'_>) -> Result<Result<(), Reason>, TxnError> {
        let name = self.name;
        Ok(match action {
            Action::Add { granularity } => self.add(*granularity),
            Action::Remove => self.remove(),
            Action::Clear => self.wanted.usable(name).map(|dest| {
                dest.base = Base::Zeros;
                dest.sources.clear();
            }),
            Action::Enable => self.wanted.usable(name).map(|dest| dest.auto = true),
            Action::Disable => self.wanted.usable(name).map(|dest| dest.auto = false),
            Action::Merge { source } => return self.merge(source),
        })
    }

    fn add(&mut self, granularity: u64) -> Result<(), Reason> {
        let bits = check_new(self.name, granularity, self.header.cluster_bits.get())?;
        let name = self.name.to_vec();
        if self.wanted.now.is_some() {
            return Err(Reason::Exists { name });
        }
        if let Err(why) = self.check_room(bits) {
            return Err(Reason::NotPersistent { name, why });
        }
        self.wanted.now = Some(Dest {
            granularity_bits: bits,
            auto: true,
            inconsistent: false,
            base: Base::Zeros,
            sources: Vec::new(),
        });
        Ok(())
    }

    /// Whether the image can hold one bitmap more.
    fn check_room(&self, granularity_bits: u8) -> Result<(), NotPersistent> {
        if self.header.version < 3 {
            return Err(NotPersistent::Version2);
        }
        let clusters = table_entries(self.header, granularity_bits);
        let cluster_bytes = self.header.cluster_bits.size_bytes();
        if clusters.saturating_mul(cluster_bytes) > MAX_BITMAP_BYTES {
            return Err(NotPersistent::TooLarge);
        }
        if self.name.len() > usize::from(MAX_BITMAP_NAME_BYTES) {
            return Err(NotPersistent::NameTooLong);
        }
        let (mut count, mut bytes) = self
            .header
            .extensions
            .bitmaps
            .map_or((0, 0), |ext| (ext.nb_bitmaps, ext.directory_size));
        if let Some(place) = self.wanted.before.as_ref().filter(|_| self.wanted.removed) {
            count = count.saturating_sub(1);
            bytes = bytes.saturating_sub(place.bytes);
        }
        if count >= MAX_BITMAPS {
            return Err(NotPersistent::TooMany);
        }
        let entry = entry_bytes(self.name.len() as u64);
        if bytes.saturating_add(entry) > MAX_BITMAP_DIRECTORY_BYTES {
            return Err(NotPersistent::DirectoryFull);
        }
        Ok(())
    }

    fn remove(&mut self) -> Result<(), Reason> {
        if self.wanted.now.take().is_none() {
            let name = self.name.to_vec();
            return Err(Reason::NotFound { name });
        }
        self.wanted.removed = self.wanted.before.is_some();
        Ok(())
    }

    fn merge(&mut self, source: &[u8]) -> Result<Result<(), Reason>, TxnError> {
        if self.wanted.now.is_none() {
            let name = self.name.to_vec();
            return Ok(Err(Reason::NotFound { name }));
        }
        let (place, size) = match self.source {
            // Its own bits add nothing.
            SourceImage::Same if source == self.name => {
                return Ok(self.wanted.usable(self.name).map(|_| ()));
            }
            SourceImage::Same => {
                let place = directory::find(self.storage, self.header, source, 0)?;
                (place, self.header.whole_sectors_size())
            }
            SourceImage::Raw => (None, 0),
            SourceImage::Other { storage, header } => {
                let place = directory::find(*storage, header, source, 0)?;
                (place, header.whole_sectors_size())
            }
        };
        Ok(match place {
            Some(place) => self.merge_bitmap(source, place.bitmap, size),
            None => Err(Reason::NotFound {
                name: source.to_vec(),
            }),
        })
    }

    fn merge_bitmap(&mut self, source: &[u8], bitmap: Bitmap, origin: u64) -> Result<(), Reason> {
        let dest = self.wanted.usable(self.name)?;
        if bitmap.in_use() {
            let name = source.to_vec();
            return Err(Reason::Inconsistent { name });
        }
        let destination = self.header.whole_sectors_size();
        if origin != destination {
            return Err(Reason::Sizes {
                destination,
                origin,
            });
        }
        if !dest.sources.iter().any(|known| known.index == bitmap.index) {
            dest.sources.push(bitmap);
        }
        Ok(())
    }
}

/// Entries of the table of a bitmap of this granularity: the clusters of its bits.
pub(crate) fn table_entries(header: &Header, granularity_bits: u8) -> u64 {
    let bits = bits_of(header, granularity_bits);
    header.cluster_bits.clusters_for(bits.div_ceil(8))
}

/// Bits of a bitmap of this granularity.
pub(crate) fn bits_of(header: &Header, granularity_bits: u8) -> u64 {
    let granularity = 1_u64.checked_shl(granularity_bits.into()).unwrap_or(1);
    header.whole_sectors_size().div_ceil(granularity)
}
