//! Records for the host.

use alloc::vec::Vec;
use instar_guest_ops::Context;
use instar_partition::{Partition, Scheme};
use instar_plan_bootscan::{Disk, Entry, Held, Loader, Place, Source, Volume};
use instar_shared::bootscan::{
    BootEntry, BootLoader, BootScheme, BootSource, BootVolume, MAX_BOOT_TEXT, NO_INDEX,
    VOLUME_ACTIVE, VOLUME_EFI,
};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::IntoBytes;
use instar_shared::zerocopy::little_endian::{U16, U32};

/// Longest text that is sent whole; what is longer is cut.
const MAX_TEXT: usize = 4096;
const _: () = assert!(MAX_TEXT <= MAX_BOOT_TEXT);

/// The kind of table, for the host.
pub const fn scheme(scheme: Scheme) -> BootScheme {
    match scheme {
        Scheme::Gpt { from_backup: false } => BootScheme::Gpt,
        Scheme::Gpt { from_backup: true } => BootScheme::GptBackup,
        Scheme::Mbr => BootScheme::Mbr,
        Scheme::None => BootScheme::None,
    }
}

/// Sends a record: its head and its texts, whose lengths `lens` gets.
fn send<const N: usize>(
    ctx: &mut Context,
    kind: RecordKind,
    texts: [&[u8]; N],
    head: impl FnOnce([U16; N]) -> Vec<u8>,
) {
    let cut = |text: &'_ [u8]| text.len().min(MAX_BOOT_TEXT);
    let lens = texts.map(|text| U16::new(u16::try_from(cut(text)).unwrap_or(0)));
    let head = head(lens);
    let mut parts: Vec<&[u8]> = Vec::from([head.as_slice()]);
    parts.extend(
        texts
            .iter()
            .map(|text| text.get(..cut(text)).unwrap_or(text)),
    );
    // It fits: the planner bounds every text.
    let _ = ctx.records().record(kind, &parts);
}

/// Sends all volumes; returns how many.
pub fn volumes(ctx: &mut Context, disk: &Disk) -> u32 {
    disk.volumes.iter().for_each(|one| volume(ctx, one));
    u32::try_from(disk.volumes.len()).unwrap_or(u32::MAX)
}

fn volume(ctx: &mut Context, volume: &Volume) {
    let (fs, label, uuid) = match &volume.held {
        Held::Files(files) => {
            let fs = files.fs();
            (fs.name(), fs.label(), fs.uuid())
        }
        Held::Other(name) => (*name, Default::default(), Default::default()),
        Held::Unknown | Held::Broken(_) => Default::default(),
    };
    let none = Partition::whole();
    let partition = volume.partition.as_ref().unwrap_or(&none);
    let flag = |set: bool, bit: u32| if set { bit } else { 0 };
    let flags = flag(volume.is_efi_system(), VOLUME_EFI) | flag(partition.active, VOLUME_ACTIVE);
    let texts = [fs, &label, &uuid, &partition.uuid, &partition.name].map(str::as_bytes);
    send(ctx, RecordKind::BootVolume, texts, |lens| {
        let head = BootVolume {
            start: partition.start.into(),
            len: volume.len.into(),
            number: partition.number.into(),
            flags: flags.into(),
            lens,
            reserved: [0; 6],
        };
        head.as_bytes().to_vec()
    });
}

/// Sends a sentence on what could not be read.
pub fn note(ctx: &mut Context, sentence: &str) {
    let bytes = sentence.as_bytes();
    let bytes = bytes.get(..MAX_TEXT).unwrap_or(bytes);
    let _ = ctx.records().record(RecordKind::BootNote, &[bytes]);
}

/// An index, for the host.
fn index(volume: usize) -> u32 {
    u32::try_from(volume).unwrap_or(NO_INDEX)
}

/// Sends where the entries come from.
pub fn source(ctx: &mut Context, source: &Source) {
    let loader = match source.loader {
        Loader::Grub => BootLoader::Grub,
        Loader::Bls => BootLoader::Bls,
        Loader::Extlinux => BootLoader::Extlinux,
    };
    let texts = [source.place.path.as_slice(), source.why.as_bytes()];
    send(ctx, RecordKind::BootSource, texts, |lens| {
        let head = BootSource {
            loader: loader.raw().into(),
            volume: index(source.place.volume).into(),
            lens,
            reserved: [0; 4],
        };
        head.as_bytes().to_vec()
    });
}

/// Sends an entry.
pub fn entry(ctx: &mut Context, entry: &Entry) {
    let no_place = Place {
        volume: usize::MAX,
        path: Vec::new(),
    };
    let kernel = entry.kernel.as_ref().unwrap_or(&no_place);
    let mut initrd_volumes = [U32::new(0); 8];
    let mut paths = Vec::new();
    for (slot, place) in initrd_volumes.iter_mut().zip(&entry.initrds) {
        slot.set(index(place.volume));
        paths.extend_from_slice(&place.path);
        paths.push(0);
    }
    let problem = entry.problem.as_deref().unwrap_or("").as_bytes();
    let texts = [
        entry.index.as_bytes(),
        &entry.id,
        &entry.title,
        &kernel.path,
        &paths,
        &entry.cmdline,
        problem,
    ];
    send(ctx, RecordKind::BootEntry, texts, |lens| {
        let head = BootEntry {
            kernel_volume: index(kernel.volume).into(),
            initrd_volumes,
            initrds: index(entry.initrds.len()).into(),
            lens,
            reserved: [0; 2],
        };
        head.as_bytes().to_vec()
    });
}
