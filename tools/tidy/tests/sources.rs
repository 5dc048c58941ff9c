//! Lengths, words, and settings that every crate has.

use anyhow::{Context, Result};
use instar_tidy::{crates, files, rust_text};

/// Most lines of a file, its test module aside.
const MAX_FILE_LINES: usize = 800;
/// From here on a file is listed, so that it can be argued about.
const LONG_FILE_LINES: usize = 500;
/// Most lines of a function.
const MAX_FUNCTION_LINES: usize = 70;
/// Most lines of a function of tests: a table of cases may be long.
const MAX_TEST_FUNCTION_LINES: usize = 120;

/// Fails with all of `problems`, one per line.
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}", problems.join("\n"));
}

#[test]
fn files_are_short_enough() -> Result<()> {
    let mut problems = Vec::new();
    for file in files::with_endings(&[".rs"])? {
        let lines = rust_text::lines_without_tests(&file.text);
        if lines > MAX_FILE_LINES {
            problems.push(format!(
                "{}: {lines} lines, over {MAX_FILE_LINES}",
                file.name
            ));
        } else if lines > LONG_FILE_LINES {
            println!("long: {} has {lines} lines", file.name);
        }
    }
    none(&problems);
    Ok(())
}

#[test]
fn functions_are_short_enough() -> Result<()> {
    let mut problems = Vec::new();
    for file in files::with_endings(&[".rs"])? {
        let tests_from = rust_text::lines_without_tests(&file.text);
        let all_tests = file.name.contains("tests/") || file.name.ends_with("tests.rs");
        for function in rust_text::functions(&file.text) {
            let most = if all_tests || function.line > tests_from {
                MAX_TEST_FUNCTION_LINES
            } else {
                MAX_FUNCTION_LINES
            };
            if function.lines > most {
                problems.push(format!(
                    "{}:{}: `{}` has {} lines, over {most}",
                    file.name, function.line, function.name, function.lines
                ));
            }
        }
    }
    none(&problems);
    Ok(())
}

#[test]
fn no_file_says_a_banned_word() -> Result<()> {
    let list = include_str!("../banned.txt");
    let banned: Vec<(&str, bool)> = list
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| match line.strip_suffix(" !#") {
            Some(word) => (word, true),
            None => (line, false),
        })
        .collect();
    let mut problems = Vec::new();
    let endings = [
        ".rs", ".md", ".toml", ".sh", ".txt", ".yml", "Makefile", "run",
    ];
    for file in files::with_endings(&endings)? {
        if file.name == "tools/tidy/banned.txt" {
            continue;
        }
        for (index, line) in file.text.lines().enumerate() {
            let lower = line.to_lowercase();
            for (word, with_number) in &banned {
                let capitals = !word.contains(|c: char| c.is_ascii_lowercase());
                let said = if capitals { line } else { &lower }.contains(word);
                if said && !(*with_number && names_an_issue(line)) {
                    problems.push(format!("{}:{}: `{word}`", file.name, index + 1));
                }
            }
        }
    }
    none(&problems);
    Ok(())
}

fn names_an_issue(line: &str) -> bool {
    let mut parts = line.split('#').skip(1);
    parts.any(|part| part.starts_with(|c: char| c.is_ascii_digit()))
}

#[test]
fn every_crate_takes_the_settings_of_the_workspace() -> Result<()> {
    let root = files::root()?;
    let mut problems = Vec::new();
    for (name, found) in crates::crates()? {
        let manifest = root.join(&found.folder).join("Cargo.toml");
        let text =
            std::fs::read_to_string(&manifest).with_context(|| manifest.display().to_string())?;
        for wanted in [
            "[lints]\nworkspace = true",
            "version.workspace = true",
            "edition.workspace = true",
            "rust-version.workspace = true",
            "license.workspace = true",
        ] {
            if !text.contains(wanted) {
                problems.push(format!(
                    "{name}: `{}` is missing",
                    wanted.replace('\n', " ")
                ));
            }
        }
    }
    none(&problems);
    Ok(())
}

#[test]
fn the_lock_file_has_one_version_of_shared_types() -> Result<()> {
    let lock = std::fs::read_to_string(files::root()?.join("Cargo.lock"))?;
    for name in ["vm-memory", "vmm-sys-util", "virtio-queue", "zerocopy"] {
        let wanted = format!("name = \"{name}\"");
        let count = lock.lines().filter(|line| *line == wanted).count();
        assert!(count <= 1, "{name} stands {count} times in Cargo.lock");
    }
    Ok(())
}

#[test]
fn the_linker_puts_operations_where_the_layout_says() {
    assert_eq!(
        instar_guest_build::flags::IMAGE_BASE,
        instar_shared::layout::IMAGE.start
    );
}
