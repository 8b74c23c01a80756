//! The model: what is on the source, and for every revision its bytes, its tags and whether it was forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backy_testkit::{CHUNK, Image, Random, Run, World};

const TAGS: [&str; 4] = ["daily", "weekly", "manual:a", "manual:b"];

/// The most revisions that are listed at a time; more only make the run longer.
const REVISIONS_MAX: usize = 9;

/// What is known of one revision.
#[derive(Clone, Debug)]
struct Kept {
    image: Arc<Image>,
    tags: BTreeSet<String>,
}

/// The program under test and what it should be.
pub(crate) struct Model {
    world: World,
    random: Random,
    image: Arc<Image>,
    revisions: BTreeMap<String, Kept>,
    /// Forgotten, in this order; a purge may have taken them when `purged` is set.
    forgotten: Vec<(String, Kept)>,
    counts: BTreeMap<&'static str, u64>,
    last: String,
}

impl Model {
    /// An empty job and an image.
    pub(crate) fn new(seed: u64) -> Self {
        let mut world = World::new(env!("CARGO_BIN_EXE_backy"));
        if seed.is_multiple_of(2) {
            world.set("BACKY_SYNCFS", "yes");
        }
        let image = Arc::new(Image::zeros(4 * CHUNK + 1000).words(0, seed).noise(2, seed));
        world.write_image(&image);
        let (revisions, forgotten, counts) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        Self { world, random: Random::new(seed), image, revisions, forgotten, counts, last: String::new() }
    }

    /// How often each thing was done.
    pub(crate) fn summary(&self) -> String {
        format!("{:?}", self.counts)
    }

    fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Does one random thing and checks what it touches.
    pub(crate) fn step(&mut self, when: &str) {
        let choice = self.random.below(100);
        match choice {
            0..=19 => self.edit(),
            20..=36 => self.backup(when),
            37..=41 => self.hide(when),
            42..=47 => self.change_tags(when),
            48..=55 => self.forget(when),
            56..=61 => self.undelete(when),
            62..=68 => self.purge(when),
            69..=72 => self.verify(when),
            73..=77 => self.damage(when),
            78..=89 => self.crash(when),
            _ => self.restore_one(when),
        }
        self.check_list(when);
    }

    fn tags(&mut self) -> BTreeSet<String> {
        let count = 1 + self.random.below(2);
        (0..count).map(|_| (*self.random.pick(&TAGS)).to_owned()).collect()
    }

    fn edit(&mut self) {
        self.count("edit");
        let mut image = (*self.image).clone();
        for _ in 0..=self.random.below(2) {
            let chunks = image.0.len().div_ceil(CHUNK).max(1) as u64;
            let whole = (image.0.len() / CHUNK) as u64;
            let last = image.0.len().saturating_sub(1) / CHUNK;
            // Few contents, so that the same chunk comes back.
            let (place, seed) = (self.random.below(chunks) as usize, self.random.below(12));
            image = match self.random.below(11) {
                0 | 1 if !image.0.is_empty() => image.words(place, seed),
                2 if !image.0.is_empty() => image.noise(place, seed),
                3 => image.zero(place.min(last)),
                7..=10 if !image.0.is_empty() => image.edit(place, seed),
                4 if whole > 1 => {
                    let (from, to) = (self.random.below(whole) as usize, self.random.below(whole) as usize);
                    image.copy(from, to)
                }
                5 => {
                    let length = self.random.below(6 * CHUNK as u64) as usize;
                    image.resize(length)
                }
                _ => {
                    let length = image.0.len() / 512 * 512;
                    image.resize(length)
                }
            };
        }
        self.image = Arc::new(image);
        self.world.write_image(&self.image);
    }

    fn backup(&mut self, when: &str) {
        if self.revisions.len() >= REVISIONS_MAX {
            return self.forget(when);
        }
        self.count("backup");
        let tags = self.tags();
        let run = self.run(&["backup", &join(&tags)], when, 0);
        self.commit(run.line(), tags, when);
    }

