//! Which workers a backup gets, so that a few huge disks do not hold up all small ones. Pure.

use backy_store::Revision;

/// A backup that took less runs with the fast ones next time.
const FAST_SECS_MAX: f64 = 600.0;

/// A set of workers with a number of slots of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// For jobs whose last backup took less than ten minutes.
    Fast,
    /// For the others, and for first backups.
    Slow,
}

impl Pool {
    /// Returns the pool for the next backup of a job with these revisions, oldest first. Revisions of other
    /// servers tell nothing of the speed here.
    pub fn choose(revisions: &[Revision]) -> Self {
        let last = revisions.iter().rev().filter(|revision| revision.is_local());
        match last.filter_map(|revision| revision.stats.duration_secs).next() {
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
    use super::super::testing::revision;
    use super::*;

    #[test]
    fn the_newest_complete_local_backup_decides() {
        let took = |secs: Option<f64>, server: &str| {
            let mut made = revision(1, 0, "daily");
            made.stats.duration_secs = secs;
            made.server = server.to_owned();
            made
        };
        for (revisions, expected) in [
            (vec![], Pool::Slow),
            (vec![took(Some(599.9), "")], Pool::Fast),
            (vec![took(Some(600.0), "")], Pool::Slow),
            (vec![took(Some(5000.0), ""), took(Some(20.0), "")], Pool::Fast),
            (vec![took(Some(20.0), ""), took(None, "")], Pool::Fast),
            (vec![took(Some(20.0), "backup2")], Pool::Slow),
            (vec![took(Some(f64::NAN), "")], Pool::Slow),
        ] {
            assert_eq!(Pool::choose(&revisions), expected, "{revisions:?}");
        }
    }
}
