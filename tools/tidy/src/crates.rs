//! The crates of the workspace and what each names as its dependencies.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// What one crate names.
#[derive(Debug, Default)]
pub struct Dependencies {
    /// Path of its folder relative to the workspace.
    pub folder: String,
    /// Normal and build dependencies: they can reach a program of this project.
    pub linked: BTreeSet<String>,
    /// Dependencies of tests only.
    pub tests: BTreeSet<String>,
}

/// Every crate of the workspace by name.
pub type Crates = BTreeMap<String, Dependencies>;

/// Asks cargo.
pub fn crates() -> Result<Crates> {
    let root = crate::files::root()?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(&root)
        .output()?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let prefix = format!("{}/", root.display());
    let read = |package: &Value| -> Result<(String, Dependencies)> {
        let mut all = Dependencies::default();
        let manifest = package["manifest_path"].as_str().context("manifest")?;
        let folder = manifest.strip_prefix(&prefix).unwrap_or(manifest);
        all.folder = folder.trim_end_matches("/Cargo.toml").to_owned();
        for dependency in package["dependencies"].as_array().context("list")? {
            let name = dependency["name"].as_str().context("name")?.to_owned();
            match dependency["kind"].as_str() {
                Some("dev") => all.tests.insert(name),
                _ => all.linked.insert(name),
            };
        }
        Ok((package["name"].as_str().context("name")?.to_owned(), all))
    };
    packages.iter().map(read).collect()
}

/// Everything that `from` links, directly and through crates of the workspace.
pub fn reach(crates: &Crates, from: &str) -> BTreeSet<String> {
    let mut reached = BTreeSet::new();
    let mut left = vec![from.to_owned()];
    while let Some(name) = left.pop() {
        let Some(dependencies) = crates.get(&name) else {
            continue;
        };
        for next in &dependencies.linked {
            if reached.insert(next.clone()) {
                left.push(next.clone());
            }
        }
    }
    reached
}
