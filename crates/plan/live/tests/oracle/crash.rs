//! Power cuts: what was flushed is there, each sector holds what it held at some time since, and there are leaks at worst.

use crate::image::sound;
use crate::random::one;
use crate::run_of;
use crate::user::User;
use instar_codec::Decoder;
use instar_layers::{Chain, Layer, View};
use instar_qcow2::{Header, OpenMode};
use instar_storage::{CrashStorage, MemStorage, crash};
use instar_tests::judge::{check, content, frozen, load, save};
use instar_tests::kinds::{CUT, Kind, NAME, SIZE, make};
use instar_tests::rng::Rng;
use std::path::Path;

/// Random subsets of each interval between flushes.
const SAMPLES: usize = 6;
/// Most states of a case that are looked at, and one of how many of them by the judge.
const MOST: usize = 400;
const JUDGED: usize = 40;

/// What the disk held when so many steps were done, and whether all of that was durable then.
struct Moment {
    steps: usize,
    flushed: bool,
    model: Vec<u8>,
}

/// Uses the image, and remembers.
fn use_it(dir: &Path, store: &CrashStorage, what: &[&str], rng: &mut Rng) -> Vec<Moment> {
    let model = content(dir, NAME);
    let mut user = User::new(dir, (store, None), model.clone(), what);
    let mut moments = vec![Moment {
        steps: 0,
        flushed: true,
        model,
    }];
    for _ in 0..24 {
        let flushed = one(rng, &mut user);
        moments.push(Moment {
            steps: store.steps(),
            flushed,
            model: user.model.clone(),
        });
    }
    let model = user.close();
    moments.push(Moment {
        steps: store.steps(),
        flushed: true,
        model,
    });
    moments
}

/// What our own reader finds in the image.
fn read(dir: &Path, image: &MemStorage) -> Vec<u8> {
    let header = Header::read(image, OpenMode::Change).unwrap();
    let mut layers = vec![Layer::qcow2(
        image.clone(),
        None,
        header.clone(),
        View::Active,
    )];
    if header.backing_file.is_some() {
        layers.push(Layer::raw(load(&dir.join("base.raw"))));
    }
    let mut bytes = vec![0xee; SIZE as usize];
    let chain = Chain::new(layers);
    chain.read_at(0, &mut bytes, &mut Decoder::new()).unwrap();
    bytes
}

/// Each sector holds what it held at the last flush that was durable, or at any time since.
fn judge(now: &[u8], moments: &[Moment], durable: usize, label: &dyn std::fmt::Display) {
    let kept = moments
        .iter()
        .rposition(|moment| moment.flushed && moment.steps <= durable)
        .unwrap_or(0);
    for (index, sector) in now.chunks(512).enumerate() {
        let at = index * 512;
        // A write tears between sectors, so that a discard or a write of many may be there in part.
        let fits = moments[kept..]
            .iter()
            .any(|moment| moment.model[at..at + 512] == *sector);
        assert!(fits, "{label}: sector {index}, kept since moment {kept}");
    }
}

fn cut((options, what): &Kind, seed: u64) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    make(dir, options, what);
    let old = what.contains(&"snapshot").then(|| frozen(dir, NAME));
    let store = CrashStorage::new(load(&dir.join(NAME)));
    let moments = use_it(dir, &store, what, &mut Rng::of(seed, 1));
    let recording = store.finish();
    let states: Vec<(crash::Label, MemStorage)> =
        crash::states(&recording, seed, SAMPLES).collect();
    let step = states.len().div_ceil(MOST).max(1);
    let mut count = 0;
    for (label, image) in states.iter().step_by(step).chain(states.last()) {
        let what = format!("{options} {what:?} seed {seed}: {label}");
        sound(image).unwrap_or_else(|found| panic!("{what}: {found}"));
        judge(&read(dir, image), &moments, label.durable, &what);
        if count % JUDGED == 0 {
            save(image, &dir.join("cut.qcow2"));
            let code = check(dir, "cut.qcow2");
            assert!(code == 0 || code == 3, "{what}: check {code}");
            let kept = old.as_ref().map(|_| frozen(dir, "cut.qcow2"));
            assert!(kept == old, "{what}: snapshot");
            let theirs = content(dir, "cut.qcow2");
            assert!(theirs == read(dir, image), "{what}: they read other bytes");
        }
        count += 1;
    }
    count
}

#[test]
fn a_power_cut_leaves_what_was_flushed_and_leaks_at_worst() {
    let (seed, cases) = run_of("power cuts", 2);
    let mut count = 0;
    for number in 0..cases {
        for case in CUT {
            count += cut(case, seed.wrapping_add(number));
        }
    }
    println!("{count} states");
    assert!(count > 500);
}
