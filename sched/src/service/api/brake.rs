//! Keeps those who have no token from filling the log.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far apart the events are that pass.
const APART: Duration = Duration::from_secs(1);

/// Lets an event pass now and then, and counts the others.
#[derive(Debug, Default)]
pub(super) struct Brake(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    passed_at: Option<Instant>,
    held: u64,
}

impl Brake {
    /// Returns how many events were held back since the last that passed; `None` holds this one back too.
    pub(super) fn pass(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.passed_at.is_some_and(|passed_at| now.saturating_duration_since(passed_at) < APART) {
            state.held = state.held.saturating_add(1);
            return None;
        }
        state.passed_at = Some(now);
        Some(std::mem::take(&mut state.held))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_a_second_passes_and_tells_of_the_others() {
        let brake = Brake::default();
        let start = Instant::now();
        assert_eq!(brake.pass(start), Some(0));
        assert_eq!(brake.pass(start), None);
        assert_eq!(brake.pass(start + APART / 2), None);
        assert_eq!(brake.pass(start + APART), Some(2));
        assert_eq!(brake.pass(start), None, "an earlier time is no reason to let it pass");
        assert_eq!(brake.pass(start + APART * 3), Some(1));
    }
}
