//! Links and paths in Markdown files lead somewhere.

use std::path::Path;

use anyhow::Result;
use instar_tidy::files;

#[test]
fn relative_links_lead_to_files() -> Result<()> {
    let root = files::root()?;
    let mut problems = Vec::new();
    for file in files::with_endings(&[".md"])? {
        let folder = root.join(&file.name);
        let folder = folder.parent().unwrap_or(&root);
        for link in links(&file.text) {
            let path = link.split('#').next().unwrap_or_default();
            if !link.contains("://") && !path.is_empty() && !folder.join(path).exists() {
                problems.push(format!("{}: dead link {link}", file.name));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    Ok(())
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<&str> {
    let parts = text.split("](").skip(1);
    parts.filter_map(|part| part.split(')').next()).collect()
}

#[test]
fn named_paths_exist() -> Result<()> {
    let root = files::root()?;
    let mut problems = Vec::new();
    for file in files::with_endings(&[".md"])? {
        for word in code_words(&file.text) {
            if names_a_path(&root, word) && !root.join(word).exists() {
                problems.push(format!("{}: there is no `{word}`", file.name));
            }
        }
    }
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    Ok(())
}

/// Words between single backticks.
fn code_words(text: &str) -> Vec<&str> {
    let lines = text.lines().filter(|line| !line.starts_with("```"));
    lines
        .flat_map(|line| line.split('`').skip(1).step_by(2))
        .filter(|word| !word.contains(char::is_whitespace))
        .collect()
}

/// Whether a word is a path in the workspace: it has a `/`, no pattern, and
/// its first part is a file or folder at the top.
fn names_a_path(root: &Path, word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let Some((first, _)) = word.split_once('/') else {
        return false;
    };
    word.chars().all(plain)
        && !first.is_empty()
        && !first.starts_with("target")
        && root.join(first).exists()
}

#[test]
fn readers_of_markdown_find_links_and_words() {
    assert_eq!(links("a [b](c.md) and [d](e#f)"), ["c.md", "e#f"]);
    assert_eq!(code_words("a `b/c` and `d e`, `f`"), ["b/c", "f"]);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(names_a_path(root, "src/lib.rs"));
    assert!(!names_a_path(root, "src/*.rs"));
    assert!(!names_a_path(root, "/dev/kvm"));
}
