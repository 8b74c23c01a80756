//! Many virtual days on machines that have content in common at other offsets, with random retention and purges, against
//! plain copies kept in memory.

use std::sync::Arc;

use backy_testkit::{CHUNK, Image, Random, Run, World};

use crate::number;

const PAGE: usize = 4096;
const MACHINES: [&str; 3] = ["web01", "web02", "web03"];

/// The most revisions of a machine that are kept.
const KEPT_MAX: usize = 7;

struct Machine {
    job: &'static str,
    image: Image,
    kept: Vec<(String, Arc<Image>)>,
}

/// Pages that are the same for the same seed.
fn noise(seed: u64, pages: usize) -> Vec<u8> {
    let mut data = vec![0; pages * PAGE];
    Random::new(seed).fill(&mut data);
    data
}

impl Machine {
    /// One of machines that have the same content behind a different beginning.
    fn new(number: usize) -> Self {
        let mut data = noise(100 + number as u64, 3 * number);
        data.extend_from_slice(&noise(1, 2 * CHUNK / PAGE));
        data.resize(3 * CHUNK + 1000, 0);
        Self { job: MACHINES[number], image: Image(data), kept: Vec::new() }
    }

    /// Puts bytes over those at a random page, as far as the image goes.
    fn put(&mut self, random: &mut Random, bytes: &[u8]) {
        let image = &mut self.image.0;
        let at = random.below((image.len() / PAGE) as u64) as usize * PAGE;
        let length = bytes.len().min(image.len() - at);
        image[at..at + length].copy_from_slice(&bytes[..length]);
    }

    /// What happens on one day.
    fn change(&mut self, day: u64, random: &mut Random, other: &[u8]) {
        for _ in 0..random.below(14) {
            let seed = random.below(1000);
            self.put(random, &noise(seed, 1));
        }
        match random.below(12) {
            // An update that all machines get within a few days, each at a place of its own.
            0..=3 => self.put(random, &noise(5000 + day / 4, 40 + (day % 4 * 60) as usize)),
            // Something of another machine.
            4 | 5 => {
                let pages = (other.len() / PAGE) as u64;
                let from = random.below(pages) as usize * PAGE;
                let length = (random.below(300) as usize * PAGE).min(other.len() - from);
                self.put(random, &other[from..from + length]);
            }
            // Everything moves by a few pages.
            6 => {
                let pages = 1 + random.below(5) as usize;
                let mut moved = noise(random.below(1000), pages);
                let length = self.image.0.len();
                moved.extend_from_slice(&self.image.0[..length - pages * PAGE]);
                self.image.0 = moved;
            }
            7 => {
                let zeros = vec![0; random.below(400) as usize * PAGE];
                self.put(random, &zeros);
            }
            8 => {
                let length = 2 * CHUNK + random.below(2 * CHUNK as u64) as usize;
                self.image.0.resize(length, 0);
            }
            _ => {}
        }
    }
}

#[test]
fn days_with_retention_and_purges_come_back_exactly() {
    let days = number("BACKY_MODEL_DAYS", 20);
    let mut random = Random::from_env("BACKY_MODEL_SEED", 7);
    let world = World::new(env!("CARGO_BIN_EXE_backy"));
    world.configure(
        MACHINES[0],
        "source: {type: file, filename: web01.img}\nschedule: {daily: {interval: 1d, keep: 3}}\n",
    );
    for job in &MACHINES[1..] {
        world.add_job(job, &format!("{job}.img"));
    }
    let mut machines: Vec<Machine> = (0..MACHINES.len()).map(Machine::new).collect();
    for day in 0..days {
        for number in 0..machines.len() {
            let other = machines[(number + 1) % MACHINES.len()].image.0.clone();
            let machine = &mut machines[number];
            machine.change(day, &mut random, &other);
            machine.image.write(&world.path(&format!("{}.img", machine.job)));
            let made = Run::of(&mut world.command_for(machine.job, &["backup", "daily"])).expect(0);
            machine.kept.push((made.line(), Arc::new(machine.image.clone())));
            while machine.kept.len() > KEPT_MAX || machine.kept.len() > 1 && random.below(4) == 0 {
                let (old, _) = machine.kept.remove(random.below(machine.kept.len() as u64) as usize);
                Run::of(&mut world.command_for(machine.job, &["forget", "-r", &old])).expect(0);
            }
        }
        if random.below(2) == 0 {
            world.on_store(&["purge", "--now"]).expect(0);
        }
        let machine = random.pick(&machines);
        let (id, image) = random.pick(&machine.kept);
        let (run, found) = world.restore_of(machine.job, id);
        assert!(
            run.code() == 0 && found.as_ref() == Some(&**image),
            "day {day}, {}: {id}\n{run}",
            machine.job
        );
    }
    for machine in &machines {
        for (id, image) in &machine.kept {
            let (run, found) = world.restore_of(machine.job, id);
            assert!(
                run.code() == 0 && found.as_ref() == Some(&**image),
                "the end, {}: {id}\n{run}",
                machine.job
            );
        }
        Run::of(&mut world.command_for(machine.job, &["verify"])).expect(0);
    }
}
