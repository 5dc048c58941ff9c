//! The order of versions in names, as RPM and the boot loader specification have it: runs of digits by number, runs of
//! letters by alphabet, a `~` before everything.

use core::cmp::Ordering;

/// Compares two names.
#[must_use]
pub fn compare(one: &[u8], two: &[u8]) -> Ordering {
    let (mut one, mut two) = (one, two);
    loop {
        (one, two) = (skip(one), skip(two));
        match (one.first(), two.first()) {
            (Some(b'~'), Some(b'~')) => {
                (one, two) = (rest(one, 1), rest(two, 1));
                continue;
            }
            (Some(b'~'), _) => return Ordering::Less,
            (_, Some(b'~')) => return Ordering::Greater,
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) if a.is_ascii_digit() != b.is_ascii_digit() => {
                // A number is newer than a word.
                return a.is_ascii_digit().cmp(&b.is_ascii_digit());
            }
            _ => {}
        }
        let ((a, one_rest), (b, two_rest)) = (run(one), run(two));
        let order = if a.first().is_some_and(u8::is_ascii_digit) {
            let (a, b) = (trim_zeros(a), trim_zeros(b));
            a.len().cmp(&b.len()).then_with(|| a.cmp(b))
        } else {
            a.cmp(b)
        };
        if order != Ordering::Equal {
            return order;
        }
        (one, two) = (one_rest, two_rest);
    }
}

fn rest(text: &[u8], from: usize) -> &[u8] {
    text.get(from..).unwrap_or(&[])
}

/// Without separators in front.
fn skip(text: &[u8]) -> &[u8] {
    let at = text
        .iter()
        .position(|b| b.is_ascii_alphanumeric() || *b == b'~');
    rest(text, at.unwrap_or(text.len()))
}

/// The run of digits or of letters in front, and what follows.
fn run(text: &[u8]) -> (&[u8], &[u8]) {
    let digits = text.first().is_some_and(u8::is_ascii_digit);
    let ends = |byte: &u8| {
        if digits {
            !byte.is_ascii_digit()
        } else {
            !byte.is_ascii_alphabetic()
        }
    };
    let end = text.iter().position(ends).unwrap_or(text.len());
    text.split_at(end.max(1).min(text.len()))
}

fn trim_zeros(digits: &[u8]) -> &[u8] {
    let at = digits.iter().position(|digit| *digit != b'0');
    rest(digits, at.unwrap_or(digits.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_in_the_order_of_rpm() {
        let sorted: &[&str] = &[
            "0-rescue",
            "6.1~rc1",
            "6.1",
            "6.1.1",
            "6.1.9-100.fc39",
            "6.1.10-100.fc39",
            "6.2",
        ];
        for (i, one) in sorted.iter().enumerate() {
            for (j, two) in sorted.iter().enumerate() {
                let order = compare(one.as_bytes(), two.as_bytes());
                assert_eq!(order, i.cmp(&j), "{one} and {two}");
            }
        }
    }
}
