//! Sizes as people read and type them.
//!
//! [`human`] prints a size as `qemu-img` does: three significant digits in the
//! smallest binary unit in which the number is below 1000. [`parse`] reads the
//! sizes of options such as `--memory`.

/// Unit prefixes, each 1024 times the one before.
const UNITS: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];

/// A size in bytes as text, for example `2.19 MiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss)]
    let exact = bytes as f64;
    // A unit takes over at 1000 of the one below, hence the factor before the logarithm.
    let scaled = exact / (1000.0 / 1024.0);
    let index = unit_index(scaled);
    let divisor = UNITS
        .iter()
        .take(index)
        .fold(1.0_f64, |divisor, _| divisor * 1024.0);
    let unit = UNITS.get(index).copied().unwrap_or("Ei");
    format!("{} {unit}B", three_digits(exact / divisor))
}

/// How often 1024 fits into `scaled` as a factor.
fn unit_index(scaled: f64) -> usize {
    let mut index = 0;
    let mut bound = 1024.0;
    while scaled >= bound && index + 1 < UNITS.len() {
        index += 1;
        bound *= 1024.0;
    }
    index
}

/// A number with three significant digits and no trailing zeros, as C's `%.3g` prints it.
fn three_digits(value: f64) -> String {
    let scientific = format!("{value:.2e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else {
        return scientific;
    };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    match exponent {
        0..=2 => {
            let decimals = usize::try_from(2 - exponent).unwrap_or(0);
            trim_zeros(&format!("{value:.decimals$}")).to_owned()
        }
        // Only values that round up to 1000 come here: a size is 0 or at least 0.97 of its unit.
        3.. => format!("{}e+{exponent:02}", trim_zeros(mantissa)),
        _ => trim_zeros(&format!(
            "{value:.decimals$}",
            decimals = usize::try_from(2 - exponent).unwrap_or(2)
        ))
        .to_owned(),
    }
}

/// Drops the zeros after a decimal point, and the point if nothing is left behind it.
fn trim_zeros(number: &str) -> &str {
    if number.contains('.') {
        number.trim_end_matches('0').trim_end_matches('.')
    } else {
        number
    }
}

/// Reads a size such as `512M`, `2G`, `1.5GiB` or `4096` (bytes). Units are powers of 1024.
///
/// # Errors
/// One sentence that names the text and what is expected.
pub fn parse(text: &str) -> Result<u64, String> {
    let wrong =
        || format!("'{text}' is not a size: write a number and K, M, G or T, for example 512M");
    let split = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(wrong()),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).ok_or_else(wrong);
    }
    let value: f64 = number.parse().map_err(|_| wrong())?;
    #[allow(clippy::cast_precision_loss)]
    let bytes = value * (1_u64 << shift) as f64;
    // 2^53 is far above any sensible fraction and exact in both types.
    if !(0.0..=9_007_199_254_740_992.0).contains(&bytes) {
        return Err(wrong());
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_known_values_match_observed_text() {
        for (bytes, text) in [
            (0, "0 B"),
            (1, "1 B"),
            (999, "999 B"),
            (1000, "0.977 KiB"),
            (1023, "0.999 KiB"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (10752, "10.5 KiB"),
            (99999, "97.7 KiB"),
            (1_022_976, "999 KiB"),
            (1_023_488, "1e+03 KiB"),
            (1_024_000, "0.977 MiB"),
            (1_047_552, "0.999 MiB"),
            (123_456_789, "118 MiB"),
            (1_048_051_712, "1e+03 MiB"),
            (999 << 30, "999 GiB"),
            (1 << 40, "1 TiB"),
            (i64::MAX.unsigned_abs(), "8 EiB"),
            (u64::MAX, "16 EiB"),
        ] {
            assert_eq!(human(bytes), text, "{bytes}");
        }
    }

    #[test]
    fn parse_units_are_binary() {
        assert_eq!(parse("4096"), Ok(4096));
        assert_eq!(parse("512M"), Ok(512 << 20));
        assert_eq!(parse("1.5GiB"), Ok(3 << 29));
        assert_eq!(parse("2t"), Ok(2 << 40));
    }

    #[test]
    fn parse_rubbish_is_refused() {
        for text in [
            "",
            "M",
            "-1",
            "1X",
            "1 G",
            "99999999999T",
            "1.2.3",
            "1e5",
            "inf",
            "1e999999T",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
