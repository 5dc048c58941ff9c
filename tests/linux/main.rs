//! Linux guests of `instar run`: Debian's kernel for clouds with a busybox, over both transports; an image of Debian for
//! clouds, by its name.
//!
//! They run in the lab, of which one boot serves many guests: `lab.sh` and `cloud.sh` start them and say `ok NAME` for each
//! thing that is as it should be; `guest.sh` is what the small ones do.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use instar_tests::lab::X86_64;
use instar_tests::scratch::Scratch;

/// The longest time for all guests of a transport, or for the image; where nothing else runs it is 3 minutes and 10.
const LIMIT: Duration = Duration::from_secs(1400);

/// Things that must be right, among others: no script that ends early passes.
const NEEDED: [&str; 31] = [
    "all cpus 4",
    "all clock kvm-clock",
    "power-off",
    "mark",
    "blk read",
    "blk write",
    "blk discard",
    "blk discard in the file",
    "read-only disk",
    "all random 256",
    "all ping ok",
    "tcp out",
    "tcp in",
    "all vsock-out 1000000 bytes came back",
    "vsock in",
    "vsock nobody",
    "passt address 192.0.2.2/24",
    "passt out",
    "passt in",
    "passt ends",
    "console out",
    "console console hello to hvc0",
    "reboot boot 3",
    "thrown boot 3",
    "thrown away",
    "button pressed",
    "deaf exit code",
    "recycled rounds 3",
    "recycled",
    "crash",
    "disk in use",
];

/// What must be right of the image.
const NEEDED_OF_IMAGE: [&str; 15] = [
    "power-off",
    "cloud-init",
    "written before the reboot",
    "hostname",
    "key",
    "finished",
    "boots",
    "check",
    "clean e2fsck",
    "in the image",
    "ssh",
    "killed check",
    "backing file",
    "killed e2fsck",
    "killed files",
];

/// Runs a script in the lab; `front` stands before the names of what must be right.
fn lab(script: &[&str], front: &str, needed: &[&str]) -> Result<()> {
    let results = Scratch::new()?;
    let done = X86_64::new()?.run(&results, script, LIMIT)?;
    let mut consoles = String::new();
    for name in results.names()? {
        let text = String::from_utf8_lossy(&results.read(&name)?).into_owned();
        consoles.push_str(&format!("=== {name}\n{text}\n"));
    }
    let said = done.out();
    let right: BTreeSet<&str> = said
        .lines()
        .filter_map(|line| line.trim_end().strip_prefix("ok ")?.strip_prefix(front))
        .map(str::trim_start)
        .collect();
    let missing: Vec<_> = needed
        .iter()
        .filter(|name| !right.contains(**name))
        .collect();
    ensure!(
        done.code == Some(0) && missing.is_empty(),
        "missing: {missing:?}\n{said}\n{}\n{consoles}",
        done.describe()
    );
    Ok(())
}

fn guests(transport: &str) -> Result<()> {
    lab(&["tests/linux/lab.sh", transport], transport, &NEEDED)
}

#[test]
fn guests_over_pci_do_all_that_a_machine_is_for() -> Result<()> {
    guests("pci")
}

#[test]
fn guests_over_mmio_do_all_that_a_machine_is_for() -> Result<()> {
    guests("mmio")
}

#[test]
fn image_for_clouds_boots_by_its_name() -> Result<()> {
    lab(&["tests/linux/cloud.sh"], "", &NEEDED_OF_IMAGE)
}
