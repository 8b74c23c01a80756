//! Sizes and durations in the words people use, and back.

/// Returns `bytes` in binary units: `1 Byte`, `512 Bytes`, `8.6 MiB`.
pub(crate) fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    match bytes {
        1 => return "1 Byte".to_owned(),
        0..1024 => return format!("{bytes} Bytes"),
        _ => {}
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// Returns a length of time in words: `a moment`, `24 seconds`, `an hour`, `1 year, 2 months`.
/// What is not a length of time is `-`.
pub(crate) fn human_duration(secs: f64) -> String {
    if !secs.is_finite() || secs < 0.0 {
        return "-".to_owned();
    }
    // A float too large for the integer becomes its greatest value.
    let secs = secs as u64;
    match secs {
        0 => "a moment".to_owned(),
        1 => "a second".to_owned(),
        2..60 => format!("{secs} seconds"),
        60..120 => "a minute".to_owned(),
        120..3600 => format!("{} minutes", secs / 60),
        3600..7200 => "an hour".to_owned(),
        7200..86_400 => format!("{} hours", secs / 3600),
        _ => human_days(secs / 86_400),
    }
}

fn human_days(days: u64) -> String {
    // A month has 30.5 days: twice the days are divided by 61.
    let (years, rest) = (days / 365, days % 365);
    let months = |days: u64| days * 2 / 61;
    match (years, months(rest)) {
        (0, 0) if days == 1 => "a day".to_owned(),
        (0, 0) => format!("{days} days"),
        (0, 1) => "a month".to_owned(),
        (0, count) => format!("{count} months"),
        (1, 0) if rest == 0 => "a year".to_owned(),
        (1, 0) if rest == 1 => "1 year, 1 day".to_owned(),
        (1, 0) => format!("1 year, {rest} days"),
        (1, 1) => "1 year, 1 month".to_owned(),
        (1, count) => format!("1 year, {count} months"),
        _ => format!("{years} years"),
    }
}

/// Reads a length of time, `90s`, `30m`, `12h`, `7d` or `2w`, into seconds; a bare number is seconds.
pub(crate) fn parse_duration(text: &str) -> Result<i64, String> {
    let bad = || format!("{text:?} is not a number with one of the suffixes s, m, h, d, w");
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let unit_secs: i64 = match &text[digits.len()..] {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return Err(bad()),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    digits.parse::<i64>().ok().and_then(|number| number.checked_mul(unit_secs)).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_one_decimal_and_a_binary_unit() {
        let table = [
            (0, "0 Bytes"),
            (1, "1 Byte"),
            (1023, "1023 Bytes"),
            (1024, "1.0 KiB"),
            (30_448_128, "29.0 MiB"),
            (33_566_721, "32.0 MiB"),
            (10 << 30, "10.0 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, words) in table {
            assert_eq!(human_bytes(bytes), words);
        }
    }

    #[test]
    fn durations_are_cut_not_rounded() {
        const DAY: f64 = 86_400.0;
        let table = [
            (0.9, "a moment"),
            (1.99, "a second"),
            (59.9, "59 seconds"),
            (60.0, "a minute"),
            (119.0, "a minute"),
            (120.0, "2 minutes"),
            (3599.0, "59 minutes"),
            (7199.0, "an hour"),
            (7200.0, "2 hours"),
            (DAY, "a day"),
            (DAY * 30.0, "30 days"),
            (DAY * 31.0, "a month"),
            (DAY * 61.0, "2 months"),
            (DAY * 364.0, "11 months"),
            (DAY * 365.0, "a year"),
            (DAY * 366.0, "1 year, 1 day"),
            (DAY * 375.0, "1 year, 10 days"),
            (DAY * 396.0, "1 year, 1 month"),
            (DAY * 500.0, "1 year, 4 months"),
            (DAY * 800.0, "2 years"),
            (-1.0, "-"),
            (f64::NAN, "-"),
            (f64::INFINITY, "-"),
        ];
        for (secs, words) in table {
            assert_eq!(human_duration(secs), words, "{secs}");
        }
        assert!(human_duration(f64::MAX).ends_with(" years"));
    }

    #[test]
    fn durations_are_read_back_or_refused() {
        for (text, secs) in
            [("0", 0), ("90s", 90), ("30m", 1800), ("12h", 43_200), ("7d", 604_800), ("2w", 1_209_600)]
        {
            assert_eq!(parse_duration(text), Ok(secs));
        }
        for text in ["", "d", "-1d", "1.5d", "7 d", "7y", "7dd", "9223372036854775807w", "\u{664}d", "7ä"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
    }
}
