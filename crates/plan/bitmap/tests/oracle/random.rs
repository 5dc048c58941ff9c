//! Random commands on images of every kind.

use crate::judge::{self, Act, Line};
use crate::{Rng, image, seed_and_cases};
use std::fs;

const NAMES: &[&str] = &["a", "fine", "coarse", "off", "new", "other"];
const GRANULARITIES: &[u64] = &[
    0,
    512,
    1024,
    4096,
    16_384,
    65_536,
    1 << 20,
    1 << 24,
    1 << 31,
    513,
];

fn random_line(rng: &mut Rng, base: &image::Base, sources: &[image::Base]) -> Line {
    // Most commands can be done: what is not there is added first, what is added is not there.
    let fresh = rng.below(3) == 0;
    let sensible = rng.below(5) != 0;
    let (old, new) = NAMES.split_at(4);
    let name = match (sensible, fresh) {
        (false, _) => rng.pick(NAMES),
        (true, false) => rng.pick(old),
        (true, true) => rng.pick(new),
    };
    let mut acts = Vec::new();
    for at in 0..1 + rng.below(4) {
        acts.push(match rng.below(9) {
            _ if at == 0 && sensible && fresh => Act::Add,
            0 | 1 if !sensible => Act::Remove,
            2 if !sensible => Act::Add,
            0 | 1 => Act::Clear,
            2 | 3 => Act::Enable,
            4 => Act::Disable,
            _ if sensible => Act::Merge(rng.pick(old).to_owned()),
            _ => Act::Merge(rng.pick(NAMES).to_owned()),
        });
    }
    if sensible && rng.below(8) == 0 {
        acts = vec![Act::Remove];
        acts.extend(
            [Act::Add, Act::Merge("fine".to_owned())]
                .into_iter()
                .take(rng.below(3) as usize),
        );
    }
    let mut line = Line::new(name, &acts);
    if acts.contains(&Act::Add) && rng.below(4) != 0 {
        line = line.granularity(rng.pick(GRANULARITIES));
    }
    let merges = acts.iter().any(|act| matches!(act, Act::Merge(_)));
    if merges && rng.below(2) == 0 {
        let mut source = rng.pick(sources);
        // No key, or a data file that the copies of its image have locked.
        while source.luks || (source.name == "data file" && base.name == source.name) {
            source = rng.pick(sources);
        }
        line = line.source(&source.path, "qcow2");
    }
    line
}

#[test]
fn random_commands_come_to_the_same() {
    let (seed, cases) = seed_and_cases("commands", 72);
    let dir = tempfile::tempdir().unwrap();
    let bases = image::all(dir.path());
    let (theirs, mine) = (dir.path().join("theirs"), dir.path().join("mine"));
    let (mut done, mut failed) = (0, 0);
    for case in 0..cases {
        let mut rng = Rng::of_case(seed, case);
        let base = &bases[(case % bases.len() as u64) as usize];
        fs::copy(&base.path, &theirs).unwrap();
        if rng.below(4) == 0 && base.name != "none" {
            image::set_flags(&theirs, rng.pick(&NAMES[..4]), 1, 0);
        }
        fs::copy(&theirs, &mine).unwrap();
        let equal = base.name != "odd size" && base.name != "large";
        let sources = if equal && rng.below(6) != 0 {
            &bases[..image::EQUAL]
        } else {
            &bases[..]
        };
        for step in 0..1 + rng.below(3) {
            let line = random_line(&mut rng, base, sources);
            let label = format!("BITMAP_SEED={seed} case {case} ({}) step {step}", base.name);
            let ended = judge::same(&theirs, &mine, base.luks, &line, &label);
            done += 1;
            failed += u32::from(ended.code != 0);
        }
    }
    println!("BITMAP_SEED={seed}: {done} commands, {failed} of them refused in part");
    assert!(failed * 10 < done * 7, "too few commands succeed");
}
