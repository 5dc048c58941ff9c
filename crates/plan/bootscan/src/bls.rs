//! Entries of the boot loader specification, type 1 (<https://uapi-group.org/specifications/specs/boot_loader_specification/>),
//! as systemd-boot and GRUB's `blscfg` read them.

use crate::disk::Disk;
use crate::version::compare;
use crate::{Entry, MAX_ENTRIES, Place, short_name};
use alloc::string::ToString;
use alloc::vec::Vec;
use core::cmp::Ordering;

/// Largest file of an entry, in bytes.
const MAX_FILE: u64 = 64 << 10;
/// What names of such files end with.
const SUFFIX: &[u8] = b".conf";

/// An entry as its file has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlsEntry {
    /// Name of the file without its suffix and boot counter.
    pub id: Vec<u8>,
    /// No tries are left.
    pub worn_out: bool,
    pub title: Vec<u8>,
    pub version: Vec<u8>,
    pub machine: Vec<u8>,
    pub sort_key: Vec<u8>,
    pub linux: Option<Vec<u8>>,
    pub initrds: Vec<Vec<u8>>,
    pub options: Option<Vec<u8>>,
}

/// Reads the entries in the folder at `place`, without order.
pub fn read(disk: &Disk, place: &Place) -> Vec<BlsEntry> {
    let files = disk.files_of(place.volume);
    let names = files.and_then(|files| files.list(&place.path).ok());
    let names = names.unwrap_or_default();
    let confs = names.iter().filter_map(|name| {
        let stem = name.strip_suffix(SUFFIX)?;
        let file = Place {
            volume: place.volume,
            path: [place.path.as_slice(), b"/", name].concat(),
        };
        let text = disk.read(&file, MAX_FILE).ok()?;
        Some(parse(stem, &text))
    });
    confs.take(MAX_ENTRIES).collect()
}

/// An entry from its file's text.
fn parse(stem: &[u8], text: &[u8]) -> BlsEntry {
    let (id, worn_out) = boot_counter(stem);
    let mut entry = BlsEntry {
        id: short_name(id),
        worn_out,
        ..BlsEntry::default()
    };
    for line in text.split(|byte| *byte == b'\n') {
        let line = line.trim_ascii();
        let key_end = line.iter().position(u8::is_ascii_whitespace);
        let (key, value) = line.split_at(key_end.unwrap_or(line.len()));
        let value = value.trim_ascii();
        match key {
            b"title" => entry.title = short_name(value),
            b"version" => entry.version = short_name(value),
            b"machine-id" => entry.machine = short_name(value),
            b"sort-key" => entry.sort_key = short_name(value),
            b"linux" => entry.linux = Some(value.to_vec()),
            b"initrd" => entry.initrds.push(value.to_vec()),
            b"options" => {
                let options = entry.options.get_or_insert_default();
                if !options.is_empty() {
                    options.push(b' ');
                }
                options.extend_from_slice(value);
            }
            _ => {}
        }
    }
    entry
}

/// Takes a boot counter, `+LEFT` or `+LEFT-DONE`, off a name; says whether no tries are left.
fn boot_counter(stem: &[u8]) -> (&[u8], bool) {
    let Some(plus) = stem.iter().rposition(|byte| *byte == b'+') else {
        return (stem, false);
    };
    let (id, counter) = stem.split_at(plus);
    let counter = counter.get(1..).unwrap_or(&[]);
    let left = counter.split(|byte| *byte == b'-').next().unwrap_or(&[]);
    let numbers = counter.iter().all(|b| b.is_ascii_digit() || *b == b'-');
    if left.is_empty() || !numbers {
        return (stem, false);
    }
    (id, left.iter().all(|digit| *digit == b'0'))
}

/// The order of systemd-boot's menu: boot loader specification, "Sorting".
pub fn menu_order(one: &BlsEntry, two: &BlsEntry) -> Ordering {
    let keyed = |entry: &BlsEntry| entry.sort_key.is_empty();
    one.worn_out
        .cmp(&two.worn_out)
        .then_with(|| keyed(one).cmp(&keyed(two)))
        .then_with(|| match (keyed(one), keyed(two)) {
            (false, false) => one
                .sort_key
                .cmp(&two.sort_key)
                .then_with(|| one.machine.cmp(&two.machine))
                .then_with(|| compare(&two.version, &one.version)),
            _ => Ordering::Equal,
        })
        .then_with(|| compare(&two.id, &one.id))
}

