//! Random damage.

use crate::judge::{Told, check, contents, exit_code, ours, qemu_repair};
use crate::{Rng, base, damage, number};
use base::Base;
use instar_plan_repair::Mode;
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// How the two programs did, over all cases.
#[derive(Default)]
struct Score {
    counts: BTreeMap<&'static str, u32>,
}

impl Score {
    fn add(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }
}

/// A damaged image, and what can be read of it.
pub struct Case<'a> {
    base: &'a Base,
    bytes: &'a [u8],
    contents: Vec<Option<Vec<u8>>>,
    dir: &'a Path,
}

fn show(lines: &[String]) -> String {
    let lines = lines.iter().take(16);
    lines.map(|line| format!("    {line}\n")).collect()
}

/// Keeps a damaged image in the folder `REPAIR_KEEP`, if that is set.
fn keep(name: &str, bytes: &[u8]) {
    if let Some(folder) = std::env::var_os("REPAIR_KEEP") {
        fs::write(Path::new(&folder).join(name), bytes).unwrap();
    }
}

impl<'a> Case<'a> {
    /// `None` if qemu-img refuses to open the image.
    pub fn new(base: &'a Base, bytes: &'a [u8], dir: &'a Path) -> Option<Self> {
        let path = dir.join("damaged.qcow2");
        fs::write(&path, bytes).unwrap();
        if check(base, &path).2.contains("qemu-img: Could not open") {
            return None;
        }
        Some(Self {
            base,
            bytes,
            contents: contents(base, &path, dir),
            dir,
        })
    }

    /// Repairs a copy and has the result judged: gives the exit code of what is
    /// left, what was told and the bytes, or what is wrong.
    pub fn repair(&self, mode: Mode) -> Result<(i32, Told, Vec<u8>), String> {
        let mine = self.dir.join("mine.qcow2");
        fs::write(&mine, self.bytes).unwrap();
        let told = ours(&mine, mode, u64::MAX).map_err(|e| format!("refused: {e}"))?;
        let lines = show(&told.lines);
        let (code, totals, stderr) = check(self.base, &mine);
        let stderr = stderr.lines().take(12).collect::<Vec<_>>().join("\n");
        match &told.result {
            Ok(repaired) => {
                let promised = exit_code(&repaired.summary);
                let sums = (repaired.summary.corruptions, repaired.summary.leaks);
                if promised != code || Some(sums) != totals {
                    return Err(format!(
                        "promised {promised} {sums:?}, qemu-img check: {code} {totals:?}\n\
                         {lines}\n  qemu-img:\n{stderr}"
                    ));
                }
            }
            Err(e) if code != 1 => {
                return Err(format!("failed: {e}, qemu-img check: {code}\n{lines}"));
            }
            Err(_) => {}
        }
        let after = contents(self.base, &mine, self.dir);
        for (number, (old, new)) in self.contents.iter().zip(after).enumerate() {
            if old.is_some() && *old != new {
                let read = new.is_some();
                return Err(format!("content {number} differs (read: {read})\n{lines}"));
            }
        }
        let once = fs::read(&mine).unwrap();
        let again = ours(&mine, mode, u64::MAX).expect("opens again");
        if fs::read(&mine).unwrap() != once {
            let again = show(&again.lines);
            return Err(format!(
                "a second repair changes something\n{lines}\n  again:\n{again}"
            ));
        }
        fs::write(&mine, self.bytes).unwrap();
        ours(&mine, mode, 0).expect("opens");
        if code == 0 && check(self.base, &mine).0 != 0 {
            return Err(format!("not repaired where memory is short\n{lines}"));
        }
        Ok((code, told, once))
    }

    /// Has qemu-img repair the image as well, and compares.
    fn compare(&self, mode: Mode, score: &mut Score) -> Result<(), String> {
        let (code, told, bytes) = self.repair(mode)?;
        let path = self.dir.join("theirs.qcow2");
        fs::write(&path, self.bytes).unwrap();
        let (their_code, their_fixed, their_lines) = qemu_repair(self.base, &path, mode);
        let left = check(self.base, &path).0;
        let fixed = told
            .result
            .map_or((0, 0), |r| (r.corruptions_fixed, r.leaks_fixed));
        score.add(match (code == their_code, fixed == their_fixed) {
            (true, true) => "same exit code and numbers",
            (true, false) => "same exit code",
            (false, _) => "other exit code",
        });
        if their_lines == told.lines {
            score.add("same lines");
        }
        score.add(match (code, left) {
            (a, b) if a == b => "same left",
            (0, _) => "all repaired, not by qemu-img",
            (_, 0) => "all repaired by qemu-img, not by us",
            _ => "something left by both",
        });
        // What qemu-img declares sound and we do not: a table that overlaps with something
        // else, and snapshots that are not found, which it deletes where there are bitmaps.
        let reasons = [
            "overlaps with something else",
            "ERROR snapshot table offset invalid",
        ];
        let given = |line: &String| reasons.iter().any(|reason| line.contains(reason));
        let refused = told.lines.iter().any(given);
        if left == 0 && code != 0 && mode == Mode::All && !refused {
            return Err(format!(
                "qemu-img repairs it\n{}\n  qemu-img:\n{}",
                show(&told.lines),
                show(&their_lines)
            ));
        }
        let (ours, theirs) = (bytes.len() as u64, fs::metadata(&path).unwrap().len());
        let longer = ours > theirs.saturating_add(theirs / 50);
        score.add(if longer { "longer" } else { "not longer" });
        let less = left == 0 && code != 0;
        if (longer || less) && std::env::var_os("REPAIR_SHOW").is_some() {
            println!(
                "{} {mode:?}: {ours} bytes, {code} left, qemu-img {theirs} and {left}\n{}",
                self.base.name,
                show(&told.lines)
            );
            keep(
                &format!("shown{ours}-{theirs}-{code}-{left}.qcow2"),
                self.bytes,
            );
        }
        Ok(())
    }
}

#[test]
fn damaged_images_are_repaired() {
    let seed = number("REPAIR_SEED").unwrap_or(20_261_121);
    let cases = number("REPAIR_CASES").unwrap_or(60);
    println!("REPAIR_SEED={seed} REPAIR_CASES={cases}");
    let dir = tempfile::tempdir().unwrap();
    let bases = base::all(dir.path());
    let mut failures = Vec::new();
    let mut score = Score::default();
    for case in 0..cases {
        let mut rng = Rng(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        let base = &bases[rng.below(bases.len() as u64) as usize];
        let (bytes, what) = damage::damage(base, &mut rng);
        let Some(damaged) = Case::new(base, &bytes, dir.path()) else {
            score.add("refused when opened");
            continue;
        };
        for mode in [Mode::All, Mode::Leaks] {
            if let Err(wrong) = damaged.compare(mode, &mut score) {
                keep(&format!("case{case}.qcow2"), &bytes);
                failures.push(format!(
                    "case {case} {} {mode:?}: {what}\n{wrong}",
                    base.name
                ));
                break;
            }
        }
    }
    println!(
        "REPAIR_SEED={seed}: {cases} cases, {} failed, {:#?}",
        failures.len(),
        score.counts
    );
    assert!(
        failures.is_empty(),
        "REPAIR_SEED={seed}\n{}",
        failures[..failures.len().min(10)].join("\n\n")
    );
}
