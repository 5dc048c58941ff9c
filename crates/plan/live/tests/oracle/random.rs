//! Random requests to images of every kind.

use crate::run_of;
use crate::user::User;
use instar_tests::judge::{check, content, frozen, load, save};
use instar_tests::kinds::{DATA_NAME, KINDS, Kind, NAME, SIZE, make};
use instar_tests::rng::Rng;
use std::path::Path;

/// Where a request goes.
pub fn range(rng: &mut Rng) -> (u64, u64) {
    let at = rng.below(SIZE / 512) * 512;
    let most = if rng.below(4) == 0 {
        100 << 10
    } else {
        9 << 10
    };
    let len = (rng.below(most) / 512 * 512 + 512).min(SIZE - at);
    (at, len)
}

fn one<S: crate::image::Store>(rng: &mut Rng, user: &mut User<'_, S>) {
    let (at, len) = range(rng);
    match rng.below(8) {
        0..=3 => {
            let bytes = vec![rng.below(255) as u8 + 1; len as usize];
            if let Some(open) = user.begin(at, &bytes) {
                user.open.push(open);
            }
        }
        4 => user.zeros(rng, at, len),
        5 => user.live.flush().unwrap(),
        _ if !user.open.is_empty() => {
            let index = rng.below(user.open.len() as u64) as usize;
            let open = user.open.swap_remove(index);
            let link = rng.below(4) > 0;
            user.end(&open, link);
        }
        _ => {}
    }
}

fn case(kind: &Kind, rng: &mut Rng, requests: u64) {
    let folder = tempfile::tempdir().unwrap();
    let dir: &Path = folder.path();
    let (options, what) = *kind;
    make(dir, options, what);
    let mut model = content(dir, NAME);
    let old = what.contains(&"snapshot").then(|| frozen(dir, NAME));
    let image = load(&dir.join(NAME));
    let data = options
        .contains("data_file")
        .then(|| load(&dir.join(DATA_NAME)));
    for _ in 0..2 {
        let mut user = User::new(dir, (&image, data.as_ref()), model, what);
        for _ in 0..requests {
            one(rng, &mut user);
            if rng.below(4) == 0 {
                user.compare(kind);
            }
        }
        user.compare(kind);
        model = user.close();
        save(&image, &dir.join(NAME));
        if let Some(data) = &data {
            save(data, &dir.join(DATA_NAME));
        }
        assert_eq!(check(dir, NAME), 0, "{kind:?}");
        let now = content(dir, NAME);
        let differs = now.iter().zip(&model).position(|(a, b)| a != b);
        assert_eq!((differs, now.len()), (None, model.len()), "{kind:?}");
        if let Some(old) = &old {
            assert!(*old == frozen(dir, NAME), "snapshot of {kind:?}");
        }
        if let (Some(data), true) = (&data, options.contains("data_file_raw")) {
            let raw = data.to_vec();
            assert!(raw[..model.len()] == model, "raw file of {kind:?}");
        }
    }
}

#[test]
fn random_requests_leave_what_was_written_in_sound_images() {
    let (seed, cases) = run_of("requests", KINDS.len() as u64 * 2);
    for number in 0..cases {
        let kind = &KINDS[number as usize % KINDS.len()];
        println!("case {number}: {kind:?}");
        case(kind, &mut Rng::of(seed, number), 40);
    }
}
