//! Every verdict, from histories and from facts.

use super::super::testing::{DAY, at, revision};
use super::*;
use backy_store::{Revision, Trust};

fn facts(revisions: &[Revision]) -> JobFacts {
    let job = JobName::parse("web01").unwrap();
    JobFacts { since: Some(at(-100 * DAY)), ..JobFacts::new(job, &Schedule::usual()) }
        .with_history(&History::of(revisions, at(0)), |server| server == "backup2")
}

fn kinds(facts: &JobFacts) -> Vec<Kind> {
    judge_job(facts, at(0)).iter().map(|problem| problem.kind).collect()
}

fn changed(secs: i64, change: fn(&mut Revision)) -> Revision {
    let mut made = revision(1, secs, "daily");
    change(&mut made);
    made
}

fn of_another_server(revision: &mut Revision) {
    revision.server = "backup2".into();
    revision.orig_tags.clone_from(&revision.tags);
}

#[test]
fn tags_that_another_server_does_not_know_of_are_told() {
    let foreign = changed(-DAY, of_another_server);
    assert!(kinds(&facts(std::slice::from_ref(&foreign))).is_empty());
    let retagged = Revision { tags: Default::default(), ..foreign };
    assert_eq!(kinds(&facts(&[retagged])), [Kind::Unsynced]);
}

#[test]
fn every_kind_has_the_word_that_json_has() {
    for kind in Kind::ALL {
        assert_eq!(serde_json::to_value(kind).unwrap(), kind.as_str());
        assert_eq!(serde_json::to_value(kind.severity()).unwrap(), kind.severity().as_str());
    }
    assert!(Kind::ALL.is_sorted());
}

#[test]
fn only_a_good_revision_makes_a_job_green() {
    let good = revision(1, -DAY, "daily");
    let old = revision(2, -2 * DAY, "daily");
    let distrust = |revision: &mut Revision| revision.trust = Trust::Distrusted;
    for (what, revisions, expected) in [
        ("good", vec![good.clone()], vec![]),
        ("verified", vec![changed(-DAY, |r| r.trust = Trust::Verified)], vec![]),
        ("of another server that counts", vec![changed(-DAY, of_another_server)], vec![]),
        (
            "of another server that does not",
            vec![
                old.clone(),
                changed(-DAY, |r| {
                    of_another_server(r);
                    r.server = "backup3".into();
                }),
            ],
            vec![Kind::Overdue],
        ),
        ("too old", vec![old.clone()], vec![Kind::Overdue]),
        ("none", vec![], vec![Kind::NeverRan]),
        ("partial", vec![changed(-DAY, |r| r.stats.duration_secs = None)], vec![Kind::NeverRan]),
        (
            "partial after old",
            vec![old.clone(), changed(-60, |r| r.stats.duration_secs = None)],
            vec![Kind::Overdue],
        ),
        ("distrusted", vec![changed(-DAY, distrust)], vec![Kind::NeverRan, Kind::NewestDistrusted]),
        ("distrusted after good", vec![good.clone(), changed(-60, distrust)], vec![Kind::NewestDistrusted]),
        (
            "distrusted after old",
            vec![old, changed(-60, distrust)],
            vec![Kind::Overdue, Kind::NewestDistrusted],
        ),
        ("good after distrusted", vec![changed(-2 * DAY, distrust), good.clone()], vec![Kind::Distrusted]),
        ("of the future", vec![revision(3, DAY, "daily")], vec![Kind::NeverRan, Kind::InFuture]),
        ("good before the future", vec![good, revision(3, DAY, "daily")], vec![Kind::InFuture]),
        ("a neighbour's clock", vec![revision(3, 200, "daily")], vec![]),
    ] {
        assert_eq!(kinds(&facts(&revisions)), expected, "{what}");
        let backwards: Vec<Revision> = revisions.iter().rev().cloned().collect();
        assert_eq!(kinds(&facts(&backwards)), expected, "{what}, in another order");
    }
}

#[test]
fn a_young_job_and_one_without_schedule_are_not_blamed() {
    let young = JobFacts { since: Some(at(-DAY)), ..facts(&[]) };
    assert!(kinds(&young).is_empty());
    assert!(kinds(&JobFacts { since: None, ..young.clone() }).is_empty());
    assert!(kinds(&JobFacts { shortest_secs: None, since: Some(at(-9 * DAY)), ..young }).is_empty());
}

#[test]
fn the_rest_is_told_beside_it() {
    let mut kept = revision(1, -DAY, "daily,manual:before upgrade");
    kept.stats.duration_secs = None;
    let odd = JobFacts { unreadable: 2, quarantine_reports: 1, ..facts(&[kept, revision(2, -60, "daily")]) };
    let lines: Vec<String> = judge_job(&odd, at(0)).into_iter().map(|problem| problem.message).collect();
    assert_eq!(
        lines,
        ["2 manifests cannot be read", "1 report in its quarantine", "kept by hand: manual:before upgrade"]
    );
    let failed = JobFacts { failure: Some("permission denied".to_owned()), ..odd };
    assert_eq!(kinds(&failed), [Kind::Unknown]);
}

#[test]
fn a_server_is_as_bad_as_its_worst_problem() {
    let named = |name: &str, facts: JobFacts| JobFacts { job: JobName::parse(name).unwrap(), ..facts };
    let good = named("good", facts(&[revision(1, -DAY, "daily")]));
    let late = named("late", facts(&[revision(1, -3 * DAY - 4 * 3600, "daily")]));
    let doubtful = named("doubtful", JobFacts { quarantine_reports: 3, ..good.clone() });
    let jobs = |list: &[&JobFacts]| list.iter().map(|&facts| facts.clone()).collect::<Vec<_>>();
    assert_eq!(judge(&jobs(&[&good]), Some(true), at(0)).severity(), Severity::Info);
    assert_eq!(judge(&jobs(&[&good]), None, at(0)).problems, []);
    assert_eq!(judge(&jobs(&[&good]), Some(false), at(0)).severity(), Severity::Warning);
    let report = judge(&jobs(&[&doubtful, &good, &late]), Some(false), at(0));
    assert_eq!((report.severity(), report.jobs, report.revisions), (Severity::Critical, 3, 3));
    let order: Vec<Kind> = report.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!(order, [Kind::Overdue, Kind::NoService, Kind::Quarantined]);
    assert_eq!(report.count(Kind::Overdue), 1);
    assert_eq!(
        report.problems[0].message,
        "overdue: the newest good revision is 3d 4h old, one is due every 1d"
    );
}

#[test]
fn facts_travel() {
    let facts = facts(&[revision(1, -DAY, "daily,manual:x")]);
    let text = serde_json::to_string(&facts).unwrap();
    assert_eq!(serde_json::from_str::<JobFacts>(&text).unwrap(), facts);
}

#[test]
fn ages_have_two_units() {
    for (secs, expected) in
        [(0.0, "0m"), (3599.0, "59m"), (3660.0, "1h 1m"), (90_000.0, "1d 1h"), (-5.0, "0m"), (f64::NAN, "0m")]
    {
        assert_eq!(age(secs), expected);
    }
}
