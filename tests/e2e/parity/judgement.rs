//! The committed judgements, and their rows in the document.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

const TEXT: &str = include_str!("judgements.txt");

/// What an option of some commands is in instar.
#[derive(Debug, Clone)]
pub struct Judgement {
    commands: Vec<String>,
    /// How it is typed.
    pub spellings: Vec<String>,
    verdict: String,
    reason: String,
    /// The tests that show it.
    pub tests: Vec<String>,
}

impl Judgement {
    fn parse(line: &str) -> Result<Self> {
        let mut fields = line.split(" | ").map(str::trim);
        let mut next = || {
            fields
                .next()
                .with_context(|| format!("too few fields: {line}"))
        };
        let words = |text: &str| -> Vec<String> {
            let parts = text.split([' ', ',']).filter(|word| !word.is_empty());
            parts.map(str::to_owned).collect()
        };
        let (commands, spellings) = (words(next()?), words(next()?));
        let said = next()?;
        let (verdict, reason) = said.split_once(": ").unwrap_or((said, ""));
        let tests = words(next()?);
        ensure!(fields.next().is_none(), "too many fields: {line}");
        let known = ["same", "more", "different"].contains(&verdict);
        ensure!(known, "neither same nor more nor different: {line}");
        ensure!(
            reason.is_empty() == (verdict == "same"),
            "a reason is for what is not the same: {line}"
        );
        ensure!(!tests.is_empty(), "no test: {line}");
        Ok(Self {
            commands,
            spellings,
            verdict: verdict.to_owned(),
            reason: reason.to_owned(),
            tests,
        })
    }

    /// Whether it is about an option of this command.
    pub fn is_of(&self, command: &str) -> bool {
        let all = command != super::PROGRAM && self.commands == ["all"];
        all || self.commands.iter().any(|name| name == command)
    }

    /// Its line in the document; `oracle` is what the command has there, `help_only` what stands in the help alone.
    pub fn row(&self, oracle: &BTreeSet<String>, help_only: Option<&BTreeSet<String>>) -> String {
        let spelled = self.spellings.iter().map(|name| {
            match help_only.is_some_and(|names| names.contains(name)) {
                true => format!("*`{name}`*"),
                false => format!("`{name}`"),
            }
        });
        let alone = !self.spellings.iter().any(|name| oracle.contains(name));
        let whose = if alone { " (instar only)" } else { "" };
        let tests = self.tests.iter().map(|test| format!("`{test}`"));
        format!(
            "| {}{whose} | {} | {} | {} |\n",
            Vec::from_iter(spelled).join(", "),
            self.verdict,
            self.reason,
            Vec::from_iter(tests).join(", ")
        )
    }
}

/// All of them, in the order in which they are written.
pub fn judgements() -> Result<Vec<Judgement>> {
    let lines = TEXT
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    lines.map(Judgement::parse).collect()
}
