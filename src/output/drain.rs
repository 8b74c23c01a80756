//! Output that can stop nobody: lines go into a bounded queue, and a thread of its own writes them. A reader that does
//! not read, a terminal that was stopped, a full or a hung disk keep that thread, and nothing else.
//!
//! - The queue is locked for moments, never during input or output, and nothing is logged under its lock.
//! - What finds no room, and what cannot be written, is dropped and counted; the first line after that says so.
//! - A command waits a moment for each line to be written, so that lines keep their order with those on standard
//!   output and a command that is killed has said what it did. Once an output was waited for in vain, nobody waits for
//!   it until it moves again. A service never waits ([`never_wait`]).
//! - [`Drain::flush`] waits for the queue within a bound, at the end of the program.
//! - Where no thread can be started, whoever brings a line writes it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, SigmaskHow};

/// Most bytes that wait.
const WAITING_BYTES_MAX: usize = 1 << 20;
/// Longest text that is taken; of a longer one the beginning.
const TEXT_BYTES_MAX: usize = 64 << 10;
/// Most bytes that wait for an outlet that keeps up.
const IDLE_BYTES_MAX: usize = 16 << 10;
/// How long a command waits for its line to be written.
const PATIENCE: Duration = Duration::from_secs(1);

static WAITS: AtomicBool = AtomicBool::new(true);

/// From now on nobody waits for a line to be written.
pub(crate) fn never_wait() {
    WAITS.store(false, Ordering::Relaxed);
}

/// Whether lines are waited for.
pub(crate) fn waits() -> bool {
    WAITS.load(Ordering::Relaxed)
}

/// Where the lines of a [`Drain`] go. Its methods may block.
pub(crate) trait Outlet: Send + 'static {
    /// Something that is done in order with the lines.
    type Order: Send + std::fmt::Debug;

    /// Writes a text of whole lines.
    fn write(&mut self, text: &str) -> io::Result<()>;

    /// Does something before the next line.
    fn follow(&mut self, order: Self::Order);

    /// Returns the line that says how many were lost.
    fn loss(&self, lines: u64) -> String;
}

/// A queue and the outlet behind it.
#[derive(Debug)]
pub(crate) struct Drain<O: Outlet>(Arc<Shared<O>>);

#[derive(Debug)]
struct Shared<O: Outlet> {
    name: &'static str,
    state: Mutex<State<O::Order>>,
    /// Something waits.
    filled: Condvar,
    /// Something was written.
    written: Condvar,
    /// Held by whoever writes: the thread for its life.
    outlet: Mutex<O>,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<Item<T>>,
    bytes: usize,
    /// How many items came, and how many are done with.
    pushed: u64,
    done: u64,
    lost_lines: u64,
    has_thread: bool,
    /// Whether the outlet was waited for in vain and has not moved since.
    is_stuck: bool,
}

#[derive(Debug)]
enum Item<T> {
    Text(String),
    Order(T),
}

impl<O: Outlet> Drain<O> {
    /// Begins without a thread; the first line starts it.
    pub(crate) fn new(name: &'static str, outlet: O) -> Self {
        let state = State {
            waiting: VecDeque::new(),
            bytes: 0,
            pushed: 0,
            done: 0,
            lost_lines: 0,
            has_thread: false,
            is_stuck: false,
        };
        Self(Arc::new(Shared {
            name,
            state: Mutex::new(state),
            filled: Condvar::new(),
            written: Condvar::new(),
            outlet: Mutex::new(outlet),
        }))
    }

    /// Brings a text of whole lines. Waits for a moment, unless nobody does.
    pub(crate) fn push(&self, text: &str) {
        let number = self.put(Item::Text(clipped(text)));
        if let Some(number) = number.filter(|_| waits() && !self.0.state().is_stuck) {
            self.wait_for(number, PATIENCE);
        }
    }

    /// Brings a text that is worth nothing later: when much waits already it is dropped, and not counted.
    pub(crate) fn push_if_idle(&self, text: &str) {
        if self.0.state().bytes < IDLE_BYTES_MAX {
            self.put(Item::Text(clipped(text)));
        }
    }

