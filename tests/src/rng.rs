//! A small seeded generator, so that a failing run can be repeated.

/// How often something is done: the number in the environment variable, or `default`.
pub fn count(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable).ok();
    text.and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// SplitMix64: every seed gives a full-period sequence.
#[derive(Debug, Clone)]
pub struct Rng {
    state: u64,
    seed: u64,
}

impl Rng {
    /// A generator for one test: the seed of `INSTAR_SEED`, or a fixed one,
    /// mixed with the name of the test so that tests differ from each other.
    pub fn for_test(name: &str) -> Self {
        let seed = std::env::var("INSTAR_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(20_261_121);
        println!("INSTAR_SEED={seed} ({name})");
        let mut state: u64 = seed;
        for byte in name.bytes() {
            state = state.wrapping_mul(31).wrapping_add(u64::from(byte));
        }
        Self { state, seed }
    }

    /// The generator of one case of a run with `seed`.
    pub fn of(seed: u64, case: u64) -> Self {
        let state = seed.wrapping_add(case.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let mut rng = Self { state, seed };
        // Neighbouring cases begin far from each other.
        rng.state = rng.next_u64();
        rng
    }

    /// The seed that repeats this run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`; 0 when `limit` is 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64().checked_rem(limit).unwrap_or(0)
    }

    /// One element of a list that is not empty.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let index = usize::try_from(self.below(items.len() as u64)).unwrap_or(0);
        &items[index]
    }
}
