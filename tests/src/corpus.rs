//! The data that compression is measured with: a recipe, not a file.
//!
//! One third each of what disk images hold:
//! * *text*: lines of a log, records of JSON and prose, from a list of words of which few are frequent;
//! * *binaries*: a program, repeated with other bytes exchanged if it is too short, so that no copy finds the one before;
//! * *free space*: mostly zeros, between them remains of the other two and of deleted files that do not compress.
//!
//! The parts alternate in stretches of 256 KiB. Everything but the program follows from fixed seeds.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Bytes of one kind before the next kind follows.
const STRETCH: usize = 256 << 10;
/// Sounds that words are made of.
const SYLLABLES: &[&str] = &[
    "ka", "to", "re", "mi", "lun", "sa", "ver", "dis", "po", "en", "tra", "qui", "ous", "al",
    "ing", "er", "con", "st", "o", "ble", "ph", "un", "ax", "ty", "ment",
];
/// Different words.
const WORDS: usize = 4000;

/// A corpus of `len` bytes around the program at `binary`, which must be at least 64 KiB.
///
/// # Errors
/// The program cannot be read or is too short.
pub fn corpus(len: usize, binary: &Path) -> Result<Vec<u8>> {
    let program = std::fs::read(binary).with_context(|| binary.display().to_string())?;
    ensure!(program.len() >= 64 << 10, "{}: too short", binary.display());
    let third = len.div_ceil(3 * STRETCH) * STRETCH;
    let text = text(third);
    let binaries = binaries(third, &program);
    let free = free_space(third, &text, &binaries);
    let mut all = Vec::with_capacity(third * 3);
    let parts = text.chunks(STRETCH).zip(binaries.chunks(STRETCH));
    for ((text, binary), free) in parts.zip(free.chunks(STRETCH)) {
        all.extend_from_slice(text);
        all.extend_from_slice(binary);
        all.extend_from_slice(free);
    }
    all.truncate(len);
    Ok(all)
}

/// A linear congruential generator: what it gives never changes.
struct Fixed(u64);

impl Fixed {
    /// A number below `limit`, which is less than 2^31.
    fn below(&mut self, limit: usize) -> usize {
        let next = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = next.wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap_or(0) % limit
    }

    /// A number below `limit` of which small ones are frequent.
    fn skewed(&mut self, limit: usize) -> usize {
        let most = self.below(limit) + 1;
        let less = self.below(most) + 1;
        self.below(less)
    }
}

/// `len` bytes of lines and records.
fn text(len: usize) -> Vec<u8> {
    let mut random = Fixed(1);
    let words: Vec<String> = (0..WORDS)
        .map(|_| {
            let count = 1 + random.below(4);
            (0..count)
                .map(|_| SYLLABLES[random.below(SYLLABLES.len())])
                .collect()
        })
        .collect();
    let mut out = Vec::with_capacity(len + 512);
    let mut time = 1_700_000_000_usize;
    while out.len() < len {
        // A few hundred lines of one sort at a time.
        let sort = random.below(3);
        for _ in 0..200 + random.below(400) {
            time += random.below(90);
            let line = line(sort, time, &words, &mut random);
            out.extend_from_slice(line.as_bytes());
        }
    }
    out.truncate(len);
    out
}

fn line(sort: usize, time: usize, words: &[String], random: &mut Fixed) -> String {
    let phrase = |random: &mut Fixed, count: usize| -> String {
        let all = (0..count).map(|_| words[random.skewed(words.len())].as_str());
        all.collect::<Vec<_>>().join(" ")
    };
    let (name, number) = (phrase(random, 1), random.below(100_000));
    match sort {
        0 => {
            let said = phrase(random, 8);
            format!(
                "{time}.{number:05} host-{} {name}[{}]: {said}\n",
                number % 7,
                number % 4096
            )
        }
        1 => {
            let said = phrase(random, 3);
            format!(
                "  {{ \"id\": {number}, \"name\": \"{name}\", \"time\": {time}, \"note\": \"{said}\" }},\n"
            )
        }
        _ => format!("{}.\n", phrase(random, 12)),
    }
}

/// `len` bytes of a program; each further copy has every byte exchanged for another.
fn binaries(len: usize, program: &[u8]) -> Vec<u8> {
    let copies = (0_u8..=255).flat_map(|copy| program.iter().map(move |byte| byte ^ copy));
    copies.cycle().take(len).collect()
}

/// `len` bytes of mostly zeros.
fn free_space(len: usize, text: &[u8], binaries: &[u8]) -> Vec<u8> {
    let mut random = Fixed(2);
    let mut out = vec![0; len];
    let mut at = 0;
    while at < len {
        at += random.below(48 << 10);
        let end = len.min(at + 512 * (1 + random.below(32)));
        let kind = random.below(3);
        for place in at..end {
            out[place] = match kind {
                0 => text[place],
                1 => binaries[place],
                _ => u8::try_from(random.below(256)).unwrap_or(0),
            };
        }
        at = end.max(at);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn corpus_is_the_same_each_time_and_as_long_as_asked() {
        let this = std::env::current_exe().unwrap();
        let once = corpus(1_000_000, &this).unwrap();
        assert_eq!(once.len(), 1_000_000);
        assert!(once == corpus(1_000_000, &this).unwrap());
        let zeros = once.iter().filter(|byte| **byte == 0).count();
        assert!((150_000..600_000).contains(&zeros), "{zeros}");
    }
}
