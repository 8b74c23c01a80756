//! The tests that every backend must pass, written against the trait. Each test is a function of a [`Fixture`], and
//! `contract_tests!` makes a test of it for every backend.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::memory::MemoryStore;
use super::{Backend, BackendKind, local};
use crate::format::ChunkId;
use crate::format::name::FileName;
use crate::fs::disk;

/// New storage without files, and what a test needs beside the trait.
trait Fixture {
    /// Opens it for one more run.
    fn open(&self) -> Box<dyn Backend>;
    /// Makes files of this name fail to be written.
    fn break_writes(&self, name: &FileName);
    /// Lets them be written again.
    fn mend_writes(&self, name: &FileName);
    /// Returns the number of files that were begun and are neither placed nor removed.
    fn unfinished_count(&self) -> usize;
    /// Loses what a power loss may take, where that can be simulated.
    fn lose_power(&self);
}

struct LocalFixture(tempfile::TempDir);

impl LocalFixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        local::create(dir.path()).unwrap();
        Self(dir)
    }

    /// Where the directory of a shard is, and where it is hidden.
    fn shard(&self, name: &FileName) -> (PathBuf, PathBuf) {
        let shard = self.0.path().join(format!("chunks/{:02x}", name.id.shard()));
        let hidden = shard.with_extension("hidden");
        (shard, hidden)
    }
}

impl Fixture for LocalFixture {
    fn open(&self) -> Box<dyn Backend> {
        BackendKind::Local.open(self.0.path()).unwrap()
    }

    fn break_writes(&self, name: &FileName) {
        let (shard, hidden) = self.shard(name);
        disk::rename(&shard, &hidden).unwrap();
    }

    fn mend_writes(&self, name: &FileName) {
        let (shard, hidden) = self.shard(name);
        disk::rename(&hidden, &shard).unwrap();
    }

    fn unfinished_count(&self) -> usize {
        disk::list(&self.0.path().join("tmp")).unwrap().len()
    }

    fn lose_power(&self) {}
}

#[derive(Default)]
struct MemoryFixture(MemoryStore);

impl MemoryFixture {
    fn new() -> Self {
        Self::default()
    }
}

impl Fixture for MemoryFixture {
    fn open(&self) -> Box<dyn Backend> {
        Box::new(self.0.open())
    }

    fn break_writes(&self, _name: &FileName) {
        self.0.set_room(Some(2));
    }

    fn mend_writes(&self, _name: &FileName) {
        self.0.set_room(None);
    }

    fn unfinished_count(&self) -> usize {
        self.0.unfinished_count()
    }

    fn lose_power(&self) {
        self.0.lose_power();
    }
}