/// The order of GRUB's menu: newest first, by the names of the files.
pub fn grub_order(one: &BlsEntry, two: &BlsEntry) -> Ordering {
    compare(&two.id, &one.id)
}

/// The entries as systemd-boot would show them, and the default one with the reason for it.
pub fn menu(
    disk: &Disk,
    folder: &Place,
    conf: &Place,
) -> (Vec<Entry>, Option<usize>, &'static str) {
    let mut found = read(disk, folder);
    found.sort_by(menu_order);
    let text = disk.read(conf, MAX_FILE).unwrap_or_default();
    let wanted = text.split(|byte| *byte == b'\n').find_map(|line| {
        let value = line.trim_ascii().strip_prefix(b"default")?;
        value
            .first()?
            .is_ascii_whitespace()
            .then(|| value.trim_ascii().to_vec())
    });
    let by_pattern = wanted.as_ref().and_then(|pattern| {
        let pattern = pattern.strip_suffix(SUFFIX).unwrap_or(pattern);
        found.iter().position(|entry| matches(pattern, &entry.id))
    });
    let entries: Vec<Entry> = (0..)
        .zip(&found)
        .map(|(i, e)| plain(e, folder.volume, i))
        .collect();
    let why = match (&wanted, by_pattern) {
        (_, Some(_)) => "loader.conf names it",
        (Some(_), None) => "loader.conf names one that is not there, so the first",
        (None, None) => "no default is set, so the first",
    };
    let first = (!entries.is_empty()).then_some(0);
    (entries, by_pattern.or(first), why)
}

fn plain(entry: &BlsEntry, volume: usize, index: u32) -> Entry {
    let place = |path: &Vec<u8>| Place {
        volume,
        path: path.clone(),
    };
    Entry {
        index: index.to_string(),
        id: entry.id.clone(),
        title: entry.shown_title(),
        kernel: entry.linux.as_ref().map(place),
        initrds: entry.initrds.iter().map(place).collect(),
        cmdline: entry.options.clone().unwrap_or_default(),
        problem: None,
    }
}

impl BlsEntry {
    /// What a menu shows.
    pub fn shown_title(&self) -> Vec<u8> {
        if self.title.is_empty() {
            return self.id.clone();
        }
        self.title.clone()
    }
}

/// Whether a name fits a pattern with `*` and `?`, without regard to case.
fn matches(pattern: &[u8], name: &[u8]) -> bool {
    let (mut p, mut n) = (0_usize, 0_usize);
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = name.get(n) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p = p.saturating_add(1);
                continue;
            }
            Some(q) if *q == b'?' || q.eq_ignore_ascii_case(byte) => {
                (p, n) = (p.saturating_add(1), n.saturating_add(1));
                continue;
            }
            _ => {}
        }
        let Some((at, tried)) = star else {
            return false;
        };
        star = Some((at, tried.saturating_add(1)));
        (p, n) = (at.saturating_add(1), tried.saturating_add(1));
    }
    pattern
        .get(p..)
        .unwrap_or(&[])
        .iter()
        .all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_whole_names() {
        assert!(
            matches(b"fedora-*", b"Fedora-6.1") && matches(b"*", b"") && matches(b"a?c", b"abc")
        );
        assert!(
            !matches(b"fedora", b"fedora-6") && !matches(b"*x", b"abc") && matches(b"*b*", b"abc")
        );
    }

    #[test]
    fn entry_has_what_its_file_says() {
        let text = b"# comment\ntitle  Fedora Linux (6.1)\nversion 6.1\nlinux /vmlinuz\ninitrd /a\ninitrd /b\n\
            options root=UUID=1 ro\noptions $kernelopts\n";
        let entry = parse(b"abc-6.1+3-1", text);
        assert_eq!((&entry.id[..], entry.worn_out), (&b"abc-6.1"[..], false));
        assert_eq!(entry.title, b"Fedora Linux (6.1)");
        assert_eq!(entry.initrds, [b"/a".to_vec(), b"/b".to_vec()]);
        assert_eq!(entry.options.unwrap(), b"root=UUID=1 ro $kernelopts");
        assert_eq!(boot_counter(b"abc+0-3"), (&b"abc"[..], true));
        assert_eq!(
            boot_counter(b"linux-6.1+deb12"),
            (&b"linux-6.1+deb12"[..], false)
        );
    }
}
