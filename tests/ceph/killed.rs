//! What a restore leaves behind that was killed, and what the next one to the same image does about it.

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::cluster;
use crate::cluster::Change::Write;
use crate::cluster::{Cluster, Disk, noise};
use crate::restore::{content, names, new_disk};
use crate::scene::{Scene, WAYS};

const C: u64 = 4 << 20;
/// An id that could be one of ours.
const ID: &str = "MPSxF8qWSzaZzDJyRZCYhK";
/// An `rbd` that takes the first bytes of an import and the others when there is a file `go`.
const HESITANT: &str =
    "case $1 in import-diff) (head -c 2000000; until [ -e go ]; do sleep 0.05; done; cat) | $RBD \"$@\" ;;
    *) exec $RBD \"$@\" ;; esac";

/// A scene with one revision, its content, and a name to restore to.
fn scene(cluster: &Cluster, chunks: u64, way: &str) -> (Scene, Vec<u8>, Disk) {
    let (disk, mut scene) = Scene::of(cluster, chunks * C, way);
    disk.change(chunks * C, &[Write(0, noise(1, usize::try_from(chunks * C).unwrap() - 1000))]);
    let id = scene.backup(&disk);
    let expected = scene.expected[&id].clone();
    (scene, expected, new_disk(cluster))
}

