//! The trust rule as a test: which crate may see which.
//!
//! `edges.txt` lists every edge between crates of the workspace; a new one
//! must be written there, and a list entry without an edge must go. What the
//! rules below forbid, no list entry allows.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use instar_tidy::crates::{Crates, crates, reach};

/// Programs and libraries that run on the host.
const HOST: &[&str] = &["instar", "instar-sandbox", "instar-vmm", "instar-devices"];
/// Crates of the virtual machine, which format code must not know.
const MACHINE: &[&str] = &["instar-vmm", "instar-devices", "instar-sandbox", "instar"];
/// Folders of code that reads untrusted images.
const READERS: &[&str] = &["crates/formats/", "crates/plan/"];
/// Folders of code that runs in guests and brings the readers along.
const GUESTS: &[&str] = &["operations/", "guest-ops"];

/// Crates in `folders`.
fn inside<'a>(crates: &'a Crates, folders: &[&str]) -> Vec<&'a str> {
    let inside = |folder: &str| folders.iter().any(|front| folder.starts_with(front));
    crates
        .iter()
        .filter(|(_, found)| inside(&found.folder))
        .map(|(name, _)| name.as_str())
        .collect()
}

#[test]
fn the_host_sees_no_code_that_reads_images() -> Result<()> {
    let crates = crates()?;
    let mut readers = inside(&crates, READERS);
    readers.extend(inside(&crates, GUESTS));
    assert!(readers.contains(&"instar-qcow2"), "{readers:?}");
    for host in HOST {
        let _ = crates.get(*host).with_context(|| (*host).to_owned())?;
        let reached = reach(&crates, host);
        for reader in &readers {
            assert!(!reached.contains(*reader), "{host} reaches {reader}");
        }
    }
    Ok(())
}

#[test]
fn code_that_reads_images_knows_no_machine() -> Result<()> {
    let crates = crates()?;
    let mut guests = inside(&crates, READERS);
    guests.extend(inside(&crates, GUESTS));
    for guest in guests {
        let reached = reach(&crates, guest);
        for machine in MACHINE
            .iter()
            .copied()
            .chain(["kvm-ioctls", "kvm-bindings", "vm-memory"])
        {
            assert!(!reached.contains(machine), "{guest} reaches {machine}");
        }
    }
    Ok(())
}

#[test]
fn the_contract_depends_on_zerocopy_only() -> Result<()> {
    let crates = crates()?;
    let shared = crates.get("instar-shared").context("instar-shared")?;
    let wanted = BTreeSet::from(["zerocopy".to_owned()]);
    assert_eq!(shared.linked, wanted);
    Ok(())
}

#[test]
fn the_device_model_knows_no_hypervisor() -> Result<()> {
    let crates = crates()?;
    let reached = reach(&crates, "instar-devices");
    for name in [
        "kvm-ioctls",
        "kvm-bindings",
        "applevisor",
        "instar-vmm",
        "libc",
    ] {
        assert!(!reached.contains(name), "instar-devices reaches {name}");
    }
    Ok(())
}

#[test]
fn every_edge_is_on_the_list() -> Result<()> {
    let crates = crates()?;
    let ours = |names: &BTreeSet<String>| -> BTreeSet<String> {
        let ours = names.iter().filter(|name| crates.contains_key(*name));
        ours.cloned().collect()
    };
    let mut found = BTreeMap::new();
    for (name, dependencies) in &crates {
        found.insert(name.clone(), ours(&dependencies.linked));
        found.insert(format!("{name} (tests)"), ours(&dependencies.tests));
    }
    found.retain(|_, edges| !edges.is_empty());
    let text = |edges: &BTreeMap<String, BTreeSet<String>>| -> String {
        let line = |(name, to): (&String, &BTreeSet<String>)| {
            let to: Vec<&str> = to.iter().map(String::as_str).collect();
            format!("{name}: {}\n", to.join(" "))
        };
        edges.iter().map(line).collect()
    };
    let listed: String = include_str!("../edges.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    let found = text(&found);
    assert!(
        found == listed,
        "tools/tidy/edges.txt and the crates differ. The crates have:\n\n{found}"
    );
    Ok(())
}
