//! Notices that somebody moved the wall clock.

use std::time::Instant;

use backy_store::Timestamp;

/// The wall clock may part from the steady one by so much between two looks.
const DRIFT_SECS_MAX: f64 = 3600.0;

/// The two clocks at the last look.
#[derive(Debug)]
pub(super) struct Clock {
    steady: Instant,
    wall: Timestamp,
}

impl Clock {
    /// As they are.
    pub(super) fn start() -> Self {
        Self { steady: Instant::now(), wall: Timestamp::now() }
    }

    /// Whether the wall clock was moved since the last look. A machine that slept looks the same.
    pub(super) fn jumped(&mut self, now: Timestamp) -> bool {
        let steady = Instant::now();
        let drift = now.secs_since(self.wall) - steady.duration_since(self.steady).as_secs_f64();
        (self.steady, self.wall) = (steady, now);
        let has_jumped = drift.abs() > DRIFT_SECS_MAX;
        if has_jumped {
            tracing::warn!(secs = drift, "the clock was moved");
        }
        has_jumped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_jump_is_one() {
        let mut clock = Clock::start();
        let now = Timestamp::now();
        for (secs, expected) in [(0, false), (60, false), (86_400, true), (86_401, false), (-86_400, true)] {
            assert_eq!(clock.jumped(now.plus_secs(secs)), expected, "{secs}");
        }
    }
}