    fn commit(&mut self, id: String, tags: BTreeSet<String>, when: &str) {
        let kept = Kept { image: Arc::clone(&self.image), tags };
        self.world.must_restore(&id, &kept.image, when);
        assert!(self.revisions.insert(id, kept).is_none(), "{when}: an id came twice");
        let left = self.world.leftovers();
        assert!(left.is_empty(), "{when}: {left:?}");
    }

    fn any(&mut self) -> Option<String> {
        let ids: Vec<String> = self.revisions.keys().cloned().collect();
        (!ids.is_empty()).then(|| self.random.pick(&ids).clone())
    }

    fn change_tags(&mut self, when: &str) {
        let Some(id) = self.any() else { return };
        self.count("tags");
        let tags = self.tags();
        let present = self.revisions[&id].tags.clone();
        let (action, wanted) = match self.random.below(3) {
            0 => ("set", tags.clone()),
            1 => ("add", present.union(&tags).cloned().collect()),
            _ => ("remove", present.difference(&tags).cloned().collect()),
        };
        self.run(&["tags", action, &id, &join(&tags)], when, 0);
        self.revisions.get_mut(&id).expect("it was just there").tags = wanted;
    }

    fn forget(&mut self, when: &str) {
        let Some(id) = self.any() else { return };
        self.count("forget");
        self.run(&["forget", "-r", &id], when, 0);
        self.is_forgotten(&id);
    }

    fn is_forgotten(&mut self, id: &str) {
        let kept = self.revisions.remove(id).expect("it was listed");
        self.forgotten.push((id.to_owned(), kept));
    }

    fn undelete(&mut self, when: &str) {
        if self.forgotten.is_empty() {
            self.run(&["undelete", "-r", "last"], when, 1);
            return;
        }
        self.count("undelete");
        let place = self.random.below(self.forgotten.len() as u64) as usize;
        let (id, kept) = self.forgotten.remove(place);
        self.run(&["undelete", "-r", &id], when, 0);
        self.world.must_restore(&id, &kept.image, when);
        self.revisions.insert(id, kept);
    }

    fn purge(&mut self, when: &str) {
        if self.random.below(3) == 0 {
            self.count("purge, held");
            self.run(&["purge"], when, 0);
        } else {
            self.count("purge");
            self.run(&["purge", "--now"], when, 0);
            self.forgotten.clear();
        }
        if self.random.below(3) == 0 {
            self.check_all(when);
        }
    }

    fn verify(&mut self, when: &str) {
        self.count("verify");
        let run = self.run(&["verify", "-r", "all"], when, 0);
        assert_eq!(
            run.text().lines().filter(|line| line.ends_with(" good")).count(),
            self.revisions.len(),
            "{when}"
        );
    }

    fn restore_one(&mut self, when: &str) {
        if let Some(id) = self.any() {
            self.count("restore");
            self.world.must_restore(&id, &self.revisions[&id].image, when);
        }
    }

