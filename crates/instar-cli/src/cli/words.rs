//! Words of the command line that mean what no option parser makes of them.
//!
//! * `check --repair` may stand alone and then means `leaks`; a following `leaks` or `all`
//!   is its value if a file name is left.
//! * `resize FILE -5M` takes 5 MiB from the size: `-5` is no option there.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Begins a word that looks like an option and is none; no argument can hold this byte.
const MARK: u8 = 0;

/// Puts a value to each bare `--repair` after `check`: `--repair=VALUE`.
///
/// Returns the words, and how many values were words of their own. The one
/// numbered `left`, counted from 0, stays a word.
#[must_use]
pub fn with_repair_values(words: &[OsString], left: Option<usize>) -> (Vec<OsString>, usize) {
    let mut out = Vec::with_capacity(words.len());
    let mut taken = 0;
    let start = after_command(words, "check");
    let mut rest = words.iter().enumerate().peekable();
    while let Some((index, word)) = rest.next() {
        if index < start {
            out.push(word.clone());
        } else if word == "--" {
            out.push(word.clone());
            out.extend(rest.map(|(_, word)| word.clone()));
            return (out, taken);
        } else if let Some(others) = bare_repair(word) {
            out.extend(others);
            let value = rest.next_if(|(_, next)| {
                let is_value = *next == "leaks" || *next == "all";
                let position = taken;
                taken += usize::from(is_value);
                is_value && left != Some(position)
            });
            let mut option = OsString::from("--repair=");
            option.push(value.map_or(OsStr::new("leaks"), |(_, value)| value));
            out.push(option);
        } else {
            out.push(word.clone());
        }
    }
    (out, taken)
}

/// The word after a bare `--repair` that is no repair, if there is one.
#[must_use]
pub fn wrong_repair(words: &[OsString]) -> Option<&OsStr> {
    let start = after_command(words, "check");
    let end = words.iter().position(|word| word == "--");
    let words = words.get(start..end.unwrap_or(words.len()))?;
    words.windows(2).find_map(|pair| match pair {
        [option, value] if bare_repair(option).is_some() => {
            let known = value == "leaks" || value == "all" || value.as_bytes().starts_with(b"-");
            (!known).then_some(value.as_os_str())
        }
        _ => None,
    })
}

/// Whether `word` is `--repair` or `-r` without a value; then the short options before it.
fn bare_repair(word: &OsStr) -> Option<Option<OsString>> {
    let text = word.to_str()?;
    if let Some(long) = text.strip_prefix("--") {
        return (!long.is_empty() && "repair".starts_with(long)).then_some(None);
    }
    let others = text.strip_prefix('-')?.strip_suffix('r')?;
    if others.is_empty() {
        return Some(None);
    }
    let flags = others.chars().all(|flag| matches!(flag, 'q' | 'U'));
    flags.then(|| Some(format!("-{others}").into()))
}

/// Marks each word such as `-5M` after `resize`.
#[must_use]
pub fn with_marked_sizes(words: &[OsString]) -> Vec<OsString> {
    let start = after_command(words, "resize");
    let end = words.iter().position(|word| word == "--");
    let end = end.unwrap_or(words.len());
    let marked = words.iter().enumerate().map(|(index, word)| {
        let like_size = matches!(word.as_bytes(), [b'-', digit, ..] if digit.is_ascii_digit());
        if (start..end).contains(&index) && like_size {
            OsString::from_vec([&[MARK], word.as_bytes()].concat())
        } else {
            word.clone()
        }
    });
    marked.collect()
}

/// The word behind the mark, if there is one.
#[must_use]
pub fn unmarked(word: &OsStr) -> Option<&OsStr> {
    word.as_bytes().strip_prefix(&[MARK]).map(OsStr::from_bytes)
}

/// Takes marks out of a sentence.
#[must_use]
pub fn without_marks(sentence: &str) -> String {
    sentence.replace(char::from(MARK), "")
}

/// Index of the first word after `command`; past the end if it is not there.
fn after_command(words: &[OsString], command: &str) -> usize {
    let position = words.iter().skip(1).position(|word| word == command);
    position.map_or(words.len(), |position| position + 2)
}

/// Whether the list of events that can be traced is asked for, before any command.
pub fn asks_for_trace_events(words: &[OsString]) -> bool {
    let mut words = words.iter().skip(1).map(|word| word.as_bytes());
    while let Some(word) = words.next() {
        let value = match word {
            b"-T" | b"--trace" => words.next().unwrap_or_default(),
            _ => match (word.strip_prefix(b"--trace="), word.strip_prefix(b"-T")) {
                (Some(value), _) | (None, Some(value)) => value,
                (None, None) if word.starts_with(b"-") => continue,
                (None, None) => return false,
            },
        };
        if matches!(value, b"help" | b"?") {
            return true;
        }
    }
    false
}
