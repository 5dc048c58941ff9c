//! What was found, for programs.

use super::model::{Entry, Found, Place, Volume};
use crate::json::Json;
use crate::sink::Out;
use instar_shared::bootscan::{BootLoader, BootScheme, KernelFormat};

/// Prints everything.
pub fn print(out: &mut impl Out, found: &Found) {
    let mut json = Json::new(out);
    json.begin_object();
    let scheme = match found.scheme {
        None | Some(BootScheme::None) => "none",
        Some(BootScheme::Gpt | BootScheme::GptBackup) => "gpt",
        Some(BootScheme::Mbr) => "mbr",
    };
    json.field_string("partition-table", scheme.as_bytes());
    json.key("volumes");
    json.begin_array();
    found.volumes.iter().for_each(|one| volume(&mut json, one));
    json.end_array();
    json.key("notes");
    json.begin_array();
    found.notes.iter().for_each(|note| json.string(note));
    json.end_array();
    if let Some(source) = &found.source {
        let loader: &[u8] = match source.loader {
            BootLoader::Grub => b"grub",
            BootLoader::Bls => b"bls",
            BootLoader::Extlinux => b"extlinux",
        };
        json.field_string("boot-loader", loader);
        json.key("configuration");
        place(&mut json, found, &source.place);
        json.field_string("default-reason", &source.why);
    }
    json.key("entries");
    json.begin_array();
    for (index, one) in found.entries.iter().enumerate() {
        entry(&mut json, found, one, index);
    }
    json.end_array();
    plan(&mut json, found);
    json.end_object();
    json.finish();
}

fn volume(json: &mut Json<'_>, volume: &Volume) {
    json.begin_object();
    json.field_number("partition", volume.number);
    json.field_number("start", volume.start);
    json.field_number("length", volume.len);
    let keys = [
        "file-system",
        "label",
        "uuid",
        "partition-uuid",
        "partition-name",
    ];
    for (key, text) in keys.iter().zip(&volume.texts) {
        if !text.is_empty() {
            json.field_string(key, text);
        }
    }
    json.field_bool("efi-system", volume.efi);
    json.field_bool("bootable", volume.active);
    json.end_object();
}

fn place(json: &mut Json<'_>, found: &Found, place: &Place) {
    json.begin_object();
    let number = found
        .volumes
        .get(place.volume)
        .map_or(0, |volume| volume.number);
    json.field_number("partition", number);
    json.field_string("path", &place.path);
    json.end_object();
}

fn entry(json: &mut Json<'_>, found: &Found, entry: &Entry, index: usize) {
    json.begin_object();
    json.field_string("index", &entry.index);
    json.field_string("id", &entry.id);
    json.field_string("title", &entry.title);
    json.field_bool("default", found.is_default(index));
    json.field_bool("chosen", found.is_chosen(index));
    if let Some(kernel) = &entry.kernel {
        json.key("kernel");
        place(json, found, kernel);
    }
    json.key("initrds");
    json.begin_array();
    entry
        .initrds
        .iter()
        .for_each(|initrd| place(json, found, initrd));
    json.end_array();
    json.field_string("command-line", &entry.cmdline);
    if !entry.problem.is_empty() {
        json.field_string("problem", &entry.problem);
    }
    json.end_object();
}

fn plan(json: &mut Json<'_>, found: &Found) {
    let Some(plan) = &found.plan else {
        return;
    };
    json.key("kernel-image");
    json.begin_object();
    let format: &[u8] = match plan.format {
        KernelFormat::BzImage => b"bzimage",
        KernelFormat::Pvh => b"pvh",
    };
    json.field_string("format", format);
    json.field_number("length", plan.kernel_len);
    json.field_number("entry", plan.entry_gpa);
    json.field_number("initrd-length", plan.initrd_len);
    json.key("segments");
    json.begin_array();
    for segment in &plan.segments {
        json.begin_object();
        json.field_number("address", segment.gpa);
        json.field_number("offset", segment.file_offset);
        json.field_number("length", segment.file_len);
        json.field_number("memory-length", segment.mem_len);
        json.end_object();
    }
    json.end_array();
    json.end_object();
}
