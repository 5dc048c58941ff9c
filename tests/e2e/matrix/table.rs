//! A table of cells in a file, which the tests compare with what they find.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::rows::ROWS;

/// A table with a line for each feature.
pub struct Table {
    /// Its file, in the folder of the documents.
    pub file: &'static str,
    /// What stands above it.
    pub preface: &'static str,
    /// Headings of the columns.
    pub columns: Vec<&'static str>,
}

impl Table {
    fn path(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docs")
            .join(self.file)
    }

    fn heading(&self) -> String {
        format!("| feature | {} |", self.columns.join(" | "))
    }

    /// The file's lines by feature.
    fn written(&self) -> Result<BTreeMap<String, String>> {
        Ok(written_rows(&std::fs::read_to_string(self.path())?))
    }

    /// Writes rows into the table, under a lock: tests run beside each other.
    fn bless(&self, rows: &BTreeMap<String, String>) -> Result<()> {
        let path = self.path();
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&path)?;
        file.lock()?;
        let mut all = written_rows(&std::fs::read_to_string(&path)?);
        all.extend(rows.clone());
        let mut text = format!(
            "{}\n{}\n|{}\n",
            self.preface,
            self.heading(),
            "---|".repeat(self.columns.len() + 1)
        );
        for row in &ROWS {
            if let Some(line) = all.get(row.feature) {
                text.push_str(line);
                text.push('\n');
            }
        }
        Ok(std::fs::write(&path, text)?)
    }

    /// The rows are those of the file; `INSTAR_BLESS=1` writes them there.
    pub fn settle(&self, rows: &BTreeMap<String, String>) -> Result<()> {
        if std::env::var_os("INSTAR_BLESS").is_some() {
            return self.bless(rows);
        }
        let written = self.written()?;
        for (feature, line) in rows {
            let old = written.get(feature).map_or("", String::as_str);
            ensure!(old == line, "the table says\n{old}\nbut it is\n{line}");
        }
        Ok(())
    }

    /// Every feature has a line, and every line a word in each column.
    pub fn is_complete(&self) -> Result<()> {
        let text = std::fs::read_to_string(self.path())?;
        ensure!(
            text.contains(&self.heading()),
            "the columns are others: run with INSTAR_BLESS=1"
        );
        let written = written_rows(&text);
        ensure!(
            written.len() == ROWS.len() + 1,
            "{} rows in the table",
            written.len()
        );
        for row in &ROWS {
            let line = written.get(row.feature).context(row.feature)?;
            let cells: Vec<&str> = line
                .trim_matches('|')
                .split('|')
                .skip(1)
                .map(str::trim)
                .collect();
            ensure!(cells.len() == self.columns.len(), "{line}");
            for cell in cells {
                let number = cell.strip_prefix("difference ").map(str::parse::<u32>);
                if !(matches!(cell, "same" | "refused") || matches!(number, Some(Ok(_)))) {
                    bail!("{}: the cell {cell:?}", row.feature);
                }
            }
        }
        Ok(())
    }
}

/// Lines of a table by feature.
fn written_rows(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| {
            let (feature, _) = line.strip_prefix("| ")?.split_once(" | ")?;
            Some((feature.to_owned(), line.to_owned()))
        })
        .collect()
}
