//! Retention: which tags fall, which revisions go, and why. Pure: revisions, rules and a time in, a plan out;
//! a dry run shows the plan, the real run applies the same value.
//!
//! 1. A tag of the schedule falls when the revision is older than `keep` intervals **and** at least `keep`
//!    newer revisions carry the tag. A revision exactly at the limit keeps it. Newer ones count when they
//!    are complete, not distrusted and not dated in the future, so neither damage nor a clock that jumps
//!    makes good ones fall. What is newer, `backy_store::revision::order` says.
//!    For a revision that is here only such count as are here: what another server says that it
//!    has, true or not, takes nothing away here. For the note of another server's revision all count.
//! 2. A tag that the schedule does not know falls, unless it is manual. Manual tags are never touched.
//! 3. A local, complete revision without tags goes.
//!
//! Suspicious revisions, whose source was empty, cut off or another disk and was not accepted, count for each other and for
//! nothing else: good revisions are judged as if the suspicious ones were not there. So a source that is wrong for months
//! costs no good revision, and the suspicious ones do not pile up.
//!
//! What no rule can do, because deleting too much is the commonest loss:
//!
//! - An empty schedule, and a job without any trusted revision, lets nothing expire.
//! - The last trusted revision of a job that is not suspicious stays, without tags if need be.
//! - Incomplete revisions are neither counted nor touched: they belong to a running backup or to the next
//!   one.
//! - One run changes at most two or a fifth (rounded up) of the job's revisions, whichever is more, oldest
//!   first, unless forced: as changed counts a revision that goes or loses a tag that is not in the
//!   schedule, for that is what a misspelt schedule does. The others are put off whole and keep their tags,
//!   so that correcting the schedule saves them.
//!
//! With the same `now` a second run removes only what the first put off; when nothing was put off, nothing.

use std::collections::{BTreeMap, BTreeSet};

use backy_store::revision::order;
use backy_store::{Revision, RevisionId, Tag, Timestamp, Trust};

use super::{Rule, Schedule, interval};

/// Revisions that every run may change, however few the job has.
const CHANGED_MIN: usize = 2;
/// The part of a job's revisions that one run may change: one of so many.
const CHANGED_PART: usize = 5;

/// What expiry would do with one revision and why.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Which.
    pub revision: Revision,
    /// The tags that it loses; those it has, when it goes.
    pub lost_tags: BTreeSet<Tag>,
    /// Whether it goes.
    pub removed: bool,
    /// One line each, for people.
    pub reasons: Vec<String>,
}

/// Decisions for every revision of a job, oldest first.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One for each revision, kept ones too.
    pub decisions: Vec<Decision>,
    /// Why the plan stops short of what the schedule alone would do.
    pub held_back: Vec<String>,
}

/// Returns what to do with `revisions` (in order, oldest first) at the time `now`. `force` lifts the bound on one
/// run, nothing else.
pub fn plan(revisions: &[Revision], schedule: &Schedule, now: Timestamp, force: bool) -> Plan {
    let stays = |why: &str| Plan {
        decisions: revisions.iter().map(|revision| Decision::stays(revision, why)).collect(),
        held_back: if revisions.is_empty() { Vec::new() } else { vec![why.to_owned()] },
    };
    if schedule.rules.is_empty() {
        return stays("the schedule is empty: nothing expires");
    }
    if !revisions.iter().any(is_trusted_here) {
        return stays("the job has no complete and trusted revision: nothing expires");
    }
    let mut plan = Plan { decisions: judge_all(revisions, schedule, now), held_back: Vec::new() };
    hold_last_trusted(&mut plan);
    if !force {
        put_off(&mut plan, schedule);
    }
    plan
}

impl Decision {
    fn stays(revision: &Revision, why: &str) -> Self {
        let reasons = vec![why.to_owned()];
        Self { revision: revision.clone(), lost_tags: BTreeSet::new(), removed: false, reasons }
    }
}

/// Whether a revision holds the place of an older one with the same tag, given those that are dated in the future.
fn counts(revision: &Revision, ahead: &BTreeSet<&RevisionId>) -> bool {
    revision.is_clean() && revision.trust != Trust::Distrusted && !ahead.contains(&revision.id)
}

/// Whether the job could be restored from this revision.
pub(crate) fn is_trusted_here(revision: &Revision) -> bool {
    revision.is_clean() && revision.is_local() && revision.trust != Trust::Distrusted
}

/// By tag, the number of newer revisions that carry it.
#[derive(Default)]
struct Newer<'r> {
    good: BTreeMap<&'r Tag, u32>,
    /// The suspicious ones, too.
    all: BTreeMap<&'r Tag, u32>,
}

impl<'r> Newer<'r> {
    fn add(&mut self, revision: &'r Revision) {
        for tag in &revision.tags {
            *self.all.entry(tag).or_default() += 1;
            if !revision.is_suspicious() {
                *self.good.entry(tag).or_default() += 1;
            }
        }
    }
}

