//! Commands that matter for what is booted. Those that only load modules, draw or wait do nothing here.

use super::menu::{Body, Item};
use super::parse::{Block, parse};
use super::run::{Flow, Machine};
use super::{ScriptError, env, test};
use crate::{MAX_CMDLINE, MAX_CONFIG, MAX_ENTRIES, MAX_INITRDS, Place, bls, short_name};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use instar_filesystem::Node;

/// Commands that do nothing here, and work.
const QUIET: &[&[u8]] = &[
    b"background_color",
    b"background_image",
    b"clear",
    b"echo",
    b"export",
    b"gfxmode",
    b"hiddenentry",
    b"insmod",
    b"keymap",
    b"normal",
    b"play",
    b"rmmod",
    b"save_env",
    b"serial",
    b"setparams",
    b"sleep",
    b"terminal_input",
    b"terminal_output",
    b"terminfo",
    b"true",
    b":",
    b"increment",
    b"boot_counter",
    b"smbios",
    b"fwsetup",
];

/// Commands that start something that is no Linux kernel.
const OTHER_KERNELS: &[&[u8]] = &[
    b"chainloader",
    b"knetbsd",
    b"kfreebsd",
    b"kopenbsd",
    b"linux_xen",
    b"multiboot",
    b"multiboot2",
    b"xen_hypervisor",
    b"ntldr",
    b"xnu_kernel64",
    b"appleloader",
    b"exit",
    b"reboot",
    b"halt",
];

