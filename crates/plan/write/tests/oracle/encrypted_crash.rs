//! Power cuts while an encrypted image is written: the password opens it, each sector deciphers to what it held before a
//! write or after it, snapshots are as they were, and there are leaks at worst.

use crate::encrypted::{Image, SECRET, check_with_key, content, make, opened};
use crate::run_of;
use instar_storage::{CrashStorage, MemStorage, crash};
use instar_tests::judge::{load, ok, save};
use instar_tests::kinds::{NAME, SIZE};
use instar_tests::rng::Rng;
use std::path::Path;

/// Random subsets of each interval between flushes.
const SAMPLES: usize = 4;
/// Most states of a case that are looked at, and one of how many of them by the judge.
const MOST: usize = 120;
const JUDGED: usize = 12;
/// Openings of the image, each with writes of its own and durable at its end.
const OPENINGS: usize = 3;

/// Options, whether there is a backing file, and whether there is a snapshot.
const CASES: [(&str, bool, bool); 7] = [
    ("encrypt.format=aes", true, true),
    ("encrypt.format=aes,cluster_size=512", false, false),
    ("encrypt.format=aes,compat=0.10,cluster_size=4k", true, true),
    ("encrypt.format=luks", true, false),
    ("encrypt.format=luks,cluster_size=4k", true, true),
    (
        "encrypt.format=luks,cluster_size=16k,extended_l2=on",
        true,
        true,
    ),
    (
        "encrypt.format=luks,cluster_size=2k,encrypt.cipher-alg=aes-128,encrypt.cipher-mode=cbc,\
         encrypt.ivgen-alg=essiv,encrypt.ivgen-hash-alg=sha256",
        false,
        true,
    ),
];

/// What the disk held after so many steps, and whether all of that was durable then.
struct Moment {
    steps: usize,
    durable: bool,
    model: Vec<u8>,
}

/// Writes into the image, and remembers all that it held.
fn use_it(image: &Image<CrashStorage>, dir: &Path, backed: bool, rng: &mut Rng) -> Vec<Moment> {
    let mut model = content(dir, &[]);
    let at = |model: &[u8], durable| Moment {
        steps: image.disk.steps(),
        durable,
        model: model.to_vec(),
    };
    let mut moments = vec![at(&model, true)];
    for _ in 0..OPENINGS {
        image.write(dir, backed, &mut model, rng, |now| {
            moments.push(at(now, false));
        });
        moments.push(at(&model, true));
    }
    moments
}

/// Each sector holds what it held when all was durable last, or at any time since.
fn judge(now: &[u8], moments: &[Moment], durable: usize, what: &str) {
    assert_eq!(now.len() as u64, SIZE, "{what}");
    let is_kept = |moment: &Moment| moment.durable && moment.steps <= durable;
    let kept = moments.iter().rposition(is_kept).unwrap_or(0);
    for (index, sector) in now.chunks(512).enumerate() {
        let here = index * 512..index * 512 + sector.len();
        let mut held = moments[kept..]
            .iter()
            .map(|moment| &moment.model[here.clone()]);
        assert!(held.any(|held| held == sector), "{what}: sector {index}");
    }
}

fn cut((options, backed, snapshot): (&str, bool, bool), seed: u64, case: u64) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path();
    let mut rng = Rng::of(seed, case);
    make(dir, options, backed, &mut rng);
    let mut frozen = None;
    if snapshot {
        let words = ["snapshot", "-c", "one", "--object", SECRET, "--image-opts"];
        ok(dir, "qemu-img", &[&words[..], &[&opened()]].concat());
        frozen = Some(content(dir, &["-l", "one"]));
    }
    let image = Image::open(CrashStorage::new(load(&dir.join(NAME))), None);
    let moments = use_it(&image, dir, backed, &mut rng);
    let recording = image.disk.finish();
    let states: Vec<(crash::Label, MemStorage)> =
        crash::states(&recording, seed, SAMPLES).collect();
    let step = states.len().div_ceil(MOST).max(1);
    let mut count = 0;
    for (label, state) in states.iter().step_by(step).chain(states.last()) {
        let what = format!("WRITE_SEED={seed} {options}: {label}");
        // The password leads to the key in this state too.
        let now = Image::open(state.clone(), None).read(dir, backed, &mut rng);
        judge(&now, &moments, label.durable, &what);
        if count % JUDGED == 0 {
            save(state, &dir.join(NAME));
            let code = check_with_key(dir);
            assert!(matches!(code, 0 | 3), "{what}: check {code}");
            assert!(content(dir, &[]) == now, "{what}: they read other bytes");
            let kept = frozen.as_ref().map(|_| content(dir, &["-l", "one"]));
            assert!(kept == frozen, "{what}: snapshot");
        }
        count += 1;
    }
    count
}

#[test]
fn a_power_cut_leaves_an_encrypted_image_with_old_or_new_sectors() {
    let (seed, _) = run_of("power cuts of encrypted images", 1);
    let mut count = 0;
    for (number, case) in (0..).zip(CASES) {
        count += cut(case, seed, number);
    }
    println!("{count} states");
    assert!(count > 500);
}
