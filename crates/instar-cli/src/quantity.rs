//! Sizes and numbers as `qemu-img` reads them from options; its rules are finer than [`crate::size`]'s.
//!
//! A size is a decimal number, whose fraction counts only with a unit, or a hexadecimal number of
//! bytes. Space and a sign may stand before it, but a minus makes it too small.

/// Why a text is no size or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuantityError {
    /// It does not read as one.
    Syntax,
    /// It is below 0 or above 2^64 - 1.
    Range,
}

/// Reads a size in bytes.
///
/// # Errors
/// It is not one.
pub fn size(text: &[u8]) -> Result<u64, QuantityError> {
    let (negative, unsigned) = signed(text);
    if let Some(digits) = hexadecimal(unsigned) {
        return if negative {
            Err(QuantityError::Syntax)
        } else {
            number_in(digits, 16)
        };
    }
    let (whole, rest) = digits(unsigned);
    let number = number_in(whole, 10);
    if rest.is_empty() {
        return match number {
            Ok(_) if negative => Err(QuantityError::Range),
            other => other,
        };
    }
    if negative || number == Err(QuantityError::Range) {
        return Err(QuantityError::Syntax);
    }
    let (fraction, suffix) = match rest.strip_prefix(b".") {
        Some(rest) => digits(rest),
        None => (&b""[..], rest),
    };
    if whole.is_empty() && fraction.is_empty() {
        return Err(QuantityError::Syntax);
    }
    let unit = unit(suffix).ok_or(QuantityError::Syntax)?;
    let extra = part_of(fraction, unit)?;
    let bytes = number.unwrap_or(0).checked_mul(unit);
    let bytes = bytes.and_then(|bytes| bytes.checked_add(extra));
    bytes.ok_or(QuantityError::Range)
}

/// Reads a number: decimal, hexadecimal with `0x` before it, octal with `0`. A minus counts down from 2^64.
///
/// # Errors
/// It is not one.
pub fn number(text: &[u8]) -> Result<u64, QuantityError> {
    let (negative, unsigned) = signed(text);
    let value = match (hexadecimal(unsigned), unsigned.strip_prefix(b"0")) {
        (Some(digits), _) => number_in(digits, 16)?,
        (None, Some(digits)) if !digits.is_empty() => number_in(digits, 8)?,
        _ => number_in(unsigned, 10)?,
    };
    Ok(if negative {
        value.wrapping_neg()
    } else {
        value
    })
}

/// Takes space and a sign off; true if it is a minus.
fn signed(text: &[u8]) -> (bool, &[u8]) {
    let is_space = |byte: &u8| matches!(byte, b' ' | 9..=13);
    let start = text.iter().position(|byte| !is_space(byte));
    match text.get(start.unwrap_or(text.len())..).unwrap_or_default() {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    }
}

/// The digits after `0x`, if there is one at least.
fn hexadecimal(text: &[u8]) -> Option<&[u8]> {
    match text {
        [b'0', b'x' | b'X', digits @ ..] if digits.first()?.is_ascii_hexdigit() => Some(digits),
        _ => None,
    }
}

/// The decimal digits at the front, and the rest.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|byte| !byte.is_ascii_digit());
    text.split_at(end.unwrap_or(text.len()))
}

/// A number of nothing but digits.
fn number_in(digits: &[u8], radix: u32) -> Result<u64, QuantityError> {
    let text = std::str::from_utf8(digits).map_err(|_| QuantityError::Syntax)?;
    if text.is_empty() || !text.chars().all(|c| c.is_digit(radix)) {
        return Err(QuantityError::Syntax);
    }
    u64::from_str_radix(text, radix).map_err(|_| QuantityError::Range)
}

/// Bytes in a unit.
fn unit(suffix: &[u8]) -> Option<u64> {
    let shift = match suffix {
        b"" | b"b" | b"B" => 0,
        b"k" | b"K" => 10,
        b"m" | b"M" => 20,
        b"g" | b"G" => 30,
        b"t" | b"T" => 40,
        b"p" | b"P" => 50,
        b"e" | b"E" => 60,
        _ => return None,
    };
    Some(1 << shift)
}

/// The bytes of a unit that the digits after the point mean, rounded to the nearest.
fn part_of(digits: &[u8], unit: u64) -> Result<u64, QuantityError> {
    let text = format!("0.{}", String::from_utf8_lossy(digits));
    let fraction: f64 = text.parse().unwrap_or(0.0);
    if unit == 1 && fraction != 0.0 {
        return Err(QuantityError::Syntax);
    }
    #[allow(clippy::cast_precision_loss)]
    let bytes = (fraction * unit as f64).round();
    // At most 2^60.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests;