macro_rules! contract_tests {
    ($($case:ident,)*) => {
        mod local_files {
            $(#[test] fn $case() { super::$case(&super::LocalFixture::new()); })*
        }
        mod memory {
            $(#[test] fn $case() { super::$case(&super::MemoryFixture::new()); })*
        }
    };
}

contract_tests! {
    a_file_is_read_as_it_was_put,
    a_missing_file_is_none_and_no_error,
    chunks_and_groups_of_one_id_are_different_files,
    a_second_put_keeps_the_first_file,
    a_replacement_takes_the_place_of_a_file,
    an_empty_file_is_a_file,
    a_range_past_the_end_is_short,
    a_file_is_invisible_until_it_is_placed,
    a_file_that_is_dropped_before_it_is_placed_leaves_nothing,
    an_open_file_outlives_its_deletion_and_replacement,
    a_deletion_can_be_repeated,
    a_list_has_just_the_files_of_its_shard,
    the_visitor_of_a_list_may_use_the_backend,
    another_run_sees_every_change,
    a_write_that_fails_leaves_the_name_as_it_was,
    a_barrier_covers_what_was_put_placed_and_used,
    a_replacement_needs_no_barrier,
    several_threads_put_the_same_name,
    threads_read_while_others_replace_and_delete,
    a_shared_lock_keeps_out_only_the_exclusive_one,
    an_exclusive_lock_keeps_out_all_others,
    empty_storage_can_be_used_and_is_not_away,
}

fn chunk(seed: u32) -> FileName {
    FileName::chunk(ChunkId::of(&seed.to_le_bytes()))
}

fn group(seed: u32) -> FileName {
    FileName::group(ChunkId::of(&seed.to_le_bytes()))
}

fn put(backend: &dyn Backend, name: &FileName, bytes: &[u8]) {
    backend.put(name, bytes, "temporary", false).unwrap();
}

fn replace(backend: &dyn Backend, name: &FileName, bytes: &[u8]) {
    backend.put(name, bytes, "temporary", true).unwrap();
}

fn place_file(backend: &dyn Backend, name: &FileName, parts: &[&[u8]]) {
    let mut file = backend.begin(name, "temporary").unwrap();
    for part in parts {
        file.append(part).unwrap();
    }
    file.place().unwrap();
}

/// Returns the content of a file, and checks that all ways to look at it agree on whether it is there.
fn content(backend: &dyn Backend, name: &FileName) -> Option<Vec<u8>> {
    let length = backend.len(name).unwrap();
    assert_eq!(list(backend).contains(name), length.is_some());
    let Some(file) = backend.open(name).unwrap() else {
        assert_eq!(length, None);
        return None;
    };
    assert_eq!(Some(file.len()), length);
    let mut bytes = vec![0; file.len() as usize];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    Some(bytes)
}

fn list(backend: &dyn Backend) -> BTreeSet<FileName> {
    let mut names = Vec::new();
    for shard in 0..=255 {
        backend.list(shard, &mut |name| names.push(name)).unwrap();
    }
    let set: BTreeSet<FileName> = names.iter().copied().collect();
    assert_eq!(set.len(), names.len(), "a file is listed once");
    set
}

fn a_file_is_read_as_it_was_put(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"some bytes");
    assert_eq!(content(&*backend, &chunk(1)).unwrap(), b"some bytes");
    let file = backend.open(&chunk(1)).unwrap().unwrap();
    file.will_need(0, 0);
    file.will_need(5, 100);
    let mut part = [0; 5];
    assert_eq!(file.read_at(&mut part, 5).unwrap(), 5);
    assert_eq!(&part, b"bytes");
    assert_eq!(fixture.unfinished_count(), 0);
}

fn a_missing_file_is_none_and_no_error(fixture: &dyn Fixture) {
    let backend = fixture.open();
    for name in [chunk(1), group(1)] {
        assert!(backend.open(&name).unwrap().is_none());
        assert_eq!(backend.len(&name).unwrap(), None);
    }
    assert!(list(&*backend).is_empty());
    // What is used may be gone by the time of the barrier.
    backend.use_existing(&chunk(1));
    backend.barrier().unwrap();
}

fn chunks_and_groups_of_one_id_are_different_files(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"chunk");
    assert_eq!(content(&*backend, &group(1)), None);
    place_file(&*backend, &group(1), &[b"group"]);
    assert_eq!(content(&*backend, &chunk(1)).unwrap(), b"chunk");
    assert_eq!(content(&*backend, &group(1)).unwrap(), b"group");
    backend.delete(&chunk(1)).unwrap();
    assert_eq!(list(&*backend), BTreeSet::from([group(1)]));
}

fn a_second_put_keeps_the_first_file(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"first");
    put(&*backend, &chunk(1), b"the second one");
    assert_eq!(content(&*backend, &chunk(1)).unwrap(), b"first");
    assert_eq!(fixture.unfinished_count(), 0);
}

fn a_replacement_takes_the_place_of_a_file(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"damaged");
    replace(&*backend, &chunk(1), b"good");
    assert_eq!(content(&*backend, &chunk(1)).unwrap(), b"good");
    // The damaged file may have been deleted meanwhile.
    replace(&*backend, &chunk(2), b"good");
    assert_eq!(content(&*backend, &chunk(2)).unwrap(), b"good");
    assert_eq!(fixture.unfinished_count(), 0);
}

