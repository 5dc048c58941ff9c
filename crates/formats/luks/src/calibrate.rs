//! How many iterations a password is worth.

use crate::error::KeyError;
use crate::volume::MAX_ITERATIONS;
use instar_crypt::{HashAlgorithm, pbkdf2};

/// Fewest iterations, whatever the time; QEMU's number too.
const MIN_ITERATIONS: u32 = 1000;
/// A measurement that took less is repeated with more iterations.
const MEASURED_NS: u64 = 1_000_000;
/// Measurements, of which the fastest counts: another program may have had the CPU during the others, even most of
/// them, but not for so short a time.
const MEASUREMENTS: usize = 40;
/// Most bytes of a derived key.
const MAX_KEY_BYTES: usize = 64;

/// A clock that does not go back.
pub trait Clock {
    /// Nanoseconds since any moment.
    fn now_ns(&self) -> u64;
}

impl<C: Clock + ?Sized> Clock for &C {
    fn now_ns(&self) -> u64 {
        (**self).now_ns()
    }
}

/// Iterations by which deriving a key of `key_bytes` bytes takes `time_us` microseconds on this machine, 1000 at
/// least. Takes about 50 ms to find out.
///
/// # Errors
/// [`KeyError::TooLong`]: more than are ever done; [`KeyError::TooLargeToScale`]: far more.
pub fn iterations(
    hash: HashAlgorithm,
    key_bytes: usize,
    time_us: u64,
    clock: &impl Clock,
) -> Result<u32, KeyError> {
    let mut tried: u32 = 256;
    let mut best = u128::MAX;
    let mut measured: usize = 0;
    while measured < MEASUREMENTS {
        let took = derive(hash, key_bytes, tried, clock).max(1);
        if took < MEASURED_NS && tried < MAX_ITERATIONS {
            tried = tried.saturating_mul(2);
            continue;
        }
        best = best.min(u128::from(took));
        measured = measured.saturating_add(1);
    }
    check_scale(tried, best, time_us)?;
    let wanted = u128::from(tried)
        .saturating_mul(u128::from(time_us))
        .saturating_mul(1000)
        .checked_div(best)
        .unwrap_or(u128::MAX);
    match u32::try_from(wanted) {
        Ok(wanted) if wanted <= MAX_ITERATIONS => Ok(wanted.max(MIN_ITERATIONS)),
        _ => Err(KeyError::TooLong { iterations: wanted }),
    }
}

/// QEMU: iterations in a second times milliseconds are a number of 64 bits.
fn check_scale(tried: u32, took_ns: u128, time_us: u64) -> Result<(), KeyError> {
    let scaled = u128::from(tried).saturating_mul(1_000_000_000);
    let per_second = scaled.checked_div(took_ns).unwrap_or(u128::MAX);
    if per_second.saturating_mul(u128::from(time_us / 1000)) > u128::from(u64::MAX) {
        return Err(KeyError::TooLargeToScale { per_second });
    }
    Ok(())
}

/// Nanoseconds that a derivation takes.
fn derive(hash: HashAlgorithm, key_bytes: usize, iterations: u32, clock: &impl Clock) -> u64 {
    let mut out = [0; MAX_KEY_BYTES];
    let key = out.get_mut(..key_bytes).unwrap_or_default();
    let start = clock.now_ns();
    pbkdf2(hash, b"password", &[0; 32], iterations, key);
    core::hint::black_box(key);
    clock.now_ns().saturating_sub(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::cell::Cell;

    /// Each look is 30 ms after the one before.
    struct Steps(Cell<u64>);

    impl Clock for Steps {
        fn now_ns(&self) -> u64 {
            self.0.set(self.0.get() + 30_000_000);
            self.0.get()
        }
    }

    #[test]
    fn iterations_are_in_proportion_to_the_time() {
        let clock = Steps(Cell::new(0));
        let of = |us| iterations(HashAlgorithm::Sha256, 32, us, &clock);
        assert_eq!(of(300_000), Ok(2560));
        assert_eq!(of(0), Ok(1000));
        assert!(matches!(of(1 << 50), Err(KeyError::TooLong { .. })));
        let far = of(u64::MAX).map_err(|e| alloc::format!("{e}"));
        let sentence = "PBKDF iterations 8533 too large to scale: Numerical result out of range";
        assert_eq!(far, Ok(0).and(Err(sentence.into())));
    }
}
