//! `info` as text.

use super::model::Snapshot;
use super::{Described, NANOSECONDS, specific};
use crate::date::Zone;
use crate::sink::Out;
use crate::size::human;
use instar_shared::info::{Encryption, IMAGE_DIRTY, NO_ICOUNT};

/// Prints the images, a blank line between two.
pub fn print(out: &mut dyn Out, images: &[Described<'_>], zone: &Zone) {
    for (index, described) in images.iter().enumerate() {
        if index > 0 {
            out.put(b"\n");
        }
        print_image(out, described, zone);
    }
}

fn print_image(out: &mut dyn Out, described: &Described<'_>, zone: &Zone) {
    let image = described.image;
    field(out, "image", described.shown);
    field(out, "file format", described.format().as_bytes());
    let bytes = image.virtual_size;
    field(
        out,
        "virtual size",
        format!("{} ({bytes} bytes)", human(bytes)).as_bytes(),
    );
    field(out, "disk size", human(described.disk_bytes).as_bytes());
    if let Some(qcow2) = &image.qcow2 {
        if qcow2.encryption != Encryption::None {
            field(out, "encrypted", b"yes");
        }
        field(
            out,
            "cluster_size",
            qcow2.cluster_size.to_string().as_bytes(),
        );
        if qcow2.has(IMAGE_DIRTY) {
            field(out, "cleanly shut down", b"no");
        }
    }
    print_backing(out, described);
    print_snapshots(out, &image.snapshots, zone);
    if let Some(qcow2) = &image.qcow2 {
        out.put(b"Format specific information:");
        specific::qcow2(qcow2).human(out, 1);
    }
    print_file(out, described);
}

fn print_backing(out: &mut dyn Out, described: &Described<'_>) {
    let Some(backing) = &described.image.backing else {
        return;
    };
    out.put(b"backing file: ");
    out.name(&backing.name);
    let full = described.full_backing_name(backing);
    if *full != *backing.name {
        out.put(b" (actual path: ");
        out.name(&full);
        out.put(b")");
    }
    out.put(b"\n");
    if let Some(format) = &backing.format {
        field(out, "backing file format", format);
    }
}

/// Prints the table of snapshots; nothing if there are none.
pub fn print_snapshots(out: &mut dyn Out, snapshots: &[Snapshot], zone: &Zone) {
    if snapshots.is_empty() {
        return;
    }
    out.put(b"Snapshot list:\n");
    row(
        out,
        b"ID",
        b"TAG",
        ["VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT"],
    );
    for snapshot in snapshots {
        let numbers = &snapshot.numbers;
        let size = human(numbers.vm_state_size.get());
        let date = zone.format(numbers.date_sec.get());
        let (clock, icount) = (clock(snapshot), icount(snapshot));
        row(
            out,
            &snapshot.id,
            &snapshot.name,
            [&size, &date, &clock, &icount],
        );
    }
}

/// Guest run time as hours, minutes, seconds and milliseconds.
fn clock(snapshot: &Snapshot) -> String {
    let nanoseconds = snapshot.numbers.vm_clock_nsec.get();
    let seconds = nanoseconds / NANOSECONDS;
    format!(
        "{:04}:{:02}:{:02}.{:03}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        nanoseconds % NANOSECONDS / 1_000_000
    )
}

fn icount(snapshot: &Snapshot) -> String {
    match snapshot.numbers.icount.get() {
        NO_ICOUNT => "--".to_owned(),
        count => count.cast_signed().to_string(),
    }
}

/// One row of the snapshot table: names left-aligned by their bytes, the rest right-aligned.
fn row(out: &mut dyn Out, id: &[u8], name: &[u8], columns: [&str; 4]) {
    for (text, width) in [(id, 7_usize), (name, 16)] {
        out.name(text);
        for _ in text.len()..width {
            out.put(b" ");
        }
        out.put(b" ");
    }
    let [size, date, clock, icount] = columns;
    out.put(format!("{size:>8} {date:>19} {clock:>15} {icount:>10}\n").as_bytes());
}

/// The file that the image lies in.
fn print_file(out: &mut dyn Out, described: &Described<'_>) {
    out.put(b"Child node '/file':\n");
    field(out, "    filename", described.name);
    field(out, "    protocol type", described.protocol().as_bytes());
    let bytes = described.file_bytes();
    field(
        out,
        "    file length",
        format!("{} ({bytes} bytes)", human(bytes)).as_bytes(),
    );
    field(out, "    disk size", human(described.disk_bytes).as_bytes());
}

fn field(out: &mut dyn Out, label: &str, value: &[u8]) {
    out.put(label.as_bytes());
    out.put(b": ");
    out.name(value);
    out.put(b"\n");
}
