//! What was found, validated field by field.

use instar_shared::bootscan::{
    BootEntry, BootLoader, BootPlan as RawPlan, BootScheme, BootSource, BootVolume, BootscanResult,
    MAX_BOOT_RECORDS, MAX_BOOT_TEXT, MAX_INITRDS, NO_INDEX, VOLUME_ACTIVE, VOLUME_EFI,
    VOLUME_FLAGS,
};
use instar_shared::record::RecordKind;
use instar_shared::zerocopy::FromBytes;
use instar_shared::zerocopy::little_endian::U16;
use instar_vmm::boot_plan::BootPlan;

/// A partition, or the whole disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// First byte on the disk.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Number of the partition, 0 for the whole disk.
    pub number: u32,
    /// An EFI system partition.
    pub efi: bool,
    /// Marked as bootable.
    pub active: bool,
    /// Name of the file system, its label and UUID, the partition's UUID and name.
    pub texts: [Vec<u8>; 5],
}

/// A file on a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the volume.
    pub volume: usize,
    /// Path.
    pub path: Vec<u8>,
}

/// Where the entries come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Whose configuration it is.
    pub loader: BootLoader,
    /// Its file or folder.
    pub place: Place,
    /// Why the default entry is that.
    pub why: Vec<u8>,
}

/// An entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number in the menu.
    pub index: Vec<u8>,
    /// Its ID.
    pub id: Vec<u8>,
    /// What the menu shows.
    pub title: Vec<u8>,
    /// The kernel.
    pub kernel: Option<Place>,
    /// Initial RAM disks.
    pub initrds: Vec<Place>,
    /// Command line.
    pub cmdline: Vec<u8>,
    /// Why it cannot be booted; empty if it can.
    pub problem: Vec<u8>,
}

/// Everything that was found.
#[derive(Debug, Default)]
pub struct Found {
    /// The kind of partition table.
    pub scheme: Option<BootScheme>,
    /// Partitions, or the whole disk.
    pub volumes: Vec<Volume>,
    /// What could not be read.
    pub notes: Vec<Vec<u8>>,
    /// Where the entries come from.
    pub source: Option<Source>,
    /// The entries.
    pub entries: Vec<Entry>,
    /// How the chosen entry's kernel is loaded.
    pub plan: Option<BootPlan>,
    default: Option<usize>,
    chosen: Option<usize>,
}

/// The texts behind a head, whose lengths are `lens`.
fn texts<const N: usize>(payload: &[u8], lens: [U16; N]) -> Result<[Vec<u8>; N], String> {
    let mut rest = payload;
    let mut short = false;
    let texts = lens.map(|len| {
        let len = usize::from(len.get());
        let parts = rest.split_at_checked(len).filter(|_| len <= MAX_BOOT_TEXT);
        let (text, behind) = parts.unwrap_or_else(|| {
            short = true;
            (&[], &[])
        });
        rest = behind;
        text.to_vec()
    });
    if short || !rest.is_empty() {
        return Err("a record's texts have other lengths than it says".to_owned());
    }
    Ok(texts)
}

fn head<T: FromBytes>(payload: &[u8]) -> Result<(T, &[u8]), String> {
    T::read_from_prefix(payload).map_err(|_| "the record's length is wrong".to_owned())
}

fn zero(reserved: &[u8]) -> Result<(), String> {
    if reserved.iter().any(|byte| *byte != 0) {
        return Err("reserved bytes of a record are not zero".to_owned());
    }
    Ok(())
}

fn room<T>(list: &[T]) -> Result<(), String> {
    if list.len() >= usize::try_from(MAX_BOOT_RECORDS).unwrap_or(0) {
        return Err("there are too many records".to_owned());
    }
    Ok(())
}

impl Found {
    /// Takes over a record of any kind.
    pub fn record(&mut self, kind: RecordKind, payload: &[u8]) -> Result<(), String> {
        match kind {
            RecordKind::BootVolume => self.volume(payload),
            RecordKind::BootNote => self.note(payload),
            RecordKind::BootSource => self.source(payload),
            RecordKind::BootEntry => self.entry(payload),
            RecordKind::BootPlan => self.plan(payload),
            other => Err(format!(
                "records of the kind {other:?} do not belong to a search for boot entries"
            )),
        }
    }

    /// Takes over a `BootVolume` record.
    pub fn volume(&mut self, payload: &[u8]) -> Result<(), String> {
        let (raw, rest) = head::<BootVolume>(payload)?;
        room(&self.volumes)?;
        zero(&raw.reserved)?;
        let flags = raw.flags.get();
        let end = raw.start.get().checked_add(raw.len.get());
        if flags & !VOLUME_FLAGS != 0 || end.is_none() {
            return Err(format!("the flags of a volume are {flags:#x}"));
        }
        self.volumes.push(Volume {
            start: raw.start.get(),
            len: raw.len.get(),
            number: raw.number.get(),
            efi: flags & VOLUME_EFI != 0,
            active: flags & VOLUME_ACTIVE != 0,
            texts: texts(rest, raw.lens)?,
        });
        Ok(())
    }

