//! Bytes from images as text: C strings, and the characters of JSON.

/// The part before the first NUL: names in images are C strings to `qemu-img`.
#[must_use]
pub fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// Longest sequence that still counts as one broken character.
const MAX_SEQUENCE: usize = 6;

/// Takes the first character off `bytes`.
///
/// The encoding is UTF-8 with two deviations that `qemu-img` has: the pair
/// `C0 80` is U+0000, and a broken sequence (stray byte, cut short, overlong,
/// surrogate, noncharacter, past U+10FFFF) is one `None` for all the bytes that
/// its first byte announces as far as continuation bytes follow.
#[must_use]
pub fn take_char(bytes: &[u8]) -> Option<(Option<char>, &[u8])> {
    let (&first, rest) = bytes.split_first()?;
    let length = match first {
        0..=0x7f => return Some((Some(char::from(first)), rest)),
        0xc0..=0xdf => 2,
        0xe0..=0xef => 3,
        0xf0..=0xf7 => 4,
        0xf8..=0xfb => 5,
        0xfc..=0xfd => MAX_SEQUENCE,
        0x80..=0xbf | 0xfe | 0xff => return Some((None, rest)),
    };
    let mut code = u32::from(first) & (0x7f >> length);
    let mut rest = rest;
    for _ in 1..length {
        let Some((&byte, after)) = rest.split_first() else {
            return Some((None, rest));
        };
        if byte & 0xc0 != 0x80 {
            return Some((None, rest));
        }
        code = code << 6 | u32::from(byte & 0x3f);
        rest = after;
    }
    Some((validate(code, length), rest))
}

/// The character of a decoded sequence, if it has the right to be one.
fn validate(code: u32, length: usize) -> Option<char> {
    let shortest = match length {
        2 => 0x80,
        3 => 0x800,
        _ => 0x1_0000,
    };
    if code == 0 && length == 2 {
        return Some('\0');
    }
    let noncharacter = code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code);
    if code < shortest || length > 4 || noncharacter {
        return None;
    }
    char::from_u32(code)
}

/// Appends a name so that a terminal shows it and does not obey it: control
/// characters, direction overrides and bytes that are not UTF-8 become escapes.
pub fn push_visible(out: &mut Vec<u8>, bytes: &[u8]) {
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            if is_unsafe(character) {
                out.extend(character.escape_default().to_string().bytes());
            } else {
                out.extend(character.encode_utf8(&mut [0; 4]).bytes());
            }
        }
        for byte in chunk.invalid() {
            out.extend(format!("\\x{byte:02x}").bytes());
        }
    }
}

/// Characters that move the cursor, start an escape sequence or reorder text.
fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(character, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn visible(bytes: &[u8]) -> String {
        let mut out = Vec::new();
        push_visible(&mut out, bytes);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn push_visible_control_characters_are_escaped() {
        assert_eq!(visible(b"a\x1b[31mb\n"), "a\\u{1b}[31mb\\n");
        assert_eq!(visible("\u{9b}é\u{202e}".as_bytes()), "\\u{9b}é\\u{202e}");
        assert_eq!(visible(b"\xff\xc3"), "\\xff\\xc3");
    }

    #[test]
    fn until_nul_cuts_at_the_first() {
        assert_eq!(until_nul(b"a\0b\0"), b"a");
        assert_eq!(until_nul(b"ab"), b"ab");
        assert_eq!(until_nul(b""), b"");
    }

    proptest! {
        #[test]
        fn push_visible_any_bytes_hold_no_control(bytes: Vec<u8>) {
            prop_assert!(!visible(&bytes).chars().any(is_unsafe));
        }

        #[test]
        fn take_char_any_bytes_ends(bytes: Vec<u8>) {
            let mut rest = bytes.as_slice();
            while let Some((_, after)) = take_char(rest) {
                prop_assert!(after.len() < rest.len());
                rest = after;
            }
        }

        #[test]
        fn take_char_text_is_itself(text: String) {
            let mut rest = text.as_bytes();
            for expected in text.chars() {
                let (got, after) = take_char(rest).unwrap();
                let nonchar = u32::from(expected) & 0xfffe == 0xfffe || ('\u{fdd0}'..='\u{fdef}').contains(&expected);
                prop_assert_eq!(got, (!nonchar).then_some(expected));
                rest = after;
            }
        }
    }
}
