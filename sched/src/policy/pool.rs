//! Which workers a backup gets, so that a few huge disks do not hold up all small ones. Pure.

use super::history::History;

/// A backup that took less runs with the fast ones next time.
const FAST_SECS_MAX: f64 = 600.0;

/// A set of workers with a number of slots of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    /// For jobs whose last backup took less than ten minutes.
    Fast,
    /// For the others, and for first backups.
    Slow,
}

impl Pool {
    /// Returns the pool for the next backup of a job. Revisions of other servers tell nothing of the speed here.
    pub fn choose(history: &History) -> Self {
        match history.last_secs_here {
            Some(secs) if secs < FAST_SECS_MAX => Self::Fast,
            _ => Self::Slow,
        }
    }

    /// Returns the word in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Slow => "slow",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{at, revision};
    use super::*;
    use backy_store::Revision;

    #[test]
    fn the_newest_complete_local_backup_decides() {
        let took = |place: i64, secs: Option<f64>, server: &str| -> Revision {
            let mut made = revision(1, place, "daily");
            made.stats.duration_secs = secs;
            made.server = server.to_owned();
            made
        };
        for (revisions, expected) in [
            (vec![], Pool::Slow),
            (vec![took(1, Some(599.9), "")], Pool::Fast),
            (vec![took(1, Some(600.0), "")], Pool::Slow),
            (vec![took(1, Some(5000.0), ""), took(2, Some(20.0), "")], Pool::Fast),
            (vec![took(1, Some(20.0), ""), took(2, None, "")], Pool::Fast),
            (vec![took(1, Some(20.0), "backup2")], Pool::Slow),
            (vec![took(1, Some(f64::NAN), "")], Pool::Slow),
        ] {
            assert_eq!(Pool::choose(&History::of(&revisions, at(0))), expected, "{revisions:?}");
        }
    }
}
