//! `qemu-img check` as the judge: images of every kind, damaged at places that
//! the specification names, checked by both. Messages, totals and outcome have
//! to be the same.
//!
//! `CHECK_SEED` and `CHECK_CASES` choose other damages and more of them.

// Test code may end in a panic, and its numbers are small.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap)]

mod base;
mod damage;
mod judge;

use base::Base;
use judge::{Verdict, ours, qemu};
use std::fs;

/// A small generator of random numbers (xorshift64*).
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `n`.
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

fn first_difference(ours: &[Vec<u8>], theirs: &[Vec<u8>]) -> String {
    let at = ours.iter().zip(theirs).take_while(|(a, b)| a == b).count();
    let show = |lines: &[Vec<u8>]| {
        lines
            .iter()
            .skip(at)
            .take(3)
            .map(|l| String::from_utf8_lossy(l).into_owned())
            .collect::<Vec<_>>()
            .join("\n    ")
    };
    format!(
        "line {at} of {} and {}:\n  ours:\n    {}\n  qemu-img:\n    {}",
        ours.len(),
        theirs.len(),
        show(ours),
        show(theirs)
    )
}

/// What is wrong with our verdict, if anything.
fn compare(theirs: &Verdict, mine: &Verdict, sorted: bool) -> Option<String> {
    let (mut a, mut b) = (mine.lines.clone(), theirs.lines.clone());
    if sorted {
        a.sort();
        b.sort();
    }
    if a != b {
        return Some(first_difference(&a, &b));
    }
    if mine.totals != theirs.totals {
        return Some(format!(
            "totals\n  ours: {:?}\n  qemu-img: {:?}",
            mine.totals, theirs.totals
        ));
    }
    None
}

#[test]
fn undamaged_images_are_judged_alike() {
    let dir = tempfile::tempdir().unwrap();
    for base in base::all(dir.path()) {
        let theirs = qemu(&base, &base.path).unwrap_or_else(|e| panic!("{}: {e}", base.name));
        let mine = ours(&base.path, u64::MAX).unwrap();
        assert_eq!(compare(&theirs, &mine, false), None, "{}", base.name);
        let totals = theirs.totals.unwrap();
        assert_eq!(
            (totals.corruptions, totals.leaks),
            (0, 0),
            "{}: {:?}",
            base.name,
            theirs.lines
        );
    }
}

#[test]
fn damaged_images_are_judged_alike() {
    let seed = number("CHECK_SEED").unwrap_or(20_261_121);
    let cases = number("CHECK_CASES").unwrap_or(600);
    println!("CHECK_SEED={seed} CHECK_CASES={cases}");
    let dir = tempfile::tempdir().unwrap();
    let bases = base::all(dir.path());
    let path = dir.path().join("damaged.qcow2");
    let (mut failures, mut opened, mut found) = (Vec::new(), 0, 0);
    for case in 0..cases {
        let mut rng = Rng(seed.wrapping_add(case.wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1);
        let base: &Base = &bases[(case % bases.len() as u64) as usize];
        let (bytes, what) = damage::damage(base, &mut rng);
        fs::write(&path, &bytes).unwrap();
        let label = format!("case {case} ({}): {what}", base.name);
        let Ok(theirs) = qemu(base, &path) else {
            continue; // refused when opened: the header reader's to judge
        };
        opened += 1;
        found += u64::from(!theirs.lines.is_empty());
        for (grant, sorted) in [(u64::MAX, false), (0, true)] {
            let wrong = match ours(&path, grant) {
                Ok(mine) => compare(&theirs, &mine, sorted),
                Err(e) => Some(format!("header refused: {e}")),
            };
            if let Some(wrong) = wrong {
                if let Some(keep) = std::env::var_os("CHECK_KEEP") {
                    fs::write(
                        std::path::Path::new(&keep).join(format!("case{case}.qcow2")),
                        &bytes,
                    )
                    .unwrap();
                }
                failures.push(format!("{label} (grant {grant}):\n{wrong}"));
                break;
            }
        }
    }
    println!(
        "CHECK_SEED={seed}: {cases} cases, {opened} opened, {found} with findings, {} differ",
        failures.len()
    );
    assert!(
        failures.is_empty(),
        "CHECK_SEED={seed}\n{}",
        failures[..failures.len().min(12)].join("\n\n")
    );
    assert!(
        opened * 10 > cases * 6 && found * 10 > opened * 6,
        "too few images were damaged and still opened"
    );
}