impl Machine<'_> {
    /// Runs a command of GRUB's own; one that is not known fails, as a module that is not there does.
    pub fn built_in(
        &mut self,
        name: &[u8],
        arguments: &[Vec<u8>],
        block: Option<&Block>,
    ) -> Result<Flow, ScriptError> {
        let words: Vec<&[u8]> = arguments.iter().map(Vec::as_slice).collect();
        let status = match name {
            b"[" => match words.split_last() {
                Some((&b"]", words)) => test::is_true(self, words),
                _ => false,
            },
            b"test" => test::is_true(self, &words),
            b"false" => false,
            b"set" => self.set_command(&words)?,
            b"unset" => words.iter().fold(true, |_, name| {
                self.variables.remove(*name);
                true
            }),
            b"menuentry" | b"submenu" => self.menu_entry(name == b"submenu", arguments, block)?,
            b"blscfg" => self.boot_loader_entries()?,
            b"search" => self.search(&words)?,
            b"search.fs_uuid" | b"search.fs_label" | b"search.file" => {
                let by = name.strip_prefix(b"search.").unwrap_or(name);
                let variable = words.get(1).copied().unwrap_or(b"root");
                self.find(by, words.first().copied().unwrap_or(&[]), variable)?
            }
            b"load_env" => self.load_env(&words)?,
            b"configfile" | b"source" | b"." => return self.file(&words),
            b"linux" | b"linux16" | b"linuxefi" => self.linux(&words)?,
            b"initrd" | b"initrd16" | b"initrdefi" => self.initrd(&words),
            b"return" => return Ok(Flow::Leave(words.first().is_none_or(|w| *w == b"0"))),
            b"break" | b"continue" => return Ok(Flow::Leave(true)),
            _ if QUIET.contains(&name) => true,
            _ if OTHER_KERNELS.contains(&name) && self.booting => {
                let name = String::from_utf8_lossy(name);
                self.problem(format!("it starts with '{name}', which is no Linux kernel"));
                true
            }
            _ => return self.assign(name),
        };
        Ok(Flow::Next(status))
    }

    /// `NAME=VALUE` without `set`.
    fn assign(&mut self, word: &[u8]) -> Result<Flow, ScriptError> {
        let status = match word.iter().position(|byte| *byte == b'=') {
            Some(_) => self.set_command(&[word])?,
            None => false,
        };
        Ok(Flow::Next(status))
    }

    fn set_command(&mut self, words: &[&[u8]]) -> Result<bool, ScriptError> {
        for word in words {
            let Some(at) = word.iter().position(|byte| *byte == b'=') else {
                continue;
            };
            let (name, value) = word.split_at(at);
            self.set(name, value.get(1..).unwrap_or(&[]))?;
        }
        Ok(true)
    }

    fn problem(&mut self, sentence: String) {
        self.loaded.problem.get_or_insert(sentence);
    }

    /// The place of `(DEVICE)/PATH`, or of `/PATH` on `root`.
    pub fn place(&self, word: &[u8]) -> Option<Place> {
        let (device, path) = match word.strip_prefix(b"(") {
            Some(rest) => {
                let end = rest.iter().position(|byte| *byte == b')')?;
                let (device, path) = rest.split_at(end);
                (device.to_vec(), path.get(1..)?)
            }
            None => (self.get(b"root"), word),
        };
        let volume = self.disk.by_grub_name(&device)?;
        let path = path.to_vec();
        Some(Place { volume, path })
    }

    /// What is at `(DEVICE)/PATH`.
    pub fn node(&self, word: &[u8]) -> Option<Node> {
        let place = self.place(word)?;
        let files = self.disk.files_of(place.volume)?;
        files.node(&place.path).ok()
    }

    fn menu_entry(
        &mut self,
        submenu: bool,
        arguments: &[Vec<u8>],
        block: Option<&Block>,
    ) -> Result<bool, ScriptError> {
        let Some(block) = block.filter(|_| !self.booting) else {
            return Ok(false);
        };
        let mut id = None;
        let mut positional = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_slice() {
                b"--id" => id = words.next().cloned(),
                b"--class" | b"--users" | b"--hotkey" | b"--source" => {
                    words.next();
                }
                b"--unrestricted" => {}
                word => match word.strip_prefix(b"--id=") {
                    Some(given) => id = Some(given.to_vec()),
                    None if word.starts_with(b"--") => {}
                    None => positional.push(word.to_vec()),
                },
            }
        }
        let title = short_name(positional.first().map_or(&[], Vec::as_slice));
        let id = short_name(&id.unwrap_or_else(|| title.clone()));
        if !submenu {
            self.add(Item {
                title,
                id,
                body: Body::Script(block.clone(), positional),
            });
            return Ok(true);
        }
        let outer = core::mem::take(&mut self.items);
        let ran = self.run(block);
        let inner = core::mem::replace(&mut self.items, outer);
        self.add(Item {
            title,
            id,
            body: Body::Submenu(inner),
        });
        ran.map(|_| true)
    }

    fn add(&mut self, item: Item) {
        if self.items.len() < MAX_ENTRIES {
            self.items.push(item);
        }
    }

    /// `blscfg`, of Fedora's GRUB: entries of the boot loader specification become those of the menu.
    fn boot_loader_entries(&mut self) -> Result<bool, ScriptError> {
        let told = self.get(b"blsdir");
        let folders: &[&[u8]] = &[&told, b"/loader/entries", b"/boot/loader/entries"];
        for folder in folders.iter().filter(|folder| !folder.is_empty()) {
            let Some(place) = self.place(folder) else {
                continue;
            };
            let mut found = bls::read(self.disk, &place);
            if found.is_empty() {
                continue;
            }
            found.sort_by(bls::grub_order);
            for entry in found {
                self.add(Item {
                    title: entry.shown_title(),
                    id: entry.id.clone(),
                    body: Body::Bls(entry, place.volume),
                });
            }
            return Ok(true);
        }
        Ok(false)
    }

    fn search(&mut self, words: &[&[u8]]) -> Result<bool, ScriptError> {
        let mut by: &[u8] = b"file";
        let mut variable: &[u8] = b"root";
        let mut wanted: &[u8] = &[];
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                b"-u" | b"--fs-uuid" => by = b"fs_uuid",
                b"-l" | b"--label" => by = b"fs_label",
                b"-f" | b"--file" => by = b"file",
                b"-n" | b"--no-floppy" | b"--efidisk-only" => {}
                b"-s" | b"--set" => variable = b"root",
                word => match word.strip_prefix(b"--set=") {
                    Some(name) => variable = name,
                    None if word.starts_with(b"--hint") => {
                        if !word.contains(&b'=') {
                            words.next();
                        }
                    }
                    None => wanted = word,
                },
            }
        }
        self.find(by, wanted, variable)
    }

    /// Sets a variable to the first volume with an identifier, a label or a file.
    fn find(&mut self, by: &[u8], wanted: &[u8], variable: &[u8]) -> Result<bool, ScriptError> {
        let disk = self.disk;
        let mut all = disk.files();
        let found = all.find(|(_, files)| match by {
            b"fs_uuid" => files.fs().uuid().as_bytes().eq_ignore_ascii_case(wanted),
            b"fs_label" => files.fs().label().as_bytes() == wanted,
            _ => files.node(wanted).is_ok(),
        });
        match found {
            Some((volume, _)) => {
                let name = disk.grub_name(volume);
                self.set(variable, name.as_bytes())?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    fn load_env(&mut self, words: &[&[u8]]) -> Result<bool, ScriptError> {
        let mut file = [&self.get(b"prefix")[..], b"/grubenv"].concat();
        let mut only: Vec<&[u8]> = Vec::new();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match *word {
                b"-f" | b"--file" => file = words.next().map_or(file, |w| w.to_vec()),
                b"-s" | b"--skip-sig" => {}
                word => match word.strip_prefix(b"--file=") {
                    Some(name) => file = name.to_vec(),
                    None => only.push(word),
                },
            }
        }
        let block = self.place(&file);
        let block = block.and_then(|place| self.disk.read(&place, env::MAX_BLOCK).ok());
        let Some(pairs) = block.and_then(|block| env::parse(&block)) else {
            return Ok(false);
        };
        for (name, value) in pairs {
            if only.is_empty() || only.contains(&name.as_slice()) {
                self.set(&name, &value)?;
            }
        }
        Ok(true)
    }

    /// Runs another file. `configfile` does not come back in GRUB; what follows it is for when it fails.
    fn file(&mut self, words: &[&[u8]]) -> Result<Flow, ScriptError> {
        let place = words.first().and_then(|word| self.place(word));
        let text = place.and_then(|place| self.disk.read(&place, MAX_CONFIG).ok());
        let Some(text) = text else {
            return Ok(Flow::Next(false));
        };
        let block = parse(&text)?;
        let (Flow::Next(status) | Flow::Leave(status)) = self.run(&block)?;
        Ok(Flow::Next(status))
    }

    fn linux(&mut self, words: &[&[u8]]) -> Result<bool, ScriptError> {
        let Some((kernel, arguments)) = words.split_first() else {
            return Ok(false);
        };
        let Some(place) = self.place(kernel) else {
            let name = String::from_utf8_lossy(kernel);
            self.problem(format!(
                "its kernel '{name}' lies on a device that instar does not read"
            ));
            return Ok(false);
        };
        self.loaded.kernel = Some(place);
        self.loaded.initrds.clear();
        self.loaded.problem = None;
        let mut line = [b"BOOT_IMAGE=", *kernel].concat();
        for argument in arguments {
            line.push(b' ');
            quote(argument, &mut line);
            if line.len() > MAX_CMDLINE {
                self.problem(format!(
                    "its command line has more than {MAX_CMDLINE} bytes"
                ));
                return Ok(false);
            }
        }
        self.loaded.cmdline = line;
        Ok(true)
    }

    fn initrd(&mut self, words: &[&[u8]]) -> bool {
        for word in words {
            // `newc:NAME:FILE` puts a file into the archive that the kernel gets.
            let place = self.place(word).filter(|_| !word.starts_with(b"newc:"));
            let Some(place) = place.filter(|_| self.loaded.initrds.len() < MAX_INITRDS) else {
                let name = String::from_utf8_lossy(word);
                self.problem(format!("its initial RAM disk '{name}' cannot be read"));
                return false;
            };
            self.loaded.initrds.push(place);
        }
        true
    }
}

/// Adds an argument to a command line as GRUB does: in double quotes if it has spaces.
fn quote(argument: &[u8], line: &mut Vec<u8>) {
    let spaces = argument.contains(&b' ');
    if spaces {
        line.push(b'"');
    }
    for byte in argument {
        if matches!(byte, b'\\' | b'\'' | b'"') {
            line.push(b'\\');
        }
        line.push(*byte);
    }
    if spaces {
        line.push(b'"');
    }
}
