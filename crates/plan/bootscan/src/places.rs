//! Where configurations are looked for, in the order in which boot loaders of distributions would be found.

use crate::disk::{Disk, Held};
use crate::{
    Entry, Loader, MAX_CMDLINE, MAX_CONFIG, MAX_ENTRIES, MAX_INITRDS, MAX_PATH, Place, Scan,
    Source, bls, extlinux, grub,
};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use instar_filesystem::NodeKind;

/// Configurations of GRUB.
const GRUB: &[&str] = &[
    "/boot/grub/grub.cfg",
    "/boot/grub2/grub.cfg",
    "/grub/grub.cfg",
    "/grub2/grub.cfg",
];
/// Folders that they lie in besides the root: subvolumes of btrfs, of Ubuntu and openSUSE, and of Fedora.
const SUBVOLUMES: &[&str] = &["", "/@", "/root"];
/// Folders with entries of the boot loader specification, and what is configured beside them.
const BLS: &[(&str, &str)] = &[
    ("/loader/entries", "/loader/loader.conf"),
    ("/boot/loader/entries", "/boot/loader/loader.conf"),
];
/// Configurations of extlinux and syslinux.
const EXTLINUX: &[&str] = &[
    "/boot/extlinux/extlinux.conf",
    "/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/extlinux.conf",
    "/boot/syslinux/extlinux.conf",
    "/boot/syslinux/syslinux.cfg",
    "/syslinux/extlinux.conf",
    "/syslinux/syslinux.cfg",
    "/syslinux.cfg",
    "/EFI/syslinux/syslinux.cfg",
];
/// The folder of an EFI system partition that boot loaders have their own folders in.
const EFI: &str = "/EFI";

/// Finds what the disk boots.
#[must_use]
pub fn scan(disk: &Disk) -> Scan {
    let mut scan = Scan::default();
    for volume in &disk.volumes {
        let name = match &volume.partition {
            Some(partition) => format!("Partition {}", partition.number),
            None => "The disk".to_string(),
        };
        match &volume.held {
            Held::Broken(error) => scan.note(format!("{name}: {error}")),
            Held::Other(what) => scan.note(format!("{name} holds {what}, which is not read")),
            Held::Files(_) | Held::Unknown => {}
        }
    }
    for (loader, place) in candidates(disk) {
        let found = match loader {
            Loader::Grub => read_grub(disk, &place),
            Loader::Bls => Ok(owned(bls::menu(disk, &place, &beside(&place)))),
            Loader::Extlinux => Ok(owned(read_extlinux(disk, &place))),
        };
        match found {
            Ok((mut entries, default, why)) => {
                entries.truncate(MAX_ENTRIES);
                entries.iter_mut().for_each(|entry| judge(disk, entry));
                if entries.iter().any(|entry| entry.problem.is_none()) {
                    scan.default = default;
                    scan.entries = entries;
                    scan.source = Some(Source { loader, place, why });
                    return scan;
                }
                let path = String::from_utf8_lossy(&place.path);
                let first = entries.into_iter().find_map(|entry| entry.problem);
                let reason = first.unwrap_or_else(|| "it has no entries".to_string());
                scan.note(format!("Nothing in '{path}' can be booted: {reason}"));
            }
            Err(sentence) => scan.note(sentence),
        }
    }
    scan
}

/// Entries, the default one, and the reason for it.
type Menu = (Vec<Entry>, Option<usize>, String);

fn owned((entries, default, why): (Vec<Entry>, Option<usize>, &'static str)) -> Menu {
    (entries, default, why.to_string())
}

fn read_grub(disk: &Disk, place: &Place) -> Result<Menu, String> {
    let path = || String::from_utf8_lossy(&place.path).into_owned();
    grub::read_menu(disk, place).map_err(|e| format!("'{}' cannot be followed: {e}", path()))
}

fn read_extlinux(disk: &Disk, place: &Place) -> (Vec<Entry>, Option<usize>, &'static str) {
    let text = disk.read(place, MAX_CONFIG).unwrap_or_default();
    extlinux::menu(disk, place, &text)
}

/// What is configured beside a folder of entries.
fn beside(folder: &Place) -> Place {
    let conf = BLS
        .iter()
        .find(|(entries, _)| entries.as_bytes() == folder.path);
    Place {
        volume: folder.volume,
        path: conf.map_or(&b""[..], |(_, conf)| conf.as_bytes()).to_vec(),
    }
}

/// All configurations that are there.
fn candidates(disk: &Disk) -> Vec<(Loader, Place)> {
    let mut found = Vec::new();
    let mut add = |loader, volume, path: &[u8], kind| {
        let path = path.to_vec();
        let place = Place { volume, path };
        if disk.kind_at(&place) == Some(kind) {
            found.push((loader, place));
        }
    };
    for (volume, files) in disk.files() {
        if !disk.volumes.get(volume).is_some_and(|v| v.is_efi_system()) {
            continue;
        }
        let mut vendors = files.list(EFI.as_bytes()).unwrap_or_default();
        // The folder for media without an installation is looked at last.
        vendors.sort_by_key(|name| name.eq_ignore_ascii_case(b"BOOT"));
        for vendor in vendors {
            let path = [EFI.as_bytes(), b"/", &vendor, b"/grub.cfg"].concat();
            add(Loader::Grub, volume, &path, NodeKind::File);
        }
    }
    for (volume, _) in disk.files() {
        for (folder, path) in SUBVOLUMES
            .iter()
            .flat_map(|f| GRUB.iter().map(move |p| (f, p)))
        {
            let path = [folder.as_bytes(), path.as_bytes()].concat();
            add(Loader::Grub, volume, &path, NodeKind::File);
        }
    }
    for (volume, _) in disk.files() {
        for (path, _) in BLS {
            add(Loader::Bls, volume, path.as_bytes(), NodeKind::Folder);
        }
    }
    for (volume, _) in disk.files() {
        for path in EXTLINUX {
            add(Loader::Extlinux, volume, path.as_bytes(), NodeKind::File);
        }
    }
    found
}

/// Finds what is wrong with an entry, and takes out what is too long.
fn judge(disk: &Disk, entry: &mut Entry) {
    let paths = entry.kernel.iter().chain(&entry.initrds);
    let long = paths
        .map(|place| place.path.len())
        .any(|len| len > MAX_PATH);
    if long || entry.cmdline.len() > MAX_CMDLINE || entry.initrds.len() > MAX_INITRDS {
        (entry.kernel, entry.initrds, entry.cmdline) = (None, Vec::new(), Vec::new());
        entry.problem = Some("its texts are too long".to_string());
        return;
    }
    if entry.problem.is_some() {
        return;
    }
    let Some(kernel) = &entry.kernel else {
        entry.problem = Some("it names no Linux kernel".to_string());
        return;
    };
    for (what, place) in core::iter::once(("kernel", kernel)).chain(
        entry
            .initrds
            .iter()
            .map(|place| ("initial RAM disk", place)),
    ) {
        let files = disk.files_of(place.volume);
        let opened = files.map(|files| files.open(&place.path));
        let reason = match opened {
            Some(Ok(_)) => continue,
            Some(Err(error)) => error.to_string(),
            None => "its volume is not read".to_string(),
        };
        let path = String::from_utf8_lossy(&place.path);
        entry.problem = Some(format!("its {what} '{path}' cannot be read: {reason}"));
        return;
    }
}
