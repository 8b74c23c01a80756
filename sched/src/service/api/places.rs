//! Places for clients with a token. Each token has the same number of them and uses no others. So a token whose requests
//! take long, by slow bodies or by slow answers, keeps no other token waiting, however many requests it sends.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;

/// Places of one kind.
#[derive(Debug)]
pub(super) struct Places {
    all: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// How many tokens the configuration had when the shares were made.
    tokens: usize,
    /// By the token's name.
    shares: HashMap<String, Arc<Semaphore>>,
}

impl Places {
    pub(super) fn new(all: usize) -> Self {
        Self { all, state: Mutex::default() }
    }

    /// Returns the places of the token with this name, which is one of `tokens`: its share of all, one at least. After a
    /// change of the configuration the shares are made again; a place that was taken before is then not counted.
    pub(super) fn of(&self, name: &str, tokens: usize) -> Arc<Semaphore> {
        let tokens = tokens.max(1);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = state.shares.len() >= tokens && !state.shares.contains_key(name);
        if state.tokens != tokens || is_full {
            *state = State { tokens, shares: HashMap::new() };
        }
        let share = || Arc::new(Semaphore::new((self.all / tokens).max(1)));
        Arc::clone(state.shares.entry(name.to_owned()).or_insert_with(share))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_that_takes_all_its_places_leaves_the_others_theirs() {
        let places = Places::new(5);
        let busy = places.of("metrics", 2);
        let _all = busy.try_acquire_many(2).unwrap();
        assert!(places.of("metrics", 2).try_acquire().is_err());
        assert_eq!(places.of("admin", 2).available_permits(), 2);
        assert_eq!(places.of("admin", 9).available_permits(), 1, "each has one at least");
    }

    #[test]
    fn names_that_come_and_go_are_not_kept() {
        let places = Places::new(4);
        for number in 0..100 {
            places.of(&number.to_string(), 2);
        }
        assert!(places.state.lock().unwrap().shares.len() <= 2);
    }
}
