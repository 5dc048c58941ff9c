//! The entries of a menu, and the default one.

use super::ScriptError;
use super::parse::{Block, parse};
use super::run::{Flow, Loaded, Machine};
use super::words::expand;
use crate::bls::BlsEntry;
use crate::disk::Disk;
use crate::{Entry, MAX_CMDLINE, MAX_CONFIG, MAX_ENTRIES, MAX_INITRDS, Place, short_name};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// A line of a menu.
#[derive(Debug)]
pub struct Item {
    pub title: Vec<u8>,
    pub id: Vec<u8>,
    pub body: Body,
}

/// What a line of a menu does.
#[derive(Debug)]
pub enum Body {
    /// Runs a script with arguments.
    Script(Block, Vec<Vec<u8>>),
    /// Boots an entry of the boot loader specification, from this volume.
    Bls(BlsEntry, usize),
    /// Opens another menu.
    Submenu(Vec<Item>),
}

/// The entries of the configuration at `place`, and the default one with the reason for it.
///
/// # Errors
/// The script cannot be run.
pub fn read_menu(
    disk: &Disk,
    place: &Place,
) -> Result<(Vec<Entry>, Option<usize>, String), ScriptError> {
    let text = disk.read(place, MAX_CONFIG).unwrap_or_default();
    let script = parse(&text)?;
    let mut machine = Machine::new(disk, place);
    let (Flow::Next(_) | Flow::Leave(_)) = machine.run(&script)?;
    let items = core::mem::take(&mut machine.items);
    let wanted = machine.get(b"default");
    let chosen = choose(&items, &wanted);
    let mut entries = Vec::new();
    flatten(&mut machine, &items, "", &mut entries)?;
    let default = entries.iter().position(|entry| entry.index == chosen);
    let first = (!entries.is_empty()).then_some(0);
    let why = if wanted.is_empty() {
        "no default is set, so the first".to_string()
    } else {
        let wanted = short_name(&wanted);
        let wanted = String::from_utf8_lossy(&wanted);
        format!("the variable default is '{wanted}'")
    };
    Ok((entries, default.or(first), why))
}

/// The index of the entry that a value of `default` names: numbers, IDs or titles, one for each menu with `>` between.
/// What names none is the first.
fn choose(items: &[Item], wanted: &[u8]) -> String {
    let end = wanted.iter().position(|byte| *byte == b'>');
    let (here, rest) = wanted.split_at(end.unwrap_or(wanted.len()));
    let rest = rest.get(1..).unwrap_or(&[]);
    let number = core::str::from_utf8(here)
        .ok()
        .and_then(|n| n.trim().parse::<usize>().ok());
    let number = number.filter(|number| *number < items.len());
    let named = |item: &Item| item.id == here || item.title == here;
    // A title may have a `>` itself.
    let whole = |item: &Item| item.title == wanted;
    let index = number
        .or_else(|| items.iter().position(named))
        .or_else(|| items.iter().position(whole))
        .unwrap_or(0);
    match items.get(index).map(|item| &item.body) {
        Some(Body::Submenu(inner)) => format!("{index}>{}", choose(inner, rest)),
        _ => index.to_string(),
    }
}

fn flatten(
    machine: &mut Machine<'_>,
    items: &[Item],
    prefix: &str,
    entries: &mut Vec<Entry>,
) -> Result<(), ScriptError> {
    for (number, item) in items.iter().enumerate() {
        let index = format!("{prefix}{number}");
        if let Body::Submenu(inner) = &item.body {
            flatten(machine, inner, &format!("{index}>"), entries)?;
            continue;
        }
        if entries.len() >= MAX_ENTRIES {
            return Ok(());
        }
        let Loaded {
            kernel,
            initrds,
            cmdline,
            problem,
        } = load(machine, item)?;
        entries.push(Entry {
            index,
            id: item.id.clone(),
            title: item.title.clone(),
            kernel,
            initrds,
            cmdline,
            problem,
        });
    }
    Ok(())
}

/// What an item loads, in variables as they are after the configuration.
fn load(machine: &mut Machine<'_>, item: &Item) -> Result<Loaded, ScriptError> {
    machine.loaded = Loaded::default();
    match &item.body {
        Body::Script(block, arguments) => {
            let variables = machine.variables.clone();
            machine.set(b"chosen", &item.id)?;
            machine.arguments.clone_from(arguments);
            machine.booting = true;
            let ran = machine.run(block);
            machine.booting = false;
            machine.variables = variables;
            machine.arguments.clear();
            ran?;
        }
        Body::Bls(entry, volume) => load_bls(machine, entry, *volume)?,
        Body::Submenu(_) => {}
    }
    Ok(core::mem::take(&mut machine.loaded))
}

/// What an entry of the boot loader specification loads; GRUB's variables count in its values.
fn load_bls(machine: &mut Machine<'_>, entry: &BlsEntry, volume: usize) -> Result<(), ScriptError> {
    let words = |machine: &Machine<'_>, text: &[u8]| -> Result<Vec<Vec<u8>>, ScriptError> {
        let block = super::words::value(text);
        expand(&block, machine)
    };
    let place = |path: &[u8]| Place {
        volume,
        path: path.to_vec(),
    };
    let Some(linux) = &entry.linux else {
        return Ok(());
    };
    let linux = words(machine, linux)?.concat();
    let mut initrds = Vec::new();
    for text in &entry.initrds {
        for path in words(machine, text)? {
            if initrds.len() < MAX_INITRDS {
                initrds.push(place(&path));
            }
        }
    }
    let options = match &entry.options {
        Some(options) => options.clone(),
        None => machine.get(b"default_kernelopts"),
    };
    let name = machine.disk.grub_name(volume);
    let mut cmdline = [b"BOOT_IMAGE=(", name.as_bytes(), b")", &linux].concat();
    for word in words(machine, &options)? {
        cmdline.push(b' ');
        cmdline.extend_from_slice(&word);
    }
    if cmdline.len() > MAX_CMDLINE {
        let sentence = format!("its command line has more than {MAX_CMDLINE} bytes");
        machine.loaded.problem = Some(sentence);
        cmdline.clear();
    }
    machine.loaded.kernel = Some(place(&linux));
    machine.loaded.initrds = initrds;
    machine.loaded.cmdline = cmdline;
    Ok(())
}