fn judge_all(revisions: &[Revision], schedule: &Schedule, now: Timestamp) -> Vec<Decision> {
    let dated = order::dated(revisions, now);
    let ahead = dated.iter().filter(|one| one.is_ahead).map(|one| &one.revision.id).collect();
    // By tag, how many newer revisions carry it: the good ones, and the suspicious ones with them; of those that are here,
    // and of all.
    let (mut here, mut anywhere) = (Newer::default(), Newer::default());
    let mut decisions = Vec::with_capacity(revisions.len());
    for revision in revisions.iter().rev() {
        let newer = if revision.is_local() { &here } else { &anywhere };
        let newer = if revision.is_suspicious() { &newer.all } else { &newer.good };
        decisions.push(judge(revision, newer, schedule, now));
        if counts(revision, &ahead) {
            anywhere.add(revision);
            if revision.is_local() {
                here.add(revision);
            }
        }
    }
    decisions.reverse();
    decisions
}

fn judge(revision: &Revision, newer: &BTreeMap<&Tag, u32>, schedule: &Schedule, now: Timestamp) -> Decision {
    if !revision.is_clean() {
        return Decision::stays(revision, "stays: incomplete, the next backup clears it away");
    }
    let mut lost_tags = BTreeSet::new();
    let mut reasons = Vec::new();
    for tag in &revision.tags {
        let (falls, why) = match schedule.rules.get(tag) {
            _ if tag.is_manual() => (false, "manual tags are never taken away".to_owned()),
            None => (true, "the schedule does not know it".to_owned()),
            Some(rule) => judge_tag(revision, rule, newer.get(tag).copied().unwrap_or(0), now),
        };
        reasons.push(format!("{tag} {}: {why}", if falls { "falls" } else { "stays" }));
        if falls {
            lost_tags.insert(tag.clone());
        }
    }
    if revision.is_suspicious() {
        reasons.push("suspicious: good revisions are kept as if it were not there".to_owned());
    }
    let is_bare = lost_tags.len() == revision.tags.len();
    if is_bare {
        let had = if revision.tags.is_empty() { "it has no tags" } else { "no tag is left" };
        reasons.push(match revision.is_local() {
            true => format!("goes: {had}"),
            false => format!("{had}: its own server removes it"),
        });
    }
    Decision { revision: revision.clone(), lost_tags, removed: is_bare && revision.is_local(), reasons }
}

fn judge_tag(revision: &Revision, rule: &Rule, newer: u32, now: Timestamp) -> (bool, String) {
    let window = format!("{} times {}", rule.keep, interval::format(rule.interval_secs));
    if newer < rule.keep {
        return (false, format!("{newer} newer trusted revisions carry it, {} are kept", rule.keep));
    }
    if revision.timestamp >= now.plus_secs(rule.window_secs().saturating_neg()) {
        return (false, format!("not older than {window}"));
    }
    (true, format!("older than {window}, and {newer} newer trusted revisions carry it"))
}

/// Keeps the newest trusted revision when all would go: of the good ones, or of the suspicious ones where there are no
/// others.
fn hold_last_trusted(plan: &mut Plan) {
    let is_good =
        |decision: &Decision| is_trusted_here(&decision.revision) && !decision.revision.is_suspicious();
    let has_good = plan.decisions.iter().any(is_good);
    let is_last = |decision: &Decision| match has_good {
        true => is_good(decision),
        false => is_trusted_here(&decision.revision),
    };
    if plan.decisions.iter().any(|decision| is_last(decision) && !decision.removed) {
        return;
    }
    let Some(last) = plan.decisions.iter_mut().rfind(|decision| is_last(decision)) else {
        return;
    };
    last.removed = false;
    last.reasons.push("stays after all: it is the last trusted revision of the job".to_owned());
    let held =
        format!("revision {} stays although no tag is left: it is the last trusted one", last.revision.id);
    plan.held_back.push(held);
}

/// Undoes the newest decisions above the bound on one run.
fn put_off(plan: &mut Plan, schedule: &Schedule) {
    // However many notes there are, they do not raise the number of revisions that may go here.
    for is_local in [true, false] {
        put_off_some(plan, schedule, is_local);
    }
}

fn put_off_some(plan: &mut Plan, schedule: &Schedule, is_local: bool) {
    let of_this_kind = |decision: &Decision| decision.revision.is_local() == is_local;
    let count = plan.decisions.iter().filter(|decision| of_this_kind(decision)).count();
    let changed_max = count.div_ceil(CHANGED_PART).max(CHANGED_MIN);
    let is_former = |tag: &Tag| !schedule.rules.contains_key(tag);
    let changes = |decision: &&mut Decision| {
        of_this_kind(decision) && (decision.removed || decision.lost_tags.iter().any(is_former))
    };
    let mut removed = 0_u64;
    let mut stripped = 0_u64;
    for decision in plan.decisions.iter_mut().filter(changes).skip(changed_max) {
        removed += u64::from(decision.removed);
        stripped += u64::from(!decision.removed);
        decision.removed = false;
        decision.lost_tags.clear();
        decision.reasons.push("put off with its tags: one run changes only so many revisions".to_owned());
    }
    if removed + stripped > 0 {
        plan.held_back.push(format!(
            "{removed} more revisions would go and {stripped} more lose a tag that is not in the schedule: \
             one run without force changes at most {changed_max} of {count}"
        ));
    }
}

#[cfg(test)]
mod tests;
