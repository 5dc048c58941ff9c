//! What was found, for people.

use super::model::{Found, Place, Volume};
use crate::sink::Out;
use crate::size;
use instar_shared::bootscan::{BootLoader, BootScheme, KernelFormat};

/// Prints everything.
pub fn print(out: &mut impl Out, found: &Found) {
    disk(out, found);
    for note in &found.notes {
        out.put(b"note: ");
        out.name(note);
        out.put(b"\n");
    }
    let Some(source) = &found.source else {
        return;
    };
    out.put(b"boot loader: ");
    out.put(loader_name(source.loader).as_bytes());
    out.put(b", ");
    place(out, found, &source.place);
    out.put(b"\nboot entries:\n");
    entries(out, found);
    out.put(b"default entry: ");
    let default = found
        .entries
        .iter()
        .enumerate()
        .find(|(i, _)| found.is_default(*i));
    out.name(default.map_or(&b"none"[..], |(_, entry)| &entry.index));
    out.put(b" (");
    out.name(&source.why);
    out.put(b")\n");
    kernel(out, found);
}

/// Whose configuration it is, in words.
pub const fn loader_name(loader: BootLoader) -> &'static str {
    match loader {
        BootLoader::Grub => "GRUB",
        BootLoader::Bls => "boot loader specification",
        BootLoader::Extlinux => "extlinux",
    }
}

/// The kind of partition table, in words.
pub const fn scheme_name(scheme: BootScheme) -> &'static str {
    match scheme {
        BootScheme::None => "none",
        BootScheme::Gpt => "GPT",
        BootScheme::GptBackup => "GPT, from its backup",
        BootScheme::Mbr => "MBR",
    }
}

/// What a kernel's file is, in words.
pub const fn kernel_name(format: KernelFormat) -> &'static str {
    match format {
        KernelFormat::BzImage => "bzImage",
        KernelFormat::Pvh => "ELF with a PVH entry",
    }
}

fn disk(out: &mut impl Out, found: &Found) {
    let scheme = found.scheme.map_or("none", scheme_name);
    out.put(format!("partition table: {scheme}\n").as_bytes());
    for volume in &found.volumes {
        out.put(b"    ");
        out.put(volume_name(volume).as_bytes());
        out.put(format!(", {}", size::human(volume.len)).as_bytes());
        let [fs, label, ..] = &volume.texts;
        if !fs.is_empty() {
            out.put(b", ");
            out.name(fs);
        }
        if !label.is_empty() {
            out.put(b" '");
            out.name(label);
            out.put(b"'");
        }
        for (set, what) in [(volume.efi, ", EFI system"), (volume.active, ", bootable")] {
            out.put(if set { what.as_bytes() } else { b"" });
        }
        out.put(b"\n");
    }
}

fn volume_name(volume: &Volume) -> String {
    match volume.number {
        0 => "whole disk".to_owned(),
        number => format!("partition {number}"),
    }
}

fn place(out: &mut impl Out, found: &Found, place: &Place) {
    out.name(&place.path);
    if let Some(volume) = found.volumes.get(place.volume).filter(|v| v.number > 0) {
        out.put(format!(" on {}", volume_name(volume)).as_bytes());
    }
}

fn entries(out: &mut impl Out, found: &Found) {
    for (index, entry) in found.entries.iter().enumerate() {
        out.put(if found.is_chosen(index) {
            b"  * "
        } else {
            b"    "
        });
        out.name(&entry.index);
        out.put(b"  ");
        out.name(&entry.title);
        if entry.id != entry.title {
            out.put(b" (");
            out.name(&entry.id);
            out.put(b")");
        }
        out.put(b"\n");
        let files = entry.kernel.iter().map(|file| ("kernel", file));
        let files = files.chain(entry.initrds.iter().map(|file| ("initrd", file)));
        for (what, file) in files {
            out.put(format!("        {what}: ").as_bytes());
            place(out, found, file);
            out.put(b"\n");
        }
        for (what, text) in [
            ("command line", &entry.cmdline),
            ("cannot be booted", &entry.problem),
        ] {
            if !text.is_empty() {
                out.put(format!("        {what}: ").as_bytes());
                out.name(text);
                out.put(b"\n");
            }
        }
    }
}

fn kernel(out: &mut impl Out, found: &Found) {
    let Some(plan) = &found.plan else {
        return;
    };
    let (format, length) = (kernel_name(plan.format), size::human(plan.kernel_len));
    let line = format!(
        "kernel: {format}, {length}, entry point {:#x}\n",
        plan.entry_gpa
    );
    out.put(line.as_bytes());
    if plan.initrd_len > 0 {
        let line = format!("initial RAM disk: {}\n", size::human(plan.initrd_len));
        out.put(line.as_bytes());
    }
}
