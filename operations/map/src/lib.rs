//! The map operation: where the parts of a disk lie, through its whole backing chain.
#![cfg_attr(not(test), no_std)]

extern crate alloc;

use alloc::vec::Vec;
use core::ops::ControlFlow;
use instar_guest_ops::{Context, Disk};
use instar_layers::{Chain, Layer};
use instar_plan_map::{Extent, MapError, map};
use instar_shared::map::{
    EXTENT_COMPRESSED, EXTENT_DATA, EXTENT_PLACED, EXTENT_PRESENT, EXTENT_ZERO, MAP_ONLY_PLACED,
    MapConfig, MapExtent, MapResult,
};
use instar_shared::op::{ImageFormat, Outcome};
use instar_shared::record::{FailureKind, MAX_PAYLOAD, RecordKind};
use instar_shared::zerocopy::IntoBytes;
use op_chain::{Keys, Layers, Reported, Unlock, fail, notice, open_layers_with};

/// Does what the host's config says, and tells the host how it went. `keys` are those of encrypted images.
pub fn run(ctx: &mut Context, keys: &dyn Keys) {
    let config: MapConfig = ctx.config();
    let mut result = MapResult::zeroed();
    let outcome = map_disk(ctx, &config, keys).unwrap_or(Outcome::Failed);
    result.outcome.set(outcome.raw());
    ctx.set_result(&result);
}

fn map_disk(ctx: &mut Context, config: &MapConfig, keys: &dyn Keys) -> Result<Outcome, Reported> {
    let told = ImageFormat::try_from(config.format.get()).map_err(|_| Reported)?;
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let Layers { chain, .. } = open_layers_with(ctx, disk, told, Unlock::of(keys, 0))?;
    for layer in chain.layers() {
        detect_preallocation(ctx, layer)?;
    }
    let mut sender = Sender {
        ctx,
        chain: &chain,
        only_placed: config.flags.get() & MAP_ONLY_PLACED != 0,
        extents: Vec::with_capacity(EXTENTS_PER_RECORD),
        cancelled: false,
    };
    // Empty: the chain is open.
    sender.send();
    let (start, end) = (config.start.get(), config.end.get());
    let mapped = map(&chain, start, end, |extent| sender.take(extent));
    if sender.cancelled {
        return Ok(Outcome::Cancelled);
    }
    sender.send();
    match mapped {
        Ok(()) | Err(MapError::Stopped) => Ok(Outcome::Done),
        Err(MapError::Data { source, .. }) => {
            notice(ctx, &source);
            let text = format_args!("Could not read file metadata: {source}");
            ctx.records().failure(FailureKind::Operation, 0, text);
            Ok(Outcome::Failed)
        }
    }
}

fn detect_preallocation(ctx: &mut Context, layer: &Layer<Disk>) -> Result<(), Reported> {
    let image = layer.store(instar_layers::FileOf::Image);
    layer
        .detect_preallocation(image.allocated_bytes())
        .map_err(|e| fail(ctx, image.slot(), format_args!("{e}")))
}

/// Extents that one record holds.
const EXTENTS_PER_RECORD: usize = MAX_PAYLOAD / size_of::<MapExtent>();

/// Sends extents, many in a record.
struct Sender<'a> {
    ctx: &'a mut Context,
    chain: &'a Chain<Disk>,
    only_placed: bool,
    extents: Vec<MapExtent>,
    cancelled: bool,
}

impl Sender<'_> {
    fn take(&mut self, extent: &Extent) -> ControlFlow<()> {
        self.extents.push(self.encode(extent));
        if self.extents.len() == EXTENTS_PER_RECORD {
            self.send();
            let done = extent.start.saturating_add(extent.len);
            self.ctx.records().progress(done, self.chain.len_bytes());
            self.cancelled = self.ctx.cancelled();
        }
        let unplaced = extent.data && !extent.zero && extent.offset.is_none();
        if self.cancelled || (self.only_placed && unplaced) {
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn encode(&self, extent: &Extent) -> MapExtent {
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = flag(extent.data, EXTENT_DATA)
            | flag(extent.zero, EXTENT_ZERO)
            | flag(extent.present, EXTENT_PRESENT)
            | flag(extent.compressed, EXTENT_COMPRESSED)
            | flag(extent.offset.is_some(), EXTENT_PLACED);
        let layer = self.chain.layers().get(extent.depth);
        let slot = layer.map_or(0, |layer| layer.store(extent.file).slot());
        MapExtent {
            len: extent.len.into(),
            offset: extent.offset.unwrap_or(0).into(),
            flags: flags.into(),
            depth: u16::try_from(extent.depth).unwrap_or(u16::MAX).into(),
            slot: slot.into(),
        }
    }

    fn send(&mut self) {
        let bytes = self.extents.as_slice().as_bytes();
        // It fits by its capacity.
        let _ = self.ctx.records().record(RecordKind::MapExtents, &[bytes]);
        self.extents.clear();
    }
}
