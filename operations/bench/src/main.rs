//! The bench operation for requests that read, through the backing chain.
#![no_std]
#![no_main]

use instar_codec::Decoder;
use instar_guest_ops::{Context, Disk, DiskSet};
use instar_layers::FileOf;
use instar_plan_bench::Reader;
use instar_plan_convert::Chains;
use instar_shared::bench::BenchResult;
use instar_shared::op::Outcome;
use op_bench::{Asked, time};
use op_chain::{Reported, open_layers};

instar_guest_ops::entry!(run);

fn run(ctx: &mut Context) {
    op_bench::run(ctx, read);
}

fn read(ctx: &mut Context, asked: &Asked, result: &mut BenchResult) -> Result<Outcome, Reported> {
    let disk = ctx.disk(0).map_err(|_| Reported)?;
    let layers = open_layers(ctx, disk, asked.told)?;
    result.format.set(layers.format.raw());
    let chains = Chains::new([&layers.chain], None, Disk::slot, Decoder::new());
    let disks = layers.chain.layers().iter();
    let disks = disks.flat_map(|l| [l.store(FileOf::Image), l.store(FileOf::DataFile)]);
    let set = DiskSet::new(disks).ok_or(Reported)?;
    time(ctx, &set, &mut Reader(chains), &asked.settings, result)
}
