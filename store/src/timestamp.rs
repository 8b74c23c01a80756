//! Points in time: microseconds since 1970-01-01 UTC, read and written in the forms that manifests,
//! tables and revision expressions use.
//!
//! The clock is read in one function, [`Timestamp::now`]. The command line calls it, what runs for months (the
//! service and the mount), and the listing of revisions. All else takes the time as an argument. Owner of the crate `jiff`.

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{Timestamp as Instant, civil};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A point in time with microseconds, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    micros: i64,
}

/// The time zone in which a person reads and writes dates.
#[derive(Clone, Debug)]
pub struct Zone(TimeZone);

impl Zone {
    /// Returns the zone of this system: `TZ`, else `/etc/localtime`, else UTC.
    pub fn system() -> Self {
        Self(TimeZone::try_system().unwrap_or(TimeZone::UTC))
    }

    /// Returns UTC.
    pub fn utc() -> Self {
        Self(TimeZone::UTC)
    }

    /// Returns the zone's name as people know it, for example `Europe/Berlin`.
    pub fn name(&self) -> String {
        self.0.iana_name().map_or_else(|| self.0.to_offset(Instant::UNIX_EPOCH).to_string(), str::to_owned)
    }
}

impl Timestamp {
    /// The lowest and highest time that is accepted from a file: years 1 to 9998.
    const MICROS_MIN: i64 = -62_135_596_800_000_000;
    const MICROS_MAX: i64 = 253_370_764_800_000_000;

    /// Reads the wall clock. Decisions take the time as an argument instead.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the clock")]
    pub fn now() -> Self {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { micros: i64::try_from(since.as_micros()).unwrap_or(Self::MICROS_MAX).min(Self::MICROS_MAX) }
    }

    /// Takes microseconds since 1970 UTC; `None` outside the years 1 to 9998.
    pub fn from_micros(micros: i64) -> Option<Self> {
        (Self::MICROS_MIN..=Self::MICROS_MAX).contains(&micros).then_some(Self { micros })
    }

    /// Takes whole seconds since 1970 UTC; `None` outside the years 1 to 9998.
    pub fn from_secs(secs: i64) -> Option<Self> {
        secs.checked_mul(1_000_000).and_then(Self::from_micros)
    }

    /// Returns microseconds since 1970 UTC.
    pub fn as_micros(self) -> i64 {
        self.micros
    }

    /// Returns whole seconds since 1970 UTC, rounded down.
    pub fn as_secs(self) -> i64 {
        self.micros.div_euclid(1_000_000)
    }

    /// Returns this time moved by `secs`, held inside the years 1 to 9998.
    #[must_use]
    pub fn plus_secs(self, secs: i64) -> Self {
        let micros = self.micros.saturating_add(secs.saturating_mul(1_000_000));
        Self { micros: micros.clamp(Self::MICROS_MIN, Self::MICROS_MAX) }
    }

    /// Returns the seconds from `earlier` to this time; negative when it lies before.
    pub fn secs_since(self, earlier: Self) -> f64 {
        (self.micros - earlier.micros) as f64 / 1e6
    }

    /// Parses `YYYY-MM-DD[(T| )HH:MM[:SS[.ffffff]]][Z|+HH:MM]`; no time means 00:00, no zone means `zone`.
    pub fn parse(text: &str, zone: &Zone) -> Option<Self> {
        if text.len() > 64 || !text.is_ascii() {
            return None;
        }
        let text = text.replacen(' ', "T", 1);
        // An offset needs a time before it; blanks between time and offset are written by some YAML tools.
        let text = text.replace(' ', "");
        if let Ok(instant) = text.parse::<Instant>() {
            return Self::from_micros(instant.as_microsecond());
        }
        let local = text
            .parse::<civil::DateTime>()
            .or_else(|_| text.parse::<civil::Date>().map(|date| date.to_datetime(civil::Time::midnight())));
        let zoned = local.ok()?.to_zoned(zone.0.clone()).ok()?;
        Self::from_micros(zoned.timestamp().as_microsecond())
    }

    /// Returns `YYYY-MM-DD HH:MM:SS` in `zone`.
    pub fn format(self, zone: &Zone) -> String {
        self.instant().to_zoned(zone.0.clone()).strftime("%Y-%m-%d %H:%M:%S").to_string()
    }

    /// Returns RFC 3339 in UTC with `Z`, for machines: `2024-03-01T12:00:00Z`.
    pub fn to_rfc3339(self) -> String {
        self.instant().to_string()
    }

    fn instant(self) -> Instant {
        Instant::from_microsecond(self.micros).unwrap_or(Instant::UNIX_EPOCH)
    }
}

/// The form in manifests: `YYYY-MM-DD HH:MM:SS[.ffffff]+00:00`, as the original writes it.
impl fmt::Display for Timestamp {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let zoned = self.instant().to_zoned(TimeZone::UTC);
        write!(out, "{}", zoned.strftime("%Y-%m-%d %H:%M:%S"))?;
        match self.micros.rem_euclid(1_000_000) {
            0 => {}
            micros => write!(out, ".{micros:06}")?,
        }
        out.write_str("+00:00")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    /// Accepts the text form with or without zone (none means UTC) and, as old stores have it, a number of seconds.
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Seconds(f64),
            Text(String),
        }
        let bad = || serde::de::Error::custom("not a point in time between the years 1 and 9998");
        match Form::deserialize(from)? {
            Form::Seconds(secs) if secs.is_finite() => Self::from_micros((secs * 1e6) as i64).ok_or_else(bad),
            Form::Seconds(_) => Err(bad()),
            Form::Text(text) => Self::parse(&text, &Zone::utc()).ok_or_else(bad),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_every_age_are_read() {
        let utc = Zone::utc();
        let noon = Timestamp::from_secs(1_709_294_400).unwrap();
        for text in [
            "2024-03-01 12:00:00+00:00",
            "2024-03-01T12:00:00Z",
            "2024-03-01 12:00:00",
            "2024-03-01T13:00:00+01:00",
            "2024-03-01 12:00",
        ] {
            assert_eq!(Timestamp::parse(text, &utc), Some(noon), "{text}");
        }
        assert_eq!(Timestamp::parse("2024-03-01", &utc), Some(noon.plus_secs(-43_200)));
        for text in ["", "yesterday", "2024-13-01", "2024-03-01T25:00", "\u{fc}", &"9".repeat(100)] {
            assert_eq!(Timestamp::parse(text, &utc), None, "{text}");
        }
    }

    #[test]
    fn written_form_is_the_originals() {
        let noon = Timestamp::from_secs(1_709_294_400).unwrap();
        assert_eq!(noon.to_string(), "2024-03-01 12:00:00+00:00");
        assert_eq!(
            Timestamp::from_micros(1_709_294_400_000_010).unwrap().to_string(),
            "2024-03-01 12:00:00.000010+00:00"
        );
    }
}