    /// Takes over a `BootNote` record.
    pub fn note(&mut self, payload: &[u8]) -> Result<(), String> {
        room(&self.notes)?;
        let end = payload.len().min(MAX_BOOT_TEXT);
        self.notes
            .push(payload.get(..end).unwrap_or(payload).to_vec());
        Ok(())
    }

    /// Takes over the `BootSource` record.
    pub fn source(&mut self, payload: &[u8]) -> Result<(), String> {
        let (raw, rest) = head::<BootSource>(payload)?;
        zero(&raw.reserved)?;
        let loader = BootLoader::try_from(raw.loader.get());
        let loader = loader.map_err(|raw| format!("a boot loader is {raw}"))?;
        let [path, why] = texts(rest, raw.lens)?;
        let place = self.place(raw.volume.get(), path)?;
        if self.source.is_some() {
            return Err("there are two sources".to_owned());
        }
        self.source = Some(Source { loader, place, why });
        Ok(())
    }

    /// Takes over a `BootEntry` record.
    pub fn entry(&mut self, payload: &[u8]) -> Result<(), String> {
        let (raw, rest) = head::<BootEntry>(payload)?;
        room(&self.entries)?;
        zero(&raw.reserved)?;
        let [index, id, title, kernel, initrds, cmdline, problem] = texts(rest, raw.lens)?;
        let kernel = match raw.kernel_volume.get() {
            NO_INDEX if kernel.is_empty() => None,
            volume => Some(self.place(volume, kernel)?),
        };
        // A NUL stands behind each path.
        let mut paths = initrds.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        let count = usize::try_from(raw.initrds.get()).unwrap_or(usize::MAX);
        let volumes = raw.initrd_volumes.iter().take(count);
        let places = volumes.map(|volume| {
            let path = paths.next().ok_or("an initial RAM disk has no path")?;
            self.place(volume.get(), path)
        });
        let initrds = places.collect::<Result<Vec<_>, String>>()?;
        if raw.initrds.get() > MAX_INITRDS || paths.next().is_none_or(|rest| !rest.is_empty()) {
            return Err("the number of initial RAM disks is wrong".to_owned());
        }
        self.entries.push(Entry {
            index,
            id,
            title,
            kernel,
            initrds,
            cmdline,
            problem,
        });
        Ok(())
    }

    /// Takes over the `BootPlan` record.
    pub fn plan(&mut self, payload: &[u8]) -> Result<(), String> {
        let raw = RawPlan::read_from_bytes(payload);
        let raw = raw.map_err(|_| "the record's length is wrong".to_owned())?;
        self.plan = Some(BootPlan::read(&raw).map_err(|error| error.to_string())?);
        Ok(())
    }

    /// Takes over the result, which counts the records.
    pub fn finish(&mut self, result: &BootscanResult) -> Result<(), String> {
        zero(&result.reserved)?;
        let scheme = BootScheme::try_from(result.scheme.get());
        self.scheme = Some(scheme.map_err(|raw| format!("its kind of partition table is {raw}"))?);
        let counts = [
            (result.volumes.get(), self.volumes.len()),
            (result.entries.get(), self.entries.len()),
        ];
        if counts
            .iter()
            .any(|(said, are)| usize::try_from(*said) != Ok(*are))
        {
            return Err("it counts other records than there were".to_owned());
        }
        self.default = self.index(result.default.get())?;
        self.chosen = self.index(result.chosen.get())?;
        Ok(())
    }

    /// The entry that is booted.
    pub fn chosen(&self) -> Option<&Entry> {
        self.entries.get(self.chosen?)
    }

    /// Whether the entry at `index` is the default one.
    pub fn is_default(&self, index: usize) -> bool {
        self.default == Some(index)
    }

    /// Whether the entry at `index` is booted.
    pub fn is_chosen(&self, index: usize) -> bool {
        self.chosen == Some(index)
    }

    fn index(&self, raw: u32) -> Result<Option<usize>, String> {
        let index = usize::try_from(raw)
            .ok()
            .filter(|index| *index < self.entries.len());
        match (raw, index) {
            (NO_INDEX, _) => Ok(None),
            (_, Some(index)) => Ok(Some(index)),
            (raw, None) => Err(format!("there is no entry {raw}")),
        }
    }

    fn place(&self, volume: u32, path: Vec<u8>) -> Result<Place, String> {
        let index = usize::try_from(volume).ok();
        let index = index.filter(|index| *index < self.volumes.len());
        let volume = index.ok_or_else(|| format!("there is no volume {volume}"))?;
        Ok(Place { volume, path })
    }
}
