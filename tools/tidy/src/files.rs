//! The files of the workspace.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// Folders of the workspace that hold no sources of ours.
const LEFT_OUT: &[&str] = &[".git", "dist", "corpus", "artifacts"];

/// A file of the workspace.
#[derive(Debug)]
pub struct SourceFile {
    /// Path relative to the workspace, with `/`.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// The folder of the workspace.
pub fn root() -> Result<PathBuf> {
    let here = std::env::var_os("CARGO_MANIFEST_DIR").context("this is not run by cargo")?;
    Ok(instar_guest_build::workspace_root(Path::new(&here))?)
}

/// All text files whose name ends in one of `endings`, in order of their names.
pub fn with_endings(endings: &[&str]) -> Result<Vec<SourceFile>> {
    let root = root()?;
    let mut found = Vec::new();
    walk(&root, &root, endings, &mut found)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn walk(root: &Path, folder: &Path, endings: &[&str], found: &mut Vec<SourceFile>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let (path, file_name) = (entry.path(), entry.file_name());
        let file_name = file_name.to_string_lossy();
        let kind = entry.file_type()?;
        if kind.is_dir() {
            if !LEFT_OUT.contains(&file_name.as_ref()) && !file_name.starts_with("target") {
                walk(root, &path, endings, found)?;
            }
        } else if kind.is_file() && endings.iter().any(|end| file_name.ends_with(end)) {
            let text =
                std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            let name = path.strip_prefix(root)?.to_string_lossy().into_owned();
            found.push(SourceFile { name, text });
        }
    }
    Ok(())
}
