//! Many trials of one thing, two at a time: each runs the binary, which has threads of its own.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const THREADS: usize = 2;

/// Calls `trial` with 1, 2, 3, ... until it returns false. Returns how many trials there were.
pub fn every(trial: impl Fn(u64) -> bool + Sync) -> u64 {
    let (next, ended) = (AtomicU64::new(1), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let end = StopOnPanic(&ended);
                    if !trial(next.fetch_add(1, Ordering::SeqCst)) {
                        ended.store(true, Ordering::SeqCst);
                    }
                    std::mem::forget(end);
                }
            });
        }
    });
    next.into_inner() - 1
}

/// Calls `trial` with each of `things`.
pub fn each<T: Sync>(things: &[T], trial: impl Fn(&T) + Sync) {
    every(|number| {
        let thing = things.get(number as usize - 1);
        thing.inspect(|thing| trial(thing)).is_some()
    });
}

/// One failed trial ends the others.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