    /// Orders something, in order with the lines.
    pub(crate) fn order(&self, order: O::Order) {
        self.put(Item::Order(order));
    }

    /// Waits until everything is written, or until `within` is over.
    pub(crate) fn flush(&self, within: Duration) {
        let pushed = self.0.state().pushed;
        self.wait_for(pushed, within);
    }

    /// Returns the item's number; `None` when it found no room.
    fn put(&self, item: Item<O::Order>) -> Option<u64> {
        let (number, starts) = {
            let mut state = self.0.state();
            if let Item::Text(text) = &item {
                if state.bytes + text.len() > WAITING_BYTES_MAX {
                    state.lost_lines += count_lines(text);
                    return None;
                }
                state.bytes += text.len();
            }
            state.waiting.push_back(item);
            state.pushed += 1;
            (state.pushed, !std::mem::replace(&mut state.has_thread, true))
        };
        self.0.filled.notify_one();
        if starts {
            self.start();
        }
        Some(number)
    }

    fn start(&self) {
        let shared = Arc::clone(&self.0);
        // Signals are for the threads that wait for them (a mount, long work), which may block them only later.
        let before = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK);
        let started = Builder::new().name(self.0.name.to_owned()).spawn(move || shared.serve());
        let _ = before.map(|before| before.thread_set_mask());
        if started.is_err() {
            self.0.state().has_thread = false;
            // Whoever has the outlet writes this, too.
            if let Ok(mut outlet) = self.0.outlet.try_lock() {
                while let Some(item) = self.0.next() {
                    self.0.handle(item, &mut outlet);
                }
            }
        }
    }

    fn wait_for(&self, number: u64, patience: Duration) {
        let begun = Instant::now();
        let mut state = self.0.state();
        while state.done < number && (state.has_thread || !state.waiting.is_empty()) {
            let left = patience.saturating_sub(begun.elapsed());
            if left.is_zero() {
                state.is_stuck = true;
                return;
            }
            let waited = self.0.written.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl<O: Outlet> Shared<O> {
    fn state(&self) -> MutexGuard<'_, State<O::Order>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The thread.
    fn serve(&self) {
        let mut outlet = self.outlet.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.next() {
                Some(item) => self.handle(item, &mut outlet),
                None => {
                    let state = self.state();
                    let nothing = |state: &mut State<O::Order>| state.waiting.is_empty();
                    drop(self.filled.wait_while(state, nothing));
                }
            }
        }
    }

    fn next(&self) -> Option<Item<O::Order>> {
        let mut state = self.state();
        let item = state.waiting.pop_front()?;
        if let Item::Text(text) = &item {
            state.bytes = state.bytes.saturating_sub(text.len());
        }
        Some(item)
    }

    fn handle(&self, item: Item<O::Order>, outlet: &mut O) {
        let lost = match item {
            Item::Text(text) => self.write(&text, outlet),
            Item::Order(order) => {
                outlet.follow(order);
                0
            }
        };
        let mut state = self.state();
        state.lost_lines += lost;
        state.done += 1;
        state.is_stuck = false;
        drop(state);
        self.written.notify_all();
    }

    /// Writes a text, after the line on what was lost before; returns how many lines are lost now.
    fn write(&self, text: &str, outlet: &mut O) -> u64 {
        let lost = std::mem::take(&mut self.state().lost_lines);
        if lost > 0 && outlet.write(&outlet.loss(lost)).is_err() {
            return lost + count_lines(text);
        }
        if outlet.write(text).is_err() { count_lines(text) } else { 0 }
    }
}

fn count_lines(text: &str) -> u64 {
    text.lines().count().max(1) as u64
}

fn clipped(text: &str) -> String {
    if text.len() <= TEXT_BYTES_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_BYTES_MAX).rev().find(|&at| text.is_char_boundary(at)).unwrap_or_default();
    format!("{}...\n", &text[..end])
}