    /// Takes the job's directory, or its manifests, out of sight in some way; lets another job be backed up, forgotten
    /// and purged meanwhile; and puts everything back.
    fn hide(&mut self, when: &str) {
        self.count("hide");
        let (job, away) = (self.world.job(), self.world.path("away"));
        let other = |world: &World, words: &[&str]| {
            let run = Run::of(&mut world.command_for("db01", words));
            assert_eq!(run.code(), 0, "{when}: {run}");
        };
        if !self.world.store().join("db01").exists() {
            self.world.add_job("db01", "image.img");
        }
        let way = self.random.below(6);
        let files = |dir: &Path| -> Vec<PathBuf> {
            let mut files: Vec<PathBuf> = fs::read_dir(dir)
                .expect("list the job")
                .map(|entry| entry.expect("list the job").path())
                .collect();
            files.sort();
            files
        };
        let folder = self.world.store().join("folder");
        match way {
            // A part of the directory, as a copy has it that was begun.
            0 | 1 => {
                fs::create_dir(&away).expect("make a directory");
                for path in files(&job) {
                    let is_manifest = path.extension().is_some_and(|end| end != "map" && end != "log");
                    if is_manifest && (way == 0 || self.random.below(2) == 0) {
                        fs::rename(&path, away.join(path.file_name().expect("a name"))).expect("move a file");
                    }
                }
            }
            2 => {
                fs::create_dir(&folder).expect("make a folder");
                fs::rename(&job, folder.join("renamed")).expect("move the job");
            }
            _ => {
                fs::rename(&job, &away).expect("move the job");
                match way {
                    3 => fs::create_dir(&job).expect("make an empty mount point"),
                    4 => std::os::unix::fs::symlink("/nowhere", &job).expect("make a link"),
                    _ => {}
                }
            }
        }
        for _ in 0..=self.random.below(2) {
            other(&self.world, &["backup", "daily"]);
            other(&self.world, &["forget", "-r", "all"]);
            let run = self.world.on_store(&["purge", "--now"]);
            assert!(run.code() <= 1, "{when}: {run}");
        }
        match way {
            0 | 1 => {
                for path in files(&away) {
                    fs::rename(&path, job.join(path.file_name().expect("a name"))).expect("move a file back");
                }
                fs::remove_dir(&away).expect("remove a directory");
            }
            2 => {
                fs::rename(folder.join("renamed"), &job).expect("move the job back");
                fs::remove_dir(&folder).expect("remove the folder");
                // What was forgotten there could be seen, and was purged.
                self.forgotten_are_gone();
            }
            _ => {
                drop(fs::remove_dir_all(&job).or_else(|_| fs::remove_file(&job)));
                fs::rename(&away, &job).expect("move the job back");
            }
        }
        if way == 1 {
            self.forgotten_are_gone();
        }
        self.check_all(when);
    }

    /// A purge may have removed what was forgotten: asks the program what is left of it.
    fn forgotten_are_gone(&mut self) {
        let left = self.world.ok(&["undelete", "--json"]).json();
        let left: BTreeSet<String> = left["forgotten"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["id"].as_str().map(str::to_owned))
            .collect();
        self.forgotten.retain(|(id, _)| left.contains(id));
    }

    /// Spoils a chunk: verify says which revisions are bad, no wrong byte comes out, and backing up their images
    /// again heals all of them.
    fn damage(&mut self, when: &str) {
        // What a purge has not removed yet may be spoilt unnoticed; here it is about what is in use.
        self.run(&["purge", "--now"], when, 0);
        self.forgotten.clear();
        let chunks = self.world.chunks();
        if chunks.is_empty() || self.revisions.is_empty() {
            return;
        }
        self.count("damage");
        let path = self.random.pick(&chunks).clone();
        let bytes = fs::read(&path).expect("read a chunk");
        let mut spoilt = bytes.clone();
        match self.random.below(4) {
            0 => spoilt.truncate(bytes.len() / 2),
            1 => spoilt.clear(),
            2 => spoilt[40] ^= 1,
            _ => *spoilt.last_mut().expect("a chunk file is not empty") ^= 0x80,
        }
        match self.random.below(5) {
            0 => fs::remove_file(&path).expect("remove a chunk"),
            _ => fs::write(&path, spoilt).expect("write a chunk"),
        }
        let run = self.world.run(&["verify", "-r", "all"]);
        if run.code() == 0 {
            // A part of a base or group that no recipe needs, or a recipe whose chunk was written in full since: nobody misses it.
            // It is put back, or a later backup might need it.
            self.count("damage, not missed");
            self.check_all(when);
            fs::write(&path, bytes).expect("write a chunk");
            return;
        }
        let run = run.expect(1);
        let bad: Vec<String> =
            run.text().lines().filter_map(|line| line.strip_suffix(" bad")).map(str::to_owned).collect();
        assert!(!bad.is_empty(), "{when}: {run}");
        for id in self.revisions.keys() {
            let (run, image) = self.world.restore(id);
            let is_bad = bad.contains(id);
            // Another file can have what the damaged one lacks.
            let is_recovered = is_bad && run.stderr.contains("taken from another file");
            assert_eq!(run.code(), i32::from(is_bad && !is_recovered), "{when}: {run}");
            assert!(image.is_none() == (run.code() == 1), "{when}: {run}");
            assert!(image.is_none_or(|image| image == *self.revisions[id].image), "{when}: {run}");
        }
        let now = Arc::clone(&self.image);
        let mut healing = vec![now];
        healing.extend(bad.iter().map(|id| Arc::clone(&self.revisions[id].image)));
        for image in healing {
            self.image = image;
            self.world.write_image(&self.image);
            let id = self.run(&["backup", "manual:heal"], when, 0).line();
            self.commit(id, BTreeSet::from(["manual:heal".to_owned()]), when);
        }
        self.check_all(when);
        self.run(&["verify", "-r", "all"], when, 0);
        while self.revisions.len() > REVISIONS_MAX {
            self.forget(when);
        }
    }

