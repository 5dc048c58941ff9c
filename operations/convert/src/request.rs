//! What the host asks for.

use instar_plan_convert::Settings;
use instar_shared::convert::{
    CONVERT_ANY_ORDER, CONVERT_COPY_RANGE, CONVERT_FILL, CONVERT_SALVAGE, ConvertConfig,
    SnapshotChoice,
};
use instar_shared::op::ImageFormat;
use op_chain::{Keys, SnapshotName};

/// What the host asks for, read once.
#[derive(Debug)]
pub struct Request<'a> {
    /// All of it.
    pub config: &'a ConvertConfig,
    /// Format of the sources, unless they are probed.
    pub source_format: ImageFormat,
    /// Format of the target.
    pub target_format: ImageFormat,
    /// Format of the target's backing file.
    pub backing_format: ImageFormat,
    /// The snapshot that is read.
    pub snapshot: Option<SnapshotName<'a>>,
    /// The target's name as typed.
    pub target_name: &'a [u8],
    /// The first source's name as typed.
    pub source_name: &'a [u8],
    /// Keys of encrypted images.
    pub keys: &'a dyn Keys,
}

impl<'a> Request<'a> {
    /// Nothing if the config makes no sense.
    #[must_use]
    pub fn new(config: &'a ConvertConfig, keys: &'a dyn Keys) -> Option<Self> {
        let text = |bytes: &'a [u8], len: u32| bytes.get(..usize::try_from(len).ok()?);
        let id = text(&config.snapshot_id, config.snapshot_id_len.get())?;
        let name = text(&config.snapshot_name, config.snapshot_name_len.get())?;
        let both = |id, name| Some(SnapshotName::Both { id, name });
        let snapshot = match SnapshotChoice::try_from(config.snapshot.get()).ok()? {
            SnapshotChoice::None => None,
            SnapshotChoice::IdOrName => Some(SnapshotName::IdOrName(name)),
            SnapshotChoice::Id => both(Some(id), None),
            SnapshotChoice::Name => both(None, Some(name)),
            SnapshotChoice::IdAndName => both(Some(id), Some(name)),
        };
        Some(Self {
            source_format: ImageFormat::try_from(config.source_format.get()).ok()?,
            target_format: ImageFormat::try_from(config.target_format.get()).ok()?,
            backing_format: ImageFormat::try_from(config.backing_format.get()).ok()?,
            snapshot,
            target_name: text(&config.target_name, config.target_name_len.get())?,
            source_name: text(&config.source_name, config.source_name_len.get())?,
            keys,
            config,
        })
    }

    /// Whether this `CONVERT_*` is set.
    #[must_use]
    pub fn has(&self, flag: u32) -> bool {
        self.config.flags.get() & flag != 0
    }

    /// How to copy.
    #[must_use]
    pub fn settings(&self) -> Settings {
        Settings {
            sparse_bytes: self.config.sparse_bytes.get(),
            fill: self.has(CONVERT_FILL),
            copy: self.has(CONVERT_COPY_RANGE),
            salvage: self.has(CONVERT_SALVAGE),
            any_order: self.has(CONVERT_ANY_ORDER),
        }
    }
}
