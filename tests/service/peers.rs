//! Two services with the same job.

use backy_testkit::Run;
use serde_json::Value;

use super::server::{Server, until};
use super::write_image;

/// The servers of a job's revisions, oldest first; empty for those that are here.
fn servers(server: &Server, job: &str) -> Vec<String> {
    let run = Run::of(&mut server.world.command_for(job, &["status", "--json"]));
    if run.code() != 0 {
        return Vec::new();
    }
    let list = run.json();
    let server = |revision: &Value| revision["server"].as_str().unwrap_or_default().to_owned();
    list["revisions"].as_array().into_iter().flatten().map(server).collect()
}

#[test]
fn the_server_with_more_revisions_backs_up_and_the_other_follows_until_it_is_gone() {
    let mut leader = Server::new();
    write_image(&leader.world, "image1", 1);
    leader.configure(&[("vm1", "image1", "quick")]);
    leader.start();
    until("the leader has backups", || leader.revisions("vm1").len() > 2);

    let mut follower = Server::new().with_peer("leader", &leader);
    write_image(&follower.world, "image1", 1);
    follower.configure(&[("vm1", "image1", "quick")]);
    follower.start();
    until("its revisions are known", || servers(&follower, "vm1").len() > 2);
    let seen = servers(&follower, "vm1");
    assert!(seen.iter().all(|server| server == "leader"), "{seen:?}");
    // The job is backed up there, so it is green here.
    until("it is green", || follower.check().code() == 0);
    let table = Run::of(&mut follower.world.command_for("vm1", &["status"])).expect(0);
    assert!(table.text().contains("leader"), "{table}");

    assert_eq!(leader.stop(), Some(0));
    until("it does its backups itself", || servers(&follower, "vm1").iter().any(String::is_empty));
    assert!(follower.log().contains("leader/asked-the-neighbours"), "{}", follower.log());
    Run::of(&mut follower.world.command_for("vm1", &["verify", "-r", "local"])).expect(0);
    let (run, restored) = follower.world.restore_of("vm1", "last");
    assert!(run.code() == 0 && restored.is_some(), "{run}");
}

#[test]
fn a_job_that_moved_expires_its_old_revisions_on_the_old_server() {
    let mut old = Server::new();
    write_image(&old.world, "image1", 1);
    old.configure(&[("vm1", "image1", "quick")]);
    old.start();
    until("the old server has backups", || old.revisions("vm1").len() > 2);
    old.configure(&[]);
    old.client(&["reload"]).expect(0);
    until("its round is over", || old.entry("vm1")["status"] == "Dead");
    let before = old.revisions("vm1");

    let mut new = Server::new().with_peer("old", &old);
    write_image(&new.world, "image1", 1);
    new.configure(&[("vm1", "image1", "quick")]);
    new.start();
    until("the old revisions are known", || servers(&new, "vm1").iter().any(|server| server == "old"));
    until("old ones are expired there", || old.revisions("vm1").len() < before.len());
    assert!(servers(&new, "vm1").iter().any(String::is_empty), "and the job is backed up here");
    assert_eq!(new.stop(), Some(0));
    assert_eq!(old.stop(), Some(0));
}