    /// Kills something somewhere, then takes what is there for granted.
    fn crash(&mut self, when: &str) {
        self.count("crash");
        let tags = self.tags();
        let (tag_list, id) = (join(&tags), self.any());
        let id = id.as_deref().unwrap_or("none");
        let (words, points): (Vec<&str>, u64) = match self.random.below(4) {
            0 | 1 => (vec!["backup", &tag_list], 80),
            2 => (vec!["purge", "--now"], 25),
            _ => (vec!["forget", "-r", id], 3),
        };
        let action = if self.random.below(3) == 0 { "torn" } else { "kill" };
        let fault = format!("{action}:{}", 1 + self.random.below(points));
        let run = self.world.run_with_fault(&words, &fault);
        self.last = format!("{words:?} {fault}: {:?}", run.fault());
        assert!(run.was_killed() || run.code() <= 1, "{when}: {run}");
        if words[0] == "purge" {
            // What was forgotten may be gone or not.
            self.run(&["purge", "--now"], when, 0);
            self.forgotten.clear();
        }
        let listed = self.listed();
        if words[0] == "forget" && self.revisions.contains_key(id) && !listed.contains_key(id) {
            self.is_forgotten(id);
        }
        for id in listed.keys() {
            if !self.revisions.contains_key(id) {
                assert_eq!(words[0], "backup", "{when}: revision {id} came out of nothing");
                let kept = Kept { image: Arc::clone(&self.image), tags: tags.clone() };
                self.world.must_restore(id, &kept.image, when);
                self.revisions.insert(id.clone(), kept);
            }
        }
    }

    fn run(&mut self, words: &[&str], when: &str, code: i32) -> Run {
        let before = std::mem::replace(&mut self.last, format!("{words:?}"));
        let run = self.world.run(words);
        assert_eq!(run.code(), code, "{when}, after {before}: {run}");
        run
    }

    /// The ids that are listed, with their tags.
    fn listed(&self) -> BTreeMap<String, BTreeSet<String>> {
        let status = self.world.ok(&["status", "--json"]).json();
        let revisions = status["revisions"].as_array().expect("a list of revisions");
        revisions
            .iter()
            .map(|revision| {
                assert_eq!(revision["complete"], true, "an unfinished revision: {revision}");
                let tags = revision["tags"].as_array().expect("a list of tags").iter();
                let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
                (text(&revision["id"]), tags.map(text).collect())
            })
            .collect()
    }

    fn check_list(&self, when: &str) {
        let wanted: BTreeMap<_, _> =
            self.revisions.iter().map(|(id, kept)| (id.clone(), kept.tags.clone())).collect();
        assert_eq!(self.listed(), wanted, "{when}, after {}", self.last);
        let forgotten = self.world.ok(&["undelete", "--json"]).json();
        let found: BTreeSet<&str> = forgotten["forgotten"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|one| one["id"].as_str())
            .collect();
        let wanted: BTreeSet<&str> = self.forgotten.iter().map(|(id, _)| id.as_str()).collect();
        assert_eq!(found, wanted, "{when}, after {}", self.last);
    }

    /// Restores everything.
    pub(crate) fn check_all(&self, when: &str) {
        for (id, kept) in &self.revisions {
            self.world.must_restore(id, &kept.image, &format!("{when}, after {}", self.last));
        }
    }
}

fn join(tags: &BTreeSet<String>) -> String {
    tags.iter().map(String::as_str).collect::<Vec<_>>().join(",")
}
