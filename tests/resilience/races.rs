//! Runs beside each other: two backups of one job, purges beside backups, restores and forgets that share chunks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use backy_testkit::{CHUNK, Image, Random, Run, Stopped, World, every};

use crate::scene::{BINARY, committed, recovers, scene};

/// How long the jobs run beside each other; `BACKY_TEST_RACE_SECS` for longer.
fn race_time() -> Duration {
    let secs = std::env::var("BACKY_TEST_RACE_SECS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(secs.unwrap_or(8))
}

#[test]
fn a_second_backup_of_a_job_is_refused_and_the_first_is_exact() {
    let scene = scene();
    every(|number| {
        let mut world = scene.world.copy();
        let stop = format!("stop:{}", number * 5);
        let Ok(stopped) = Stopped::start(world.command(&["backup", "daily"]).env("BACKY_FAULT", stop)) else {
            return false;
        };
        let second = world.run(&["backup", "daily"]);
        // Before the lock is taken and after it is released nobody is in the way.
        if second.code() == 0 {
            world.expected.insert(second.line(), Arc::clone(&scene.next));
        } else {
            second.expect(3).says("job web01");
        }
        let first = stopped.finish().expect(0);
        world.expected.insert(first.line(), Arc::clone(&scene.next));
        recovers(&mut world, &scene.next, &format!("stopped at change {number}"));
        true
    });
}

/// Lets a thread end, or come to where the command that stands still holds it up.
fn go_as_far_as_it_can<T>(thread: &thread::ScopedJoinHandle<'_, T>) {
    let begun = Instant::now();
    while !thread.is_finished() && begun.elapsed() < Duration::from_millis(300) {
        thread::yield_now();
    }
}

#[test]
fn a_purge_while_a_backup_stands_still_anywhere_takes_nothing_of_it() {
    let mut scene = scene();
    // The backup will want chunks that only the forgotten revision had.
    let next = Arc::new((*scene.oldest_image()).clone().words(2, 77).edit(0, 78));
    scene.world.write_image(&next);
    scene.world.ok(&["forget", "-r", "first"]);
    scene.world.expected.remove(&scene.first);
    let trials = every(|number| {
        let mut world = scene.world.copy();
        let mut command = world.command(&["backup", "daily", "--threads", "1"]);
        let Ok(stopped) = Stopped::start(command.env("BACKY_FAULT", format!("stop:{number}"))) else {
            return false;
        };
        let backup = thread::scope(|scope| {
            // A backup that stands still between log and look holds the purge up there; then it has to go on first.
            let purge = scope.spawn(|| world.on_store(&["purge", "--now"]));
            go_as_far_as_it_can(&purge);
            let backup = stopped.finish().expect(0);
            purge.join().unwrap().expect(0);
            backup
        });
        world.expected.insert(backup.line(), Arc::clone(&next));
        recovers(&mut world, &next, &format!("purge at {:?}", backup.fault()));
        true
    });
    assert!(trials > 20, "{trials}");
}

#[test]
fn a_backup_keeps_the_chunks_of_its_base_when_that_is_purged_meanwhile() {
    let scene = scene();
    let trials = every(|number| {
        let mut world = scene.world.copy();
        let mut command = world.command(&["backup", "daily", "--threads", "1"]);
        let Ok(stopped) = Stopped::start(command.env("BACKY_FAULT", format!("stop:{number}"))) else {
            return false;
        };
        let backup = thread::scope(|scope| {
            let purge = scope.spawn(|| {
                world.ok(&["forget", "-r", &format!("{},{}", scene.first, scene.second)]);
                world.on_store(&["purge", "--now"]).expect(0);
            });
            go_as_far_as_it_can(&purge);
            let backup = stopped.finish();
            purge.join().unwrap();
            backup
        });
        let when = format!("purge at {:?}", backup.fault());
        assert_eq!(backup.code(), 0, "{when}: {backup}");
        world.expected = BTreeMap::from([(backup.line(), Arc::clone(&scene.next))]);
        recovers(&mut world, &scene.next, &when);
        true
    });
    assert!(trials > 20, "{trials}");
}

#[test]
fn a_backup_while_a_purge_stands_still_anywhere_has_all_its_chunks() {
    let mut scene = scene();
    let next = Arc::new((*scene.oldest_image()).clone().words(2, 77).edit(0, 78));
    scene.world.write_image(&next);
    scene.world.ok(&["forget", "-r", "first"]);
    scene.world.expected.remove(&scene.first);
    let trials = every(|number| {
        let mut world = scene.world.copy();
        let mut command = world.command(&["purge", "--now"]);
        let Ok(stopped) = Stopped::start(command.env("BACKY_FAULT", format!("stop:{number}"))) else {
            return false;
        };
        let (backup, purge) = thread::scope(|scope| {
            let backup = scope.spawn(|| world.run(&["backup", "daily"]));
            go_as_far_as_it_can(&backup);
            let purge = stopped.finish().expect(0);
            (backup.join().unwrap(), purge)
        });
        let when = format!("backup at {:?}", purge.fault());
        if backup.code() == 3 {
            // The purge was just tidying up in the job.
            committed(&mut world, &next, &when);
        } else {
            world.expected.insert(backup.expect(0).line(), Arc::clone(&next));
        }
        recovers(&mut world, &next, &when);
        true
    });
    assert!(trials > 8, "{trials}");
}

const JOBS: [&str; 3] = ["web01", "web02", "web03"];

/// One of 40 images that share their chunks.
fn shared(number: u64) -> Image {
    let mut random = Random::new(number);
    // The last chunks differ little: the first backup of a job leans on another job's disk there.
    let image = (0..6).fold(Image::zeros(6 * CHUNK), |image, place| image.words(place, random.below(4)));
    // Deltas on bases that other jobs make, use and forget.
    (0..6).fold(image, |image, place| match random.below(3) {
        0 => image,
        _ => image.edit(place, random.below(4)),
    })
}

/// One job: makes revisions, forgets some, restores some. Counts what it did.
fn live(world: &World, job: &str, seed: u64, until: Instant, done: &AtomicU64) -> BTreeMap<String, u64> {
    let mut random = Random::new(seed);
    let mut revisions: BTreeMap<String, u64> = BTreeMap::new();
    while Instant::now() < until {
        let number = random.below(40);
        let run = |words: &[&str]| Run::of(&mut world.command_for(job, words));
        match random.below(4) {
            0 | 1 => {
                shared(number).write(&world.path(&format!("{job}.img")));
                let made = run(&["backup", "daily"]);
                // A purge looks into the job for a moment.
                if made.code() != 3 {
                    revisions.insert(made.expect(0).line(), number);
                }
            }
            2 if revisions.len() > 1 => {
                let ids: Vec<String> = revisions.keys().cloned().collect();
                let id = random.pick(&ids);
                run(&["forget", "-r", id]).expect(0);
                revisions.remove(id);
            }
            _ => {
                let ids: Vec<String> = revisions.keys().cloned().collect();
                if ids.is_empty() {
                    continue;
                }
                let id = random.pick(&ids);
                let (restored, image) = world.restore_of(job, id);
                restored.expect(0);
                assert!(
                    image == Some(shared(revisions[id])),
                    "{job}: {id} restored to other bytes beside a purge"
                );
            }
        }
        done.fetch_add(1, Ordering::Relaxed);
    }
    revisions
}

#[test]
fn jobs_that_share_chunks_lose_none_to_purges_beside_them() {
    let mut seed = Random::from_env("BACKY_TEST_SEED", 11);
    let world = World::new(BINARY);
    world.configure(
        "web01",
        "source: {type: file, filename: web01.img}\nschedule: {daily: {interval: 1d, keep: 3}}\n",
    );
    for job in &JOBS[1..] {
        world.add_job(job, &format!("{job}.img"));
    }
    let until = Instant::now() + race_time();
    let (steps, purges, over) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let all = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let jobs: Vec<_> = JOBS
            .iter()
            .map(|job| {
                let (seed, world, steps, all) = (seed.bits(), &world, &steps, &all);
                scope.spawn(move || {
                    let revisions = live(world, job, seed, until, steps);
                    all.lock().unwrap().push((job, revisions));
                })
            })
            .collect();
        let purging = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let run = world.on_store(&["purge", "--now"]);
                assert_eq!(run.code(), 0, "{run}");
                purges.fetch_add(1, Ordering::Relaxed);
            }
        });
        let ended: Vec<_> = jobs.into_iter().map(thread::ScopedJoinHandle::join).collect();
        over.store(true, Ordering::Relaxed);
        purging.join().unwrap();
        for end in ended {
            end.unwrap();
        }
    });
    for (job, revisions) in all.into_inner().unwrap() {
        for (id, number) in revisions {
            let (run, image) = world.restore_of(job, &id);
            assert!(run.code() == 0 && image == Some(shared(number)), "{job}: {id} is lost\n{run}");
        }
    }
    println!("{} steps beside {} purges", steps.into_inner(), purges.into_inner());
}
