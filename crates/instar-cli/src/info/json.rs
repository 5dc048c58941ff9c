//! `info` as JSON.

use super::model::{Image, Snapshot};
use super::{Described, NANOSECONDS, specific};
use crate::json::Json;
use crate::sink::Out;
use instar_shared::info::{Encryption, IMAGE_DIRTY, NO_ICOUNT};

/// Prints the images: a list for a chain, else the single object.
pub fn print(out: &mut dyn Out, images: &[Described<'_>], chain: bool) {
    let mut json = Json::new(out);
    if chain {
        json.begin_array();
    }
    for described in images {
        print_image(&mut json, described);
    }
    if chain {
        json.end_array();
    }
    json.finish();
}

fn print_image(json: &mut Json<'_>, described: &Described<'_>) {
    let image = described.image;
    let backing = image.backing.as_ref();
    json.begin_object();
    print_file(json, described);
    if let Some(format) = backing.and_then(|backing| backing.format.as_ref()) {
        json.field_string("backing-filename-format", format);
    }
    print_image_snapshots(json, image);
    json.field_number("virtual-size", image.virtual_size);
    json.field_string("filename", described.shown);
    if let Some(qcow2) = &image.qcow2 {
        json.field_number("cluster-size", qcow2.cluster_size);
    }
    json.field_string("format", described.format().as_bytes());
    json.field_number("actual-size", described.disk_bytes);
    if let Some(qcow2) = &image.qcow2 {
        json.key("format-specific");
        json.begin_object();
        json.field_string("type", b"qcow2");
        json.key("data");
        specific::qcow2(qcow2).json(json);
        json.end_object();
    }
    if let Some(backing) = backing {
        json.field_string(
            "full-backing-filename",
            &described.full_backing_name(backing),
        );
    }
    let qcow2 = image.qcow2.as_ref();
    if qcow2.is_some_and(|qcow2| qcow2.encryption != Encryption::None) {
        json.field_bool("encrypted", true);
    }
    if let Some(backing) = backing {
        json.field_string("backing-filename", &backing.name);
    }
    json.field_bool(
        "dirty-flag",
        qcow2.is_some_and(|qcow2| qcow2.has(IMAGE_DIRTY)),
    );
    json.end_object();
}

/// The file that the image lies in, as the only child.
fn print_file(json: &mut Json<'_>, described: &Described<'_>) {
    json.key("children");
    json.begin_array();
    json.begin_object();
    json.field_string("name", b"file");
    json.key("info");
    json.begin_object();
    json.key("children");
    json.begin_array();
    json.end_array();
    json.field_number("virtual-size", described.file_bytes());
    json.field_string("filename", described.name);
    json.field_string("format", described.protocol().as_bytes());
    json.field_number("actual-size", described.disk_bytes);
    json.key("format-specific");
    json.begin_object();
    // Files and devices alike are of the type "file" here.
    json.field_string("type", b"file");
    json.key("data");
    json.begin_object();
    json.end_object();
    json.end_object();
    json.field_bool("dirty-flag", false);
    json.end_object();
    json.end_object();
    json.end_array();
}

fn print_image_snapshots(json: &mut Json<'_>, image: &Image) {
    if image.snapshots.is_empty() {
        return;
    }
    json.key("snapshots");
    snapshot_list(json, &image.snapshots);
}

/// Prints snapshots as a list of their own.
pub fn print_snapshots(out: &mut dyn Out, snapshots: &[Snapshot]) {
    let mut json = Json::new(out);
    snapshot_list(&mut json, snapshots);
    json.finish();
}

fn snapshot_list(json: &mut Json<'_>, snapshots: &[Snapshot]) {
    json.begin_array();
    for snapshot in snapshots {
        print_snapshot(json, snapshot);
    }
    json.end_array();
}

fn print_snapshot(json: &mut Json<'_>, snapshot: &Snapshot) {
    let numbers = &snapshot.numbers;
    let clock = numbers.vm_clock_nsec.get();
    json.begin_object();
    if numbers.icount.get() != NO_ICOUNT {
        json.field_number("icount", numbers.icount.get().cast_signed());
    }
    json.field_number("vm-clock-nsec", clock % NANOSECONDS);
    json.field_string("name", &snapshot.name);
    json.field_number("date-sec", numbers.date_sec.get());
    json.field_number("date-nsec", numbers.date_nsec.get());
    json.field_number("vm-clock-sec", clock / NANOSECONDS);
    json.field_string("id", &snapshot.id);
    json.field_number("vm-state-size", numbers.vm_state_size.get().cast_signed());
    json.end_object();
}
