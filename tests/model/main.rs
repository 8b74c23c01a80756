//! Random programs of everything that a user, a crash and a bad disk do, against plain copies kept in memory.
//!
//! A failure prints the seed. `BACKY_MODEL_SEED` runs one seed, `BACKY_MODEL_SEEDS` and `BACKY_MODEL_STEPS` set how
//! many there are and how long each is; `BACKY_MODEL_DAYS` how many days pass on machines with content in common.

#![expect(clippy::disallowed_methods, reason = "tests handle files as anybody would")]

mod model;
mod year;

use backy_testkit::each;

use model::Model;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn any_sequence_of_commands_crashes_and_damage_keeps_every_revision() {
    let steps = number("BACKY_MODEL_STEPS", 60);
    let seeds: Vec<u64> = match std::env::var("BACKY_MODEL_SEED") {
        Ok(seed) => vec![seed.parse().expect("a seed is a number")],
        Err(_) => (1..=number("BACKY_MODEL_SEEDS", 8)).collect(),
    };
    each(&seeds, |&seed| {
        println!("seed: BACKY_MODEL_SEED={seed} BACKY_MODEL_STEPS={steps}");
        let mut model = Model::new(seed);
        for step in 0..steps {
            model.step(&format!("seed {seed}, step {step}"));
        }
        model.check_all(&format!("seed {seed}, the end"));
        println!("seed {seed}: {}", model.summary());
    });
}