/// Writes everything to a descriptor, waiting where it takes no more: a descriptor that somebody else has made
/// non-blocking loses nothing. Says in `begun` whether some of it was written.
pub(crate) fn write_all(to: impl AsFd, mut bytes: &[u8], begun: &mut bool) -> io::Result<()> {
    while !bytes.is_empty() {
        match nix::unistd::write(&to, bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => {
                *begun = true;
                bytes = &bytes[count.min(bytes.len())..];
            }
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let mut wanted = [PollFd::new(to.as_fd(), PollFlags::POLLOUT)];
                // What is wrong with the descriptor shows in the next write.
                let _ = poll(&mut wanted, PollTimeout::from(u16::MAX));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

    use super::*;

    /// An outlet that writes when it is let to, and fails when it is told to.
    struct Gate {
        open: Receiver<bool>,
        written: Arc<Mutex<String>>,
    }

    impl Outlet for Gate {
        type Order = &'static str;

        fn write(&mut self, text: &str) -> io::Result<()> {
            match self.open.recv() {
                Ok(false) => Err(io::ErrorKind::StorageFull.into()),
                _ => {
                    self.written.lock().unwrap().push_str(text);
                    Ok(())
                }
            }
        }

        fn follow(&mut self, order: &'static str) {
            self.written.lock().unwrap().push_str(order);
        }

        fn loss(&self, lines: u64) -> String {
            format!("lost {lines}\n")
        }
    }

    fn gate() -> (Drain<Gate>, SyncSender<bool>, Arc<Mutex<String>>) {
        let (opener, open) = sync_channel(1000);
        let written = Arc::new(Mutex::new(String::new()));
        (Drain::new("test", Gate { open, written: Arc::clone(&written) }), opener, written)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn lines_and_orders_keep_their_order() {
        let (drain, opener, written) = gate();
        drain.order("first ");
        opener.send(true).unwrap();
        drain.push("second ");
        drain.order("third");
        drain.flush(LONG);
        assert_eq!(*written.lock().unwrap(), "first second third");
    }

    #[test]
    fn a_stuck_outlet_is_waited_for_once_and_says_what_was_lost() {
        let (drain, opener, written) = gate();
        let line = "x".repeat(TEXT_BYTES_MAX - 1) + "\n";
        let begun = Instant::now();
        for _ in 0..100 {
            drain.push(&line);
        }
        assert!(begun.elapsed() < PATIENCE * 20, "{:?}", begun.elapsed());
        drain.flush(Duration::from_millis(1));
        for _ in 0..100 {
            opener.send(true).unwrap();
        }
        drain.flush(LONG);
        drain.push("again\n");
        drain.flush(LONG);
        let written = written.lock().unwrap();
        let lost = written.lines().find_map(|line| line.strip_prefix("lost ")).unwrap();
        let lines = written.lines().filter(|line| line.starts_with('x')).count();
        assert_eq!(lines + lost.parse::<usize>().unwrap(), 100);
        assert!(written.ends_with("again\n"));
    }

    #[test]
    fn what_cannot_be_written_is_counted_and_reported_once_it_can() {
        let (drain, opener, written) = gate();
        // The text fails; then the report of that fails; then report and text are written.
        for open in [false, false, true, true] {
            opener.send(open).unwrap();
        }
        for text in ["one\n>\tmore\n", "two\n", "three\n"] {
            drain.push(text);
        }
        drain.flush(LONG);
        assert_eq!(*written.lock().unwrap(), "lost 3\nthree\n");
    }

    #[test]
    fn a_long_text_is_clipped_between_characters() {
        let text = clipped(&"ä".repeat(TEXT_BYTES_MAX));
        assert!(text.len() <= TEXT_BYTES_MAX + 4 && text.ends_with("ä...\n"), "{}", text.len());
        assert_eq!(clipped("a\n"), "a\n");
    }

    #[test]
    fn a_descriptor_that_does_not_block_loses_nothing() {
        use std::io::Read as _;

        let (mut reader, writer) = io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let text = vec![b'x'; 1 << 20];
        let reads = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).unwrap();
            all.len()
        });
        let mut begun = false;
        write_all(&writer, &text, &mut begun).unwrap();
        drop(writer);
        assert!(begun);
        assert_eq!(reads.join().unwrap(), 1 << 20);
    }
}
