//! Power cuts over an image and its external data file together: neither may be ahead of the other in a way that shows.

use crate::images::{Case, Files, WITH_DATA, check};
use crate::{JUDGED, Pair, content, rebase, seed};
use instar_qcow2::{Header, OpenMode};
use instar_storage::MemStorage;
use instar_tests::joint::{Log, Recorded, cut, cuts};

/// An image and its data file, by number.
fn pair(files: &[MemStorage]) -> Pair<'_> {
    Pair {
        image: &files[0],
        data: Some(&files[1]),
    }
}

/// Another run from a state ends what the first one began.
fn again(state: &[MemStorage], files: &Files, case: &Case, old: &[u8], what: &str) {
    let again = state.to_vec();
    rebase(pair(&again), files, case, 9).unwrap_or_else(|e| panic!("{what}: {e}"));
    assert!(content(pair(&again), files) == old, "{what}: again");
    let header = Header::read(&again[0], OpenMode::Change).unwrap();
    let name = case.new.map(|_| b"new".to_vec());
    assert_eq!(header.backing_file, name, "{what}");
}

/// All power cuts of one rebase: how many.
fn one(case: &Case, seed: u64) -> usize {
    let files = Files::make(case);
    let start = [files.image.clone(), files.data.clone()];
    let old = content(pair(&start), &files);
    let log = Log::default();
    let stores = Recorded::all(start.iter().cloned(), &log);
    let recorded = Pair {
        image: &stores[0],
        data: Some(&stores[1]),
    };
    rebase(recorded, &files, case, seed).unwrap_or_else(|e| panic!("{case:?}: {e}"));
    assert!(content(recorded, &files) == old, "{case:?}");
    let steps = log.steps();
    let touched = |number: usize| steps.iter().any(|(file, _)| *file == number);
    assert!(touched(0) && touched(1), "{case:?}: both files change");
    let all = cuts(&steps, start.len(), seed);
    let step = all.len().div_ceil(JUDGED);
    for (index, (end, fate)) in all.iter().enumerate() {
        let what = format!("REBASE_SEED={seed} {case:?}: before step {end}, {fate:?}");
        let state = cut(&start, &steps, *end, *fate);
        assert!(content(pair(&state), &files) == old, "{what}");
        if index % step == 0 {
            let code = check(&state[0], &state[1]);
            assert!(matches!(code, 0 | 3), "{what}: check {code}");
            again(&state, &files, case, &old, &what);
        }
    }
    println!("{case:?}: {} states", all.len());
    all.len()
}

#[test]
fn a_power_cut_of_image_and_data_file_changes_nothing_that_is_read() {
    let seed = seed();
    let runs = WITH_DATA
        .iter()
        .flat_map(|case| [(case, seed), (case, seed + 1)]);
    let all: usize = runs.map(|(case, seed)| one(case, seed)).sum();
    assert!(all > 500, "{all} states only");
}