fn an_empty_file_is_a_file(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"");
    place_file(&*backend, &group(2), &[]);
    assert_eq!(content(&*backend, &chunk(1)).unwrap(), b"");
    assert_eq!(content(&*backend, &group(2)).unwrap(), b"");
    assert_eq!(backend.open(&chunk(1)).unwrap().unwrap().read_at(&mut [0; 4], 0).unwrap(), 0);
}

fn a_range_past_the_end_is_short(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"0123456789");
    let file = backend.open(&chunk(1)).unwrap().unwrap();
    for (offset, length, expected) in
        [(0, 10, 10), (0, 11, 10), (7, 8, 3), (10, 1, 0), (11, 1, 0), (1 << 40, 4, 0), (3, 0, 0), (10, 0, 0)]
    {
        let mut buf = vec![b'-'; length];
        assert_eq!(file.read_at(&mut buf, offset).unwrap(), expected, "{length} bytes from {offset}");
        if expected > 0 {
            assert_eq!(buf[..expected], b"0123456789"[offset as usize..][..expected]);
        }
        assert!(buf[expected..].iter().all(|byte| *byte == b'-'), "bytes behind the end are left alone");
    }
}

fn a_file_is_invisible_until_it_is_placed(fixture: &dyn Fixture) {
    let (backend, other) = (fixture.open(), fixture.open());
    let name = group(1);
    let mut file = backend.begin(&name, "temporary").unwrap();
    file.append(b"one ").unwrap();
    let reader = file.reader().unwrap();
    file.append(b"two").unwrap();
    let mut bytes = [0; 7];
    assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), 7);
    assert_eq!(&bytes, b"one two");
    assert_eq!((content(&*backend, &name), content(&*other, &name)), (None, None));
    file.append(b" three").unwrap();
    file.place().unwrap();
    assert_eq!(content(&*backend, &name).unwrap(), b"one two three");
    assert_eq!(content(&*other, &name).unwrap(), b"one two three");
    drop(file);
    assert_eq!(content(&*other, &name).unwrap(), b"one two three");
    let mut bytes = [0; 9];
    assert_eq!(reader.read_at(&mut bytes, 4).unwrap(), 9);
    assert_eq!(&bytes, b"two three");
    assert_eq!(fixture.unfinished_count(), 0);
}

fn a_file_that_is_dropped_before_it_is_placed_leaves_nothing(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let mut file = backend.begin(&group(1), "temporary").unwrap();
    file.append(b"bytes").unwrap();
    let reader = file.reader().unwrap();
    drop(file);
    assert_eq!(content(&*backend, &group(1)), None);
    assert_eq!(fixture.unfinished_count(), 0);
    // A reader keeps what was written.
    let mut bytes = [0; 5];
    assert_eq!(reader.read_at(&mut bytes, 0).unwrap(), 5);
    assert_eq!(&bytes, b"bytes");
    // The names can be used again.
    place_file(&*backend, &group(1), &[b"again"]);
    assert_eq!(content(&*backend, &group(1)).unwrap(), b"again");
}

fn an_open_file_outlives_its_deletion_and_replacement(fixture: &dyn Fixture) {
    let backend = fixture.open();
    for change in [
        |backend: &dyn Backend| backend.delete(&chunk(1)).unwrap(),
        |backend: &dyn Backend| replace(backend, &chunk(1), b"another content"),
    ] {
        replace(&*backend, &chunk(1), b"old content");
        let file = backend.open(&chunk(1)).unwrap().unwrap();
        change(&*backend);
        let mut bytes = [0; 32];
        assert_eq!((file.len(), file.read_at(&mut bytes, 4).unwrap()), (11, 7));
        assert_eq!(&bytes[..7], b"content");
    }
}

fn a_deletion_can_be_repeated(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"bytes");
    place_file(&*backend, &group(2), &[b"bytes"]);
    for name in [chunk(1), group(2), chunk(3)] {
        backend.delete(&name).unwrap();
        backend.delete(&name).unwrap();
        assert_eq!(content(&*backend, &name), None);
    }
    // A name can be used again after its deletion.
    put(&*backend, &chunk(1), b"others");
    assert_eq!(content(&*backend, &chunk(1)).unwrap(), b"others");
}

