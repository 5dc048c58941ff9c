//! Random requests to images of every kind.

use crate::run_of;
use crate::user::User;
use instar_tests::kinds::{KINDS, Kind, Made, range};
use instar_tests::rng::Rng;

/// One request, or the end of a write; whether it was a flush.
pub fn one<S: crate::image::Store>(rng: &mut Rng, user: &mut User<'_, S>) -> bool {
    let (at, len) = range(rng);
    let what = rng.below(8);
    match what {
        0..=3 => {
            let bytes = vec![rng.below(255) as u8 + 1; len as usize];
            if let Some(open) = user.begin(at, &bytes) {
                user.open.push(open);
            }
        }
        4 => user.zeros(rng, at, len),
        5 => user.flush(),
        _ if !user.open.is_empty() => {
            let index = rng.below(user.open.len() as u64) as usize;
            let open = user.open.swap_remove(index);
            let link = rng.below(4) > 0;
            user.end(&open, link);
        }
        _ => {}
    }
    what == 5
}

fn case(kind: &Kind, rng: &mut Rng, requests: u64) {
    let made = Made::new(kind);
    let mut model = made.content();
    for _ in 0..2 {
        let files = (&made.image, made.data.as_ref());
        let mut user = User::new(made.dir(), files, model, kind.1);
        for _ in 0..requests {
            one(rng, &mut user);
            if rng.below(4) == 0 {
                user.compare(kind);
            }
        }
        user.compare(kind);
        model = user.close();
        made.judge(&model);
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
