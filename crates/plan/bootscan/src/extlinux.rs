//! Configurations of extlinux and syslinux. Syslinux wiki, "Config".

use crate::disk::Disk;
use crate::{Entry, MAX_CONFIG, MAX_ENTRIES, Place, short_name};
use alloc::string::ToString;
use alloc::vec::Vec;

/// Most files that are included.
const MAX_INCLUDES: usize = 16;

/// A configuration while it is read.
#[derive(Default)]
struct Config {
    labels: Vec<Label>,
    default: Option<Vec<u8>>,
    menu_default: Option<usize>,
    append: Option<Vec<u8>>,
    included: usize,
}

#[derive(Default)]
struct Label {
    name: Vec<u8>,
    title: Vec<u8>,
    kernel: Option<Vec<u8>>,
    initrds: Vec<Vec<u8>>,
    append: Option<Vec<u8>>,
}

/// The entries of the configuration at `place`, and the default one with the reason for it.
pub fn menu(disk: &Disk, place: &Place, text: &[u8]) -> (Vec<Entry>, Option<usize>, &'static str) {
    let mut config = Config::default();
    config.read(disk, place, text);
    let entries = (0..).zip(&config.labels);
    let entries: Vec<Entry> = entries.map(|(i, l)| config.entry(place, l, i)).collect();
    let named = config.default.as_ref().and_then(|wanted| {
        // What stands behind the label is the command line's.
        let wanted = wanted.split(u8::is_ascii_whitespace).next().unwrap_or(&[]);
        config.labels.iter().position(|label| label.name == wanted)
    });
    let first = (!entries.is_empty()).then_some(0);
    match (config.menu_default, named) {
        (Some(index), _) => (entries, Some(index), "it has MENU DEFAULT"),
        (None, Some(index)) => (entries, Some(index), "DEFAULT names it"),
        (None, None) => (entries, first, "no default is set, so the first"),
    }
}

impl Config {
    fn read(&mut self, disk: &Disk, place: &Place, text: &[u8]) {
        for line in text.split(|byte| *byte == b'\n') {
            let line = line.trim_ascii();
            let (key, value) = keyword(line);
            if key.eq_ignore_ascii_case(b"include") {
                self.include(disk, place, value);
            } else if key.eq_ignore_ascii_case(b"menu") {
                self.menu(value);
            } else {
                self.line(&key.to_ascii_lowercase(), value);
            }
        }
    }

    fn include(&mut self, disk: &Disk, place: &Place, value: &[u8]) {
        self.included = self.included.saturating_add(1);
        if self.included > MAX_INCLUDES {
            return;
        }
        let (name, _) = keyword(value);
        let file = beside(place, name);
        if let Ok(text) = disk.read(&file, MAX_CONFIG) {
            self.read(disk, &file, &text);
        }
    }

    fn menu(&mut self, value: &[u8]) {
        let (key, value) = keyword(value);
        let index = self.labels.len().checked_sub(1);
        if key.eq_ignore_ascii_case(b"default") {
            self.menu_default = index;
        } else if key.eq_ignore_ascii_case(b"label")
            && let Some(label) = self.labels.last_mut()
        {
            // A caret is before the key that chooses it.
            label.title = value.iter().copied().filter(|byte| *byte != b'^').collect();
        }
    }

    fn line(&mut self, key: &[u8], value: &[u8]) {
        let value = value.to_vec();
        if key == b"label" && self.labels.len() < MAX_ENTRIES {
            self.labels.push(Label {
                name: short_name(&value),
                ..Label::default()
            });
            return;
        }
        match (key, self.labels.last_mut()) {
            (b"default", _) => self.default = Some(value),
            (b"linux" | b"kernel", Some(label)) => label.kernel = Some(value),
            (b"initrd", Some(label)) => {
                let names = value.split(|byte| *byte == b',');
                label.initrds = names.map(<[u8]>::to_vec).collect();
            }
            (b"append", Some(label)) => label.append = Some(value),
            (b"append", None) => self.append = Some(value),
            _ => {}
        }
    }

    fn entry(&self, place: &Place, label: &Label, index: u32) -> Entry {
        let append = match label.append.as_deref().or(self.append.as_deref()) {
            None | Some(b"-") => &[],
            Some(append) => append,
        };
        // What syslinux itself puts in front.
        let kernel = label.kernel.as_deref().unwrap_or(&[]);
        let mut cmdline = [b"BOOT_IMAGE=", kernel].concat();
        let mut initrds = label.initrds.clone();
        for word in append
            .split(u8::is_ascii_whitespace)
            .filter(|w| !w.is_empty())
        {
            match word.strip_prefix(b"initrd=") {
                Some(names) if label.initrds.is_empty() => {
                    initrds = names.split(|b| *b == b',').map(<[u8]>::to_vec).collect();
                }
                _ => {}
            }
            cmdline.push(b' ');
            cmdline.extend_from_slice(word);
        }
        let title = if label.title.is_empty() {
            &label.name
        } else {
            &label.title
        };
        Entry {
            index: index.to_string(),
            id: label.name.clone(),
            title: short_name(title),
            kernel: label.kernel.as_ref().map(|path| beside(place, path)),
            initrds: initrds.iter().map(|path| beside(place, path)).collect(),
            cmdline,
            problem: None,
        }
    }
}

/// The first word of a line, and what follows.
fn keyword(line: &[u8]) -> (&[u8], &[u8]) {
    let end = line.iter().position(u8::is_ascii_whitespace);
    let (key, value) = line.split_at(end.unwrap_or(line.len()));
    (key, value.trim_ascii())
}

/// A path from a configuration, which counts from the folder that this is in.
fn beside(config: &Place, path: &[u8]) -> Place {
    let folder = config.path.iter().rposition(|byte| *byte == b'/');
    let folder = config.path.get(..folder.unwrap_or(0)).unwrap_or(&[]);
    Place {
        volume: config.volume,
        path: if path.starts_with(b"/") {
            path.to_vec()
        } else {
            [folder, b"/", path].concat()
        },
    }
}