fn a_list_has_just_the_files_of_its_shard(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let mut expected = BTreeSet::new();
    for seed in 0..40 {
        put(&*backend, &chunk(seed), b"chunk");
        place_file(&*backend, &group(seed), &[b"group"]);
        expected.extend([chunk(seed), group(seed)]);
    }
    for seed in 0..10 {
        backend.delete(&chunk(seed)).unwrap();
        expected.remove(&chunk(seed));
    }
    assert_eq!(list(&*backend), expected);
    for shard in 0..=255 {
        backend.list(shard, &mut |name| assert_eq!(name.id.shard(), shard)).unwrap();
    }
}

fn the_visitor_of_a_list_may_use_the_backend(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"bytes");
    let mut count = 0;
    let mut visit = |name: FileName| {
        assert_eq!(backend.len(&name).unwrap(), Some(5));
        backend.delete(&name).unwrap();
        count += 1;
    };
    backend.list(chunk(1).id.shard(), &mut visit).unwrap();
    assert_eq!(count, 1);
    assert!(list(&*backend).is_empty());
}

fn another_run_sees_every_change(fixture: &dyn Fixture) {
    let (one, other) = (fixture.open(), fixture.open());
    put(&*one, &chunk(1), b"bytes");
    assert_eq!(content(&*other, &chunk(1)).unwrap(), b"bytes");
    replace(&*other, &chunk(1), b"others");
    assert_eq!(content(&*one, &chunk(1)).unwrap(), b"others");
    one.delete(&chunk(1)).unwrap();
    assert_eq!(content(&*other, &chunk(1)), None);
    put(&*one, &chunk(2), b"stays");
    drop((one, other));
    assert_eq!(content(&*fixture.open(), &chunk(2)).unwrap(), b"stays");
}

fn a_write_that_fails_leaves_the_name_as_it_was(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"old");
    fixture.break_writes(&chunk(1));
    backend.put(&chunk(1), b"replacement", "temporary", true).unwrap_err();
    fixture.mend_writes(&chunk(1));
    assert_eq!(content(&*backend, &chunk(1)).unwrap(), b"old");
    fixture.break_writes(&chunk(2));
    backend.put(&chunk(2), b"new bytes", "temporary", false).unwrap_err();
    fixture.mend_writes(&chunk(2));
    assert_eq!(content(&*backend, &chunk(2)), None);
    fixture.break_writes(&group(3));
    let mut file = backend.begin(&group(3), "temporary").unwrap();
    file.append(b"new bytes").and_then(|()| file.place()).unwrap_err();
    drop(file);
    fixture.mend_writes(&group(3));
    assert_eq!(content(&*backend, &group(3)), None);
    assert_eq!(fixture.unfinished_count(), 0);
    put(&*backend, &chunk(2), b"new bytes");
    place_file(&*backend, &group(3), &[b"new bytes"]);
    assert_eq!(list(&*backend), BTreeSet::from([chunk(1), chunk(2), group(3)]));
}

fn a_barrier_covers_what_was_put_placed_and_used(fixture: &dyn Fixture) {
    let dead = fixture.open();
    put(&*dead, &chunk(1), b"by a dead run");
    place_file(&*dead, &group(2), &[b"also by a dead run"]);
    put(&*dead, &chunk(3), b"put by both");
    drop(dead);
    let backend = fixture.open();
    backend.use_existing(&chunk(1));
    backend.use_existing(&group(2));
    put(&*backend, &chunk(3), b"put by both");
    put(&*backend, &chunk(4), b"new");
    place_file(&*backend, &group(5), &[b"new, too"]);
    backend.barrier().unwrap();
    // A backup may need several barriers.
    put(&*backend, &chunk(6), b"later");
    backend.barrier().unwrap();
    fixture.lose_power();
    let expected = [chunk(1), group(2), chunk(3), chunk(4), group(5), chunk(6)];
    assert_eq!(list(&*fixture.open()), BTreeSet::from(expected));
}

fn a_replacement_needs_no_barrier(fixture: &dyn Fixture) {
    let backend = fixture.open();
    put(&*backend, &chunk(1), b"damaged");
    backend.barrier().unwrap();
    replace(&*backend, &chunk(1), b"good");
    fixture.lose_power();
    assert_eq!(content(&*fixture.open(), &chunk(1)).unwrap(), b"good");
}