fn start(scene: &Scene, new: &Disk) -> Child {
    let mut command = scene.world.command(&["restore", "--force", "--to", &to(new)]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

fn to(new: &Disk) -> String {
    format!("rbd:{}", new.spec())
}

/// The unfinished images.
fn unfinished(new: &Disk) -> Vec<String> {
    names(new).into_iter().filter(|name| *name != new.name).collect()
}

fn is_open(new: &Disk, image: &str) -> bool {
    let status = new.cluster.run("rbd", &["status", "--format", "json", &format!("rbd/{image}")], b"");
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
    status["watchers"].as_array().is_some_and(|watchers| !watchers.is_empty())
}

/// Waits until an unfinished image is open; `None` if the restore was quicker.
fn wait_until_filled(child: &mut Child, new: &Disk) -> Option<String> {
    let begun = Instant::now();
    loop {
        let found = unfinished(new).pop().filter(|image| is_open(new, image));
        if found.is_some() || child.try_wait().unwrap().is_some() {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "the restore does not come to writing");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The notes of restores in the store.
fn notes(scene: &Scene) -> usize {
    let entries = fs::read_dir(scene.world.store()).unwrap();
    entries
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".restoring-"))
        .count()
}

/// Kills a restore right after it has made its image and has started to fill it.
fn leave(scene: &Scene, new: &Disk) -> String {
    // The note takes four changes; the next one is of the session, and the image is open by then.
    let run = scene.world.run_with_fault(&["restore", "--force", "--to", &to(new)], "kill:5");
    assert!(run.was_killed(), "{run}");
    // `rbd` finds that nothing comes any more.
    std::thread::sleep(Duration::from_millis(500));
    unfinished(new).pop().unwrap()
}

#[test]
fn what_is_left_goes_with_the_next_restore_but_not_while_programs_of_the_dead_one_work() {
    let cluster = cluster!();
    let (mut scene, expected, new) = scene(&cluster, 4, "rbd");
    scene.replace_rbd(HESITANT);
    let mut child = start(&scene, &new);
    let left = wait_until_filled(&mut child, &new).unwrap();
    child.kill().unwrap();
    backy_testkit::ended(&mut child);
    scene.restore_rbd();
    let run = scene.world.ok(&["restore", "--to", &to(&new)]);
    run.says(&format!("another restore is filling rbd/{left}"));
    assert_eq!(unfinished(&new), std::slice::from_ref(&left), "its program may still write");
    fs::write(scene.world.path("go"), "").unwrap();
    std::thread::sleep(Duration::from_secs(1));
    let run = scene.world.ok(&["restore", "--force", "--to", &to(&new)]);
    run.says(&format!("removed rbd/{left}, which a restore that was killed had left"));
    assert!(content(&new) == expected);
    assert_eq!((unfinished(&new).len(), notes(&scene)), (0, 0));
    assert!(scene.log().contains("unfinished-image-removed"));
}

/// The dead client seems to have the image open for half a minute.
#[test]
fn what_librbd_has_left_open_goes_too() {
    let cluster = cluster!();
    let (scene, expected, new) = scene(&cluster, 24, "librbd");
    // It may come to its end before it is killed.
    let kill_one = || {
        let mut child = start(&scene, &new);
        let found = wait_until_filled(&mut child, &new);
        drop(child.kill());
        backy_testkit::ended(&mut child);
        found.filter(|image| unfinished(&new).contains(image))
    };
    let left = (0..20).find_map(|_| kill_one()).expect("one of many restores is killed in time");
    let run = scene.world.ok(&["restore", "--force", "--to", &to(&new)]);
    run.says(&format!("removed rbd/{left}"));
    assert!(content(&new) == expected);
    assert_eq!((unfinished(&new).len(), notes(&scene)), (0, 0));
}

#[test]
fn killed_at_any_change_of_the_store() {
    let cluster = cluster!();
    let (scene, expected, new) = scene(&cluster, 1, "rbd");
    let words = ["restore", "--force", "--to", &to(&new)];
    let mut at = 1;
    while scene.world.run_with_fault(&words, &format!("kill:{at}")).was_killed() {
        // What `rbd` was doing comes to its end.
        std::thread::sleep(Duration::from_millis(500));
        scene.world.ok(&words);
        assert!(content(&new) == expected, "killed at change {at}");
        assert!(unfinished(&new).is_empty(), "killed at change {at}");
        at += 1;
    }
    assert!(at > 5, "only {at} changes");
    assert_eq!(notes(&scene), 0);
}

#[test]
fn restores_to_the_same_image_leave_each_other_alone() {
    let cluster = cluster!();
    for way in WAYS {
        let (mut first, expected, new) = scene(&cluster, 4, "rbd");
        let (second, other, _) = scene(&cluster, 2, way);
        first.world.ok(&["restore", "--to", &to(&new)]);
        first.replace_rbd(HESITANT);
        let mut child = start(&first, &new);
        let filled = wait_until_filled(&mut child, &new).unwrap();
        first.restore_rbd();
        let words = ["restore", "--force", "--to", &to(&new)];
        first.world.ok(&words).says(&format!("another restore is filling rbd/{filled}"));
        assert!(content(&new) == expected);
        // As on another host: the stores do not know of each other.
        let run = second.world.ok(&words).says("a restore that this store does not know");
        assert!(run.stderr.contains(&format!("`rbd rm rbd/{filled}` removes it")), "{run}");
        assert!(content(&new) == other);
        assert_eq!(unfinished(&new), [filled]);
        fs::write(first.world.path("go"), "").unwrap();
        assert!(backy_testkit::ended(&mut child).success());
        assert!(content(&new) == expected, "the one that was late has replaced it");
        assert_eq!((unfinished(&new).len(), notes(&first), notes(&second)), (0, 0, 0));
    }
}

#[test]
fn images_that_only_look_alike_stay() {
    let cluster = cluster!();
    let (scene, _, new) = scene(&cluster, 1, "auto");
    let left = leave(&scene, &new);
    let others = [
        format!("{}.unfinished-{ID}", new.name),
        format!("{}.unfinished-{ID}x", new.name),
        format!("{}.unfinished-mine", new.name),
        format!("{left}.unfinished-{ID}"),
        format!("{left}-old"),
    ]
    .map(|name| Disk { cluster: cluster.clone(), name });
    for other in &others {
        cluster.rbd(&["create", "--size", "1M", &other.spec()]);
    }
    let run = scene.world.ok(&["restore", "--to", &to(&new)]).says(&format!("removed rbd/{left}"));
    assert!(run.stderr.contains(&format!("`rbd rm {}`", others[0].spec())), "{run}");
    assert_eq!(run.stderr.matches("rbd rm").count(), 1, "{run}");
    let mut expected: Vec<String> = others.iter().map(|other| other.name.clone()).collect();
    expected.sort();
    let mut there = unfinished(&new);
    there.sort();
    assert_eq!(there, expected);
}

#[test]
fn that_nothing_can_be_removed_or_noted_fails_no_restore() {
    let cluster = cluster!();
    let (mut scene, expected, new) = scene(&cluster, 1, "rbd");
    let left = Disk { cluster: cluster.clone(), name: leave(&scene, &new) };
    left.make_snapshot("mine");
    let words = ["restore", "--force", "--to", &to(&new)];
    let run = scene.world.ok(&words).says(&format!("cannot remove {}", left.spec()));
    assert!(run.stderr.contains(&format!("`rbd rm {}`", left.spec())), "{run}");
    scene.replace_rbd("case $1 in ls) exit 5 ;; *) exec $RBD \"$@\" ;; esac");
    scene.world.ok(&words).says("cannot look for what killed restores have left");
    scene.restore_rbd();
    assert_eq!(unfinished(&new), std::slice::from_ref(&left.name));
    left.remove_snapshot("mine");
    let run = scene.world.run_with_fault(&words, "enospc:1").expect(0).says("restore-not-noted");
    assert!(run.stderr.contains(&format!("removed {}", left.spec())), "{run}");
    assert!(content(&new) == expected);
    assert_eq!((unfinished(&new).len(), notes(&scene)), (0, 0));
}

/// `rbd` was killed, or gave up, after the image was made: nothing but the note knows of it.
#[test]
fn an_image_stays_known_whose_making_seemed_to_fail() {
    let cluster = cluster!();
    let (mut scene, expected, new) = scene(&cluster, 1, "rbd");
    for end in ["kill -9 $$", "exit 110"] {
        scene.replace_rbd(&format!("case $1 in create) $RBD \"$@\"; {end} ;; *) exec $RBD \"$@\" ;; esac"));
        scene.world.run(&["restore", "--to", &to(&new)]).expect(1);
        let left = unfinished(&new).pop().unwrap();
        assert_eq!(notes(&scene), 1);
        scene.restore_rbd();
        let run = scene.world.ok(&["restore", "--force", "--to", &to(&new)]);
        run.says(&format!("removed rbd/{left}, which a restore that was killed had left"));
        assert!(content(&new) == expected);
        assert_eq!((unfinished(&new).len(), notes(&scene)), (0, 0));
        new.remove();
    }
    // Here there is none, and no note of it.
    scene.world.run(&["restore", "--to", "rbd:no-such-pool/x"]).expect(1);
    assert_eq!(notes(&scene), 0);
}

/// While one restore waits for Ceph to let go of what a dead one has left.
#[test]
fn tidying_up_keeps_nobody_from_what_is_left_of_another_image() {
    let cluster = cluster!();
    let (mut scene, _, new) = scene(&cluster, 1, "rbd");
    let other = new_disk(&cluster);
    let (left, left_of_other) = (leave(&scene, &new), leave(&scene, &other));
    scene.replace_rbd(
        "case $1 in rm) touch waits; while [ ! -e go ]; do sleep 0.05; done ;; esac; exec $RBD \"$@\"",
    );
    let mut child = start(&scene, &new);
    let begun = Instant::now();
    while !scene.world.path("waits").exists() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not come to removing");
        std::thread::sleep(Duration::from_millis(20));
    }
    scene.restore_rbd();
    let run = scene.world.ok(&["restore", "--to", &to(&other)]);
    run.says(&format!("removed rbd/{left_of_other}"));
    fs::write(scene.world.path("go"), "").unwrap();
    assert!(backy_testkit::ended(&mut child).success());
    assert!(!unfinished(&new).contains(&left));
    assert_eq!(notes(&scene), 0);
}

#[test]
fn what_is_gone_is_not_said_to_be_there() {
    let cluster = cluster!();
    let (mut scene, _, new) = scene(&cluster, 1, "rbd");
    let left = leave(&scene, &new);
    // The list has one that has its name by now. When the image of the dead restore goes, its note cannot.
    let (ended, store) = (format!("{}.unfinished-{ID}", new.name), scene.world.store());
    scene.replace_rbd(&format!(
        "case $1 in ls) $RBD \"$@\" | sed 's/^\\[/[\"{ended}\",/' ;;
        rm) $RBD \"$@\"; for note in {}/.restoring-*; do rm \"$note\"; mkdir \"$note\"; done ;;
        *) exec $RBD \"$@\" ;; esac",
        store.display()
    ));
    let run = scene.world.ok(&["restore", "--to", &to(&new)]).says(&format!("removed rbd/{left}"));
    let run = run.says("restore-note-not-removed");
    let refused = format!("cannot remove rbd/{left}");
    assert!(!run.stderr.contains(&refused) && !run.stderr.contains(&ended), "{run}");
    assert!(unfinished(&new).is_empty());
}

