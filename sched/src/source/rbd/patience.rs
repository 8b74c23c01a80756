//! How long to wait for a snapshot that was asked for through Consul.

use std::time::{Duration, Instant};

use backy_store::Monitor;

use crate::error::Result;

/// How long to wait, and how often to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// Before the first look.
    pub first: Duration,
    /// Between two looks.
    pub between: Duration,
    /// Until it is given up, from the beginning.
    pub at_most: Duration,
}

/// As long as the original waits.
impl Default for Patience {
    fn default() -> Self {
        let secs = Duration::from_secs;
        Self { first: secs(3), between: secs(2), at_most: secs(90) }
    }
}

impl Patience {
    /// Looks until it is there; `false` when it did not come in time.
    pub(super) fn wait(
        &self,
        monitor: &dyn Monitor,
        mut is_there: impl FnMut() -> Result<bool>,
    ) -> Result<bool> {
        let begun = Instant::now();
        let mut wait = self.first;
        loop {
            pause(wait, monitor)?;
            if is_there()? {
                return Ok(true);
            }
            if begun.elapsed() >= self.at_most {
                return Ok(false);
            }
            wait = self.between;
        }
    }
}

/// Sleeps in turns, so that a wish to stop is heard.
pub(super) fn pause(time: Duration, monitor: &dyn Monitor) -> Result<()> {
    let end = Instant::now() + time;
    loop {
        if monitor.cancelled() {
            return Err(backy_store::Error::Cancelled.into());
        }
        let rest = end.saturating_duration_since(Instant::now());
        if rest.is_zero() {
            return Ok(());
        }
        std::thread::sleep(rest.min(Duration::from_millis(100)));
    }
}

#[cfg(test)]
mod tests {
    use backy_store::Silent;

    use super::*;
    use crate::error::Error;
    use crate::source::rbd::RbdError;
    use crate::source::testing::Counting;

    fn short() -> Patience {
        let millis = Duration::from_millis;
        Patience { first: millis(30), between: millis(5), at_most: millis(100) }
    }

    /// The numbers of the original: 3 s, then a look every 2 s for up to 90 s.
    #[test]
    fn nothing_else_said_it_waits_as_long_as_the_original() {
        let Patience { first, between, at_most } = Patience::default();
        assert_eq!([first, between, at_most].map(|time| time.as_secs_f64()), [3.0, 2.0, 90.0]);
    }

    #[test]
    fn what_comes_is_seen_at_the_next_look() {
        let begun = Instant::now();
        let mut looks = 0;
        let mut third = || {
            looks += 1;
            assert!(begun.elapsed() >= short().first, "too early");
            Ok(looks == 3)
        };
        assert!(Patience { at_most: Duration::from_secs(60), ..short() }.wait(&Silent, &mut third).unwrap());
        assert!(begun.elapsed() >= short().first + short().between * 2);
        assert_eq!(looks, 3);
    }

    #[test]
    fn what_does_not_come_is_given_up_in_time_and_not_earlier() {
        let begun = Instant::now();
        let mut last = Duration::ZERO;
        let came = short().wait(&Silent, || {
            last = begun.elapsed();
            Ok(false)
        });
        assert!(!came.unwrap());
        assert!(last >= short().at_most, "the last look was after {last:?}");
        assert!(begun.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_wish_to_stop_and_a_look_that_fails_end_it() {
        let long = Patience::default();
        assert!(long.wait(&Counting::new(0), || Ok(false)).unwrap_err().is_cancelled());
        let gone = || RbdError::SnapshotGone { snapshot: "rbd/a@b".to_owned() }.into();
        let failed = short().wait(&Silent, || Err(gone()));
        assert!(matches!(failed, Err(Error::Rbd(RbdError::SnapshotGone { .. }))));
    }
}
