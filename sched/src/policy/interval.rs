//! Intervals: `1d` and friends, as seconds. Pure.
//!
//! An interval is a whole number and a unit: `s`, `m`, `h`, `d`, `w`, or none for seconds. There are no
//! months (write `30d`) and no sums (`1w2d`).

use crate::error::{Error, Result};

/// The units, longest first.
const UNITS: [(char, i64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3_600), ('m', 60), ('s', 1)];

/// Longest accepted interval: a hundred years.
pub const INTERVAL_SECS_MAX: i64 = 36_525 * 86_400;

/// Reads an interval; the answer is 1 to [`INTERVAL_SECS_MAX`] seconds.
pub fn parse(text: &str) -> Result<i64> {
    let bad = |reason| Err(Error::IntervalInvalid { text: text.to_owned(), reason });
    let unit = UNITS.iter().find(|(letter, _)| text.ends_with(*letter));
    let (digits, unit_secs) = match unit {
        Some((_, secs)) => (&text[..text.len() - 1], *secs),
        None => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return bad("it must be one whole number with one of w, d, h, m, s, as in 1d");
    }
    let secs = digits.parse::<i64>().ok().and_then(|count| count.checked_mul(unit_secs));
    match secs {
        Some(0) => bad("it must be longer than nothing"),
        Some(secs) if secs <= INTERVAL_SECS_MAX => Ok(secs),
        _ => bad("it must not be longer than a hundred years (36525d)"),
    }
}

/// Writes an interval in the longest unit that divides it; `parse` reads it back.
pub fn format(secs: i64) -> String {
    let divides = |(_, unit_secs): &&(char, i64)| secs % unit_secs == 0;
    match UNITS.iter().find(divides) {
        Some((letter, unit_secs)) => format!("{}{letter}", secs / unit_secs),
        None => format!("{secs}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        for (text, secs, written) in [
            ("1d", 86_400, "1d"),
            ("1w", 604_800, "1w"),
            ("7d", 604_800, "1w"),
            ("30d", 2_592_000, "30d"),
            ("24h", 86_400, "1d"),
            ("90m", 5_400, "90m"),
            ("61", 61, "61s"),
            ("61s", 61, "61s"),
            ("007h", 25_200, "7h"),
            ("36525d", INTERVAL_SECS_MAX, "36525d"),
        ] {
            assert_eq!(parse(text).unwrap(), secs, "{text}");
            assert_eq!(format(secs), written);
            assert_eq!(parse(written).unwrap(), secs);
        }
    }

    #[test]
    fn everything_else_is_refused() {
        let huge = "9".repeat(400);
        for text in [
            "",
            "d",
            "0d",
            "0",
            "-1d",
            "+1d",
            "1.5d",
            "1w2d",
            "1 d",
            " 1d",
            "1D",
            "1y",
            "1\u{fc}",
            "36526d",
            &huge,
            "99999999999999999w",
        ] {
            let error = parse(text).unwrap_err();
            assert!(matches!(error, Error::IntervalInvalid { .. }), "{text:?}");
        }
    }
}
