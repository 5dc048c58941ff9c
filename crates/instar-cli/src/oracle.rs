//! For tests: `qemu-img` and the images that it is asked about. A missing
//! `qemu-img` fails the test that needs it.

use std::path::Path;
use std::process::{Command, Output};

/// Runs `qemu-img` in `folder` and returns what it did.
pub fn qemu_img(folder: &Path, arguments: &[&str]) -> Output {
    Command::new("qemu-img")
        .args(arguments)
        .current_dir(folder)
        .env("LC_ALL", "C")
        .output()
        .expect("the tests compare with qemu-img: install qemu-utils")
}

/// Runs `qemu-img`, which must succeed, and returns its standard output.
pub fn stdout(folder: &Path, arguments: &[&str]) -> Vec<u8> {
    let output = qemu_img(folder, arguments);
    assert!(
        output.status.success(),
        "qemu-img {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    output.stdout
}

/// The first line that `qemu-img` writes to standard error, without its name.
pub fn complaint(folder: &Path, arguments: &[&str]) -> String {
    let output = qemu_img(folder, arguments);
    let text = String::from_utf8(output.stderr).unwrap();
    let line = text.lines().next().unwrap_or_default();
    line.strip_prefix("qemu-img: ").unwrap_or(line).to_owned()
}

/// A snapshot to write into an image.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Identifier, any bytes.
    pub id: Vec<u8>,
    /// Name, any bytes.
    pub name: Vec<u8>,
    /// Seconds since 1970.
    pub date_sec: u32,
    /// Nanoseconds.
    pub date_nsec: u32,
    /// Guest clock in nanoseconds.
    pub vm_clock_nsec: u64,
    /// VM state size in bytes.
    pub vm_state_size: u64,
    /// Instruction count; `u64::MAX` for none.
    pub icount: u64,
}

impl Default for Snapshot {
    fn default() -> Self {
        Self {
            id: b"1".to_vec(),
            name: b"n".to_vec(),
            date_sec: 0,
            date_nsec: 0,
            vm_clock_nsec: 0,
            vm_state_size: 0,
            icount: 0,
        }
    }
}

/// Makes an image whose snapshot table holds exactly these (qcow2 "Snapshots").
pub fn image_with_snapshots(path: &Path, snapshots: &[Snapshot]) {
    let folder = path.parent().unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    stdout(folder, &["create", "-f", "qcow2", name, "64M"]);
    let mut image = std::fs::read(path).unwrap();
    image.resize(image.len().next_multiple_of(65536), 0);
    let l1_table_offset = image[40..48].to_vec();
    let table_offset = image.len() as u64;
    for snapshot in snapshots {
        image.extend_from_slice(&l1_table_offset);
        image.extend(1_u32.to_be_bytes());
        image.extend(u16::try_from(snapshot.id.len()).unwrap().to_be_bytes());
        image.extend(u16::try_from(snapshot.name.len()).unwrap().to_be_bytes());
        image.extend(snapshot.date_sec.to_be_bytes());
        image.extend(snapshot.date_nsec.to_be_bytes());
        image.extend(snapshot.vm_clock_nsec.to_be_bytes());
        image.extend(0_u32.to_be_bytes());
        image.extend(24_u32.to_be_bytes());
        image.extend(snapshot.vm_state_size.to_be_bytes());
        image.extend((64_u64 << 20).to_be_bytes());
        image.extend(snapshot.icount.to_be_bytes());
        image.extend_from_slice(&snapshot.id);
        image.extend_from_slice(&snapshot.name);
        image.resize(image.len().next_multiple_of(8), 0);
    }
    let count = u32::try_from(snapshots.len()).unwrap();
    image[60..64].copy_from_slice(&count.to_be_bytes());
    image[64..72].copy_from_slice(&table_offset.to_be_bytes());
    std::fs::write(path, image).unwrap();
}

/// The dates that `qemu-img` prints for an image's snapshots under a value of `TZ`.
pub fn snapshot_dates(path: &Path, zone: Option<&str>) -> Vec<String> {
    let mut command = Command::new("qemu-img");
    command.arg("info").arg(path).env_remove("TZ");
    if let Some(zone) = zone {
        command.env("TZ", zone);
    }
    let output = command.output().expect("the tests compare with qemu-img");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .skip_while(|line| !line.starts_with("ID "))
        .skip(1)
        .take_while(|line| !line.starts_with("Format"))
        .map(|line| line[34..53].trim_start().to_owned())
        .collect()
}