fn several_threads_put_the_same_name(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let names: Vec<FileName> = (0..8).map(chunk).collect();
    let start = Barrier::new(4);
    thread::scope(|scope| {
        for number in 0..4u8 {
            let (backend, names, start) = (&*backend, &names, &start);
            scope.spawn(move || {
                start.wait();
                for (at, name) in names.iter().enumerate() {
                    backend.put(name, &[number; 3000], &format!("t.{number}.{at}"), false).unwrap();
                    let seen = content(backend, name).unwrap();
                    assert!(seen.len() == 3000 && seen.iter().all(|byte| *byte == seen[0]));
                }
            });
        }
    });
    assert_eq!(list(&*backend), names.into_iter().collect());
    assert_eq!(fixture.unfinished_count(), 0);
}

fn threads_read_while_others_replace_and_delete(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let is_done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = || {
            while !is_done.load(Ordering::Relaxed) {
                let Some(file) = backend.open(&chunk(1)).unwrap() else { continue };
                let mut bytes = vec![0; 5000];
                let length = file.read_at(&mut bytes, 0).unwrap();
                assert_eq!(length as u64, file.len(), "a file is whole");
                assert!(bytes[..length].iter().all(|byte| usize::from(*byte) == length - 4000));
            }
        };
        scope.spawn(reader);
        scope.spawn(reader);
        let writer = scope.spawn(|| {
            for number in 0..100u8 {
                replace(&*backend, &chunk(1), &vec![number; 4000 + usize::from(number)]);
                if number % 3 == 0 {
                    backend.delete(&chunk(1)).unwrap();
                }
            }
        });
        let result = writer.join();
        // Also after a failure, so that the readers end.
        is_done.store(true, Ordering::Relaxed);
        result.unwrap();
    });
}

/// Long enough that a lock which does not exclude is found out in nearly all runs; a right one passes in any time.
const MOMENT: Duration = Duration::from_millis(20);

fn a_shared_lock_keeps_out_only_the_exclusive_one(fixture: &dyn Fixture) {
    let (backend, other) = (fixture.open(), fixture.open());
    let is_released = AtomicBool::new(false);
    let shared = [backend.lock_shard(7, false).unwrap(), other.lock_shard(7, false).unwrap()];
    // Other shards are other locks.
    drop(backend.lock_shard(8, true).unwrap());
    thread::scope(|scope| {
        scope.spawn(|| {
            let _exclusive = other.lock_shard(7, true).unwrap();
            assert!(is_released.load(Ordering::SeqCst));
        });
        thread::sleep(MOMENT);
        let [first, second] = shared;
        drop(first);
        thread::sleep(MOMENT);
        is_released.store(true, Ordering::SeqCst);
        drop(second);
    });
    drop(backend.lock_shard(7, false).unwrap());
}

fn an_exclusive_lock_keeps_out_all_others(fixture: &dyn Fixture) {
    let backend = fixture.open();
    let (readers, writers) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for number in 0..4 {
            let (readers, writers) = (&readers, &writers);
            let backend = fixture.open();
            scope.spawn(move || {
                for round in 0..50 {
                    let exclusive = (number + round) % 2 == 0;
                    let _lock = backend.lock_shard(3, exclusive).unwrap();
                    let own = if exclusive { writers } else { readers };
                    let before = own.fetch_add(1, Ordering::SeqCst);
                    thread::yield_now();
                    assert!(!exclusive || before == 0);
                    let of_others = if exclusive { readers } else { writers };
                    assert_eq!(of_others.load(Ordering::SeqCst), 0);
                    own.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    drop(backend.lock_shard(3, true).unwrap());
}

fn empty_storage_can_be_used_and_is_not_away(fixture: &dyn Fixture) {
    let backend = fixture.open();
    assert!(!backend.is_away().unwrap());
    backend.check().unwrap();
    backend.prepare().unwrap();
    backend.prepare().unwrap();
    backend.barrier().unwrap();
    assert!(list(&*backend).is_empty());
}
