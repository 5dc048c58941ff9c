//! Damaged images through the product's own operations, in real microVMs: each run ends with a
//! result or with a reason, never with a crash.

use anyhow::{Context, Result, ensure};
use instar_microvm_tests::{Failed, alone, image_file, mutate, run_image, seed_images};
use instar_shared::op::Outcome;
use instar_tests::rng::Rng;
use std::time::{Duration, Instant};

/// Mutations in a plain run; `INSTAR_MUTATIONS` sets another number.
const MUTATIONS: u64 = 200;

#[test]
fn sound_images_are_described_and_checked() -> Result<(), Failed> {
    alone(|| {
        for (name, bytes) in seed_images()? {
            let verdict = run_image(&image_file(&bytes)?).context(name)?;
            let expected = match name {
                // Its backing file is not opened here.
                "backing" => Outcome::Failed,
                _ => Outcome::Done,
            };
            ensure!(
                (verdict.info, verdict.check) == (Outcome::Done, expected),
                "{name}: {verdict:?}"
            );
        }
        Ok(())
    })
}

#[test]
fn damaged_images_end_in_a_result_or_a_reason() -> Result<(), Failed> {
    alone(|| {
        let seeds: Vec<_> = seed_images()?.into_iter().collect();
        let mut rng = Rng::for_test("damaged_images");
        let rounds = std::env::var("INSTAR_MUTATIONS")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(MUTATIONS);
        let (start, mut slowest, mut refused) = (Instant::now(), Duration::ZERO, 0_u64);
        for round in 0..rounds {
            let (name, sound) = rng.pick(&seeds).clone();
            let mut bytes = sound;
            mutate(&mut bytes, &mut rng);
            let before = Instant::now();
            let verdict = run_image(&image_file(&bytes)?).or_else(|e| keep(e, &bytes));
            let verdict = verdict
                .with_context(|| format!("round {round} of seed {}, from {name}", rng.seed()))?;
            slowest = slowest.max(before.elapsed());
            refused += u64::from(verdict.info == Outcome::Failed);
        }
        println!(
            "{rounds} damaged images in {:?}, the slowest {slowest:?}, {refused} refused by info",
            start.elapsed()
        );
        // Damage that nobody notices, or that nothing survives, tests little.
        ensure!(
            rounds < MUTATIONS || (rounds / 20..rounds * 19 / 20).contains(&refused),
            "{refused} of {rounds} images were refused"
        );
        Ok(())
    })
}

/// Keeps the image for a closer look.
fn keep<T>(error: anyhow::Error, bytes: &[u8]) -> Result<T> {
    let path = std::env::temp_dir().join("instar-damaged-image.qcow2");
    std::fs::write(&path, bytes)?;
    Err(error).with_context(|| format!("kept as {}", path.display()))
}
