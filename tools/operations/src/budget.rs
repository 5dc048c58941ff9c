//! The committed budget: loadable bytes per operation.

use anyhow::{Context, Result, bail};

/// What one operation may have.
#[derive(Debug, PartialEq, Eq)]
pub struct Limit {
    /// Name of the program.
    pub program: String,
    /// Most bytes that its `PT_LOAD` segments may hold in the file.
    pub bytes: u64,
}

/// Reads a budget file: `PROGRAM BYTES` per line; `#` starts a comment line.
pub fn parse(text: &str) -> Result<Vec<Limit>> {
    let lines = text.lines().map(str::trim);
    lines
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [program, bytes] = words.as_slice() else {
                bail!("not `PROGRAM BYTES`: {line}");
            };
            let bytes = bytes.parse().with_context(|| line.to_owned())?;
            let program = (*program).to_owned();
            Ok(Limit { program, bytes })
        })
        .collect()
}

/// Compares what was measured with the budget; the sentence of the first excess.
pub fn judge(limits: &[Limit], program: &str, loadable: u64) -> Result<u64> {
    let limit = limits
        .iter()
        .find(|limit| limit.program == program)
        .with_context(|| format!("{program} has no line in the budget"))?;
    if loadable > limit.bytes {
        bail!(
            "{program} has {loadable} loadable bytes, over its budget of {}",
            limit.bytes
        );
    }
    Ok(limit.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use instar_guest_build::operations::programs;

    #[test]
    fn judge_refuses_one_byte_too_much() {
        let limits = parse("# words\n\nop-x 10\n").unwrap();
        assert_eq!(judge(&limits, "op-x", 10).unwrap(), 10);
        assert!(judge(&limits, "op-x", 11).is_err());
        assert!(judge(&limits, "op-y", 0).is_err());
        assert!(parse("op-x").is_err());
        assert!(parse("op-x ten").is_err());
    }

    #[test]
    fn the_committed_budget_names_every_operation() {
        let limits = parse(include_str!("../budget.txt")).unwrap();
        for program in programs() {
            assert!(judge(&limits, program, 0).is_ok(), "{program}");
        }
        assert_eq!(limits.len(), programs().count());
    }
}
