//! `backy config check`: what is in a configuration, or all that is wrong with it.

use std::fs;

use backy_testkit::{Run, World};

use crate::BINARY;

const EXAMPLE: &str = include_str!("../../sched/src/service/config/testdata/example.conf");

fn config_check(world: &World, text: &str) -> Run {
    fs::write(world.path("backy.conf"), text).expect("write the configuration");
    Run::of(&mut world.bare(&["config", "check", "-c", "backy.conf"]))
}

#[test]
fn the_example_is_fine_and_nothing_is_touched() {
    let world = World::new(BINARY);
    // Its callback is a program of another machine.
    let run = config_check(&world, EXAMPLE).expect(1);
    let problem = "backy.conf:5:5: global.backup-completed-callback: there is no such program\n";
    assert_eq!((run.text(), run.stderr.as_str()), (problem, ""));
    let example = EXAMPLE.replace("/usr/local/bin/backup-completed", "/bin/true");
    let run = config_check(&world, &example).expect(0);
    assert_eq!(run.text(), "OK: 3 jobs, 2 schedules, 1 peer\n");
    assert_eq!(run.stderr, "");
    let old = example.replace("    worker-limit: 3", "    telnet-port: 6023");
    let run =
        config_check(&world, &old).expect(0).says("backy.conf:4:5: global.telnet-port: it has no effect");
    assert!(run.text().starts_with("OK: "), "{run}");
}

#[test]
fn every_problem_is_a_line_with_its_place() {
    let world = World::new(BINARY);
    let wrong = EXAMPLE.replace("schedule: frequent", "schedule: frequnt").replace("keep: 24", "keep: 0");
    let run = config_check(&world, &wrong).expect(1);
    assert_eq!(
        run.text(),
        "backy.conf:24:32: schedules.frequent.hourly.keep: it must be a whole number from 1 to 4294967295\n\
         backy.conf:42:9: jobs.test03.schedule: there is no schedule \"frequnt\", did you mean frequent?\n"
    );
    let run = config_check(&world, &EXAMPLE.replace("jobs:", "jobs: [")).expect(1);
    assert!(run.text().starts_with("backy.conf:"), "{run}");
    config_check(&world, "").expect(1);
    Run::of(&mut world.bare(&["config", "check", "-c", "nothing"]))
        .expect(1)
        .says("cannot read the configuration");
    Run::of(&mut world.bare(&["config"])).expect(2);
}