/// Between the end of the old image and the new name, what a dead restore leaves is all there is.
#[test]
fn what_may_be_the_only_copy_stays_until_a_restore_ends_well() {
    let cluster = cluster!();
    for way in WAYS {
        let (mut scene, expected, new) = scene(&cluster, 2, way);
        let words = ["restore", "--force", "--to", &to(&new)];
        scene.world.ok(&words);
        scene.replace_rbd("case $1 in rename) kill -9 $PPID ;; *) exec $RBD \"$@\" ;; esac");
        assert!(scene.world.run(&words).was_killed());
        scene.restore_rbd();
        let left = unfinished(&new).pop().unwrap();
        assert_eq!(names(&new), std::slice::from_ref(&left), "the old one is gone");
        let last = scene.world.chunks().pop().unwrap();
        let whole = fs::read(&last).unwrap();
        fs::remove_file(&last).unwrap();
        let spared = format!("rbd/{left}, which a restore has left, may be whole");
        scene.world.run(&words).expect(1).says(&spared);
        scene.world.run(&["restore", "--salvage", "--to", &to(&new)]).expect(1).says(&spared);
        new.remove();
        let left = Disk { cluster: cluster.clone(), name: left };
        assert!(content(&left) == expected);
        assert_eq!((names(&new), notes(&scene)), (vec![left.name.clone()], 1));
        fs::write(&last, whole).unwrap();
        scene.world.ok(&words).says(&format!("removed {}", left.spec()));
        assert!(content(&new) == expected);
        assert_eq!((unfinished(&new).len(), notes(&scene)), (0, 0));
    }
}

#[test]
fn an_image_that_cannot_get_its_name_is_whole_and_stays() {
    let cluster = cluster!();
    for way in WAYS {
        let (mut scene, expected, new) = scene(&cluster, 2, way);
        let words = ["restore", "--force", "--to", &to(&new)];
        scene.world.ok(&words);
        scene.replace_rbd("case $1 in rename) exit 110 ;; *) exec $RBD \"$@\" ;; esac");
        let run = scene.world.run(&words).expect(1).says("whole-image-not-renamed");
        let left = Disk { cluster: cluster.clone(), name: unfinished(&new).pop().unwrap() };
        let rename = ["rename", &left.spec(), &new.spec()];
        assert!(run.stderr.contains(&rename.join(" ")), "{run}");
        scene.restore_rbd();
        cluster.rbd(&rename);
        assert!(content(&new) == expected);
        scene.world.ok(&words);
        assert_eq!((unfinished(&new).len(), notes(&scene)), (0, 0));
    }
}
