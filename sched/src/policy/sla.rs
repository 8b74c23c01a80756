//! Whether a job has the backups that its schedule promises. Pure.

use backy_store::Timestamp;

/// How a job stands to its schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sla {
    /// Its newest good revision is young enough, or no schedule asks for one.
    InTime,
    /// It has none yet, and is too new to be blamed.
    Waiting,
    /// Its newest good revision is older than allowed.
    Overdue {
        /// Age of that revision.
        age_secs: f64,
    },
    /// It has no good revision, and has been there for longer than allowed.
    Never,
}

/// Returns the age up to which the newest revision may grow: one and a half times the shortest interval.
pub fn allowed_secs(shortest_secs: i64) -> f64 {
    shortest_secs as f64 * 1.5
}

/// Judges a job with the shortest interval `shortest_secs`, whose newest good revision is `newest`, and which
/// has been there `since`; what is not known counts as just made.
pub fn judge(
    shortest_secs: Option<i64>,
    newest: Option<Timestamp>,
    since: Option<Timestamp>,
    now: Timestamp,
) -> Sla {
    let Some(allowed_secs) = shortest_secs.map(allowed_secs) else { return Sla::InTime };
    match newest {
        Some(newest) if now.secs_since(newest) <= allowed_secs => Sla::InTime,
        Some(newest) => Sla::Overdue { age_secs: now.secs_since(newest) },
        None if since.is_some_and(|since| now.secs_since(since) > allowed_secs) => Sla::Never,
        None => Sla::Waiting,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DAY, at};
    use super::*;

    #[test]
    fn one_and_a_half_intervals_are_allowed() {
        let now = at(0);
        let day = Some(DAY);
        for (shortest, newest, since, expected) in [
            (day, Some(-DAY), None, Sla::InTime),
            (day, Some(-DAY * 3 / 2), None, Sla::InTime),
            (day, Some(-DAY * 3 / 2 - 1), None, Sla::Overdue { age_secs: 129_601.0 }),
            (day, Some(60), None, Sla::InTime),
            (day, None, None, Sla::Waiting),
            (day, None, Some(-DAY * 3 / 2), Sla::Waiting),
            (day, None, Some(-DAY * 3 / 2 - 1), Sla::Never),
            (day, None, Some(DAY), Sla::Waiting),
            (Some(1), Some(-1), None, Sla::InTime),
            (Some(1), Some(-2), None, Sla::Overdue { age_secs: 2.0 }),
            (None, None, Some(-365 * DAY), Sla::InTime),
            (None, Some(-365 * DAY), None, Sla::InTime),
        ] {
            assert_eq!(judge(shortest, newest.map(at), since.map(at), now), expected, "{newest:?} {since:?}");
        }
    }
}
