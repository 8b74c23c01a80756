//! What scheduling and verdicts need to know of a job's revisions, in a few hundred bytes however many there are: a
//! service with ten thousand jobs holds this and no revision. Pure.
//!
//! A history depends on the time at which it was taken only through revisions that are dated ahead of it; it says
//! itself when it has to be taken again ([`History::is_current`]).

use std::collections::{BTreeMap, BTreeSet};

use backy_store::revision::order::{self, Dated, SKEW_SECS};
use backy_store::{Revision, Tag, Timestamp, Trust};
use serde::{Deserialize, Serialize};

/// The revisions of a job in short.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When it was taken.
    pub taken_at: Timestamp,
    /// The revision that is dated ahead of that, by more than two clocks may differ; the earliest of them.
    pub first_in_future: Option<Timestamp>,
    /// All revisions, incomplete ones too.
    pub all: usize,
    /// Complete revisions.
    pub revisions: usize,
    /// Complete revisions that are here.
    pub local: usize,
    /// Complete ones that are distrusted.
    pub distrusted: usize,
    /// Whether the newest complete revision is one of them.
    pub newest_is_distrusted: bool,
    /// Complete revisions that are dated in the future.
    pub in_future: usize,
    /// Complete revisions that are here and suspicious.
    pub suspicious: usize,
    /// Why the newest complete revision that is here is suspicious; empty when it is not.
    pub newest_suspicions: Vec<String>,
    /// The newest revision that can be relied on: here, complete, not distrusted, not suspicious, not of the future. The latest
    /// time at which it can have been made.
    pub newest_good: Option<Timestamp>,
    /// For every other server, the newest such revision that it says it has.
    pub newest_elsewhere: BTreeMap<String, Timestamp>,
    /// For every tag that is not manual, the newest complete revision that carries it and is not of the future.
    pub newest_by_tag: BTreeMap<Tag, Timestamp>,
    /// The newest complete revision, wherever it is.
    pub last: Option<LastRun>,
    /// How many seconds the newest complete revision took that is here.
    pub last_secs_here: Option<f64>,
    /// Manual tags, sorted.
    pub manual_tags: BTreeSet<Tag>,
    /// Complete revisions of other servers whose tags were changed here.
    pub unsynced: usize,
}

/// The newest complete revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastRun {
    /// When it began.
    pub time: Timestamp,
    /// Its tags.
    pub tags: BTreeSet<Tag>,
    /// How many seconds it took.
    pub secs: Option<f64>,
}

impl History {
    /// The history of a job without revisions.
    pub fn empty(now: Timestamp) -> Self {
        Self {
            taken_at: now,
            first_in_future: None,
            all: 0,
            revisions: 0,
            local: 0,
            distrusted: 0,
            newest_is_distrusted: false,
            in_future: 0,
            suspicious: 0,
            newest_suspicions: Vec::new(),
            newest_good: None,
            newest_elsewhere: BTreeMap::new(),
            newest_by_tag: BTreeMap::new(),
            last: None,
            last_secs_here: None,
            manual_tags: BTreeSet::new(),
            unsynced: 0,
        }
    }

    /// Takes the history of revisions in any order.
    pub fn of<'r>(revisions: impl IntoIterator<Item = &'r Revision>, now: Timestamp) -> Self {
        let mut history = Self::empty(now);
        for dated in order::dated(revisions, now) {
            let revision = dated.revision;
            history.all += 1;
            history.manual_tags.extend(revision.tags.iter().filter(|tag| tag.is_manual()).cloned());
            if !revision.is_clean() {
                continue;
            }
            history.add(&dated);
        }
        history
    }

    /// Counts a complete revision, which is newer than those before.
    fn add(&mut self, dated: &Dated<'_>) {
        let (revision, time) = (dated.revision, dated.made_by);
        let (tags, secs) = (revision.tags.clone(), revision.stats.duration_secs);
        self.last = Some(LastRun { time: revision.timestamp, tags, secs });
        self.newest_is_distrusted = revision.trust == Trust::Distrusted;
        if revision.is_local() {
            self.last_secs_here = secs;
            self.suspicious += usize::from(revision.is_suspicious());
            self.newest_suspicions = revision.suspicions().into_iter().map(str::to_owned).collect();
        }
        self.revisions += 1;
        self.local += usize::from(revision.is_local());
        self.unsynced += usize::from(revision.is_pending());
        self.distrusted += usize::from(revision.trust == Trust::Distrusted);
        if order::is_future(revision.timestamp, self.taken_at) {
            self.in_future += 1;
            let first =
                self.first_in_future.map_or(revision.timestamp, |first| first.min(revision.timestamp));
            self.first_in_future = Some(first);
        }
        if dated.is_ahead {
            return;
        }
        if revision.trust != Trust::Distrusted && !revision.is_suspicious() {
            match revision.is_local() {
                true => self.newest_good = self.newest_good.max(Some(time)),
                false => {
                    let newest = self.newest_elsewhere.entry(revision.server.clone()).or_insert(time);
                    *newest = time.max(*newest);
                }
            }
        }
        for tag in revision.tags.iter().filter(|tag| !tag.is_manual()) {
            let newest = self.newest_by_tag.entry(tag.clone()).or_insert(time);
            *newest = time.max(*newest);
        }
    }

    /// Whether the same revisions would give the same at the time `now`: the clock did not go back behind the time of
    /// taking (by more than two clocks may differ), and no revision of the future has become one of the present.
    pub fn is_current(&self, now: Timestamp) -> bool {
        let present = now.plus_secs(SKEW_SECS);
        present >= self.taken_at && self.first_in_future.is_none_or(|first| first > present)
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{DAY, at, revision, tags};
    use super::*;

    #[test]
    fn the_order_of_revisions_does_not_matter() {
        let mut partial = revision(4, -10, "daily,manual:y");
        partial.stats.duration_secs = None;
        let mut remote = revision(5, -60, "daily");
        remote.server = "backup2".to_owned();
        let mut doubtful = revision(6, -DAY, "daily");
        doubtful.trust = Trust::Distrusted;
        let revisions = [
            revision(1, -9 * DAY, "daily,weekly"),
            revision(2, -2 * DAY, "daily,manual:x"),
            doubtful,
            remote,
            partial,
        ];
        let history = History::of(&revisions, at(0));
        assert_eq!(history, History::of(revisions.iter().rev(), at(0)));
        assert_eq!((history.all, history.revisions, history.local, history.distrusted), (5, 4, 3, 1));
        assert_eq!((history.unsynced, history.newest_is_distrusted), (1, false));
        assert_eq!(history.newest_good, Some(at(-2 * DAY)));
        assert_eq!(history.newest_elsewhere, BTreeMap::from([("backup2".to_owned(), at(-60))]));
        let newest: Vec<(&str, Timestamp)> =
            history.newest_by_tag.iter().map(|(tag, time)| (tag.as_str(), *time)).collect();
        assert_eq!(newest, [("daily", at(-60)), ("weekly", at(-9 * DAY))]);
        assert_eq!(history.manual_tags, tags("manual:x,manual:y"));
        let text = serde_json::to_string(&history).unwrap();
        assert_eq!(serde_json::from_str::<History>(&text).unwrap(), history);
    }

    #[test]
    fn it_knows_when_it_must_be_taken_again() {
        let history = History::of(&[revision(1, -DAY, "daily"), revision(2, DAY, "daily")], at(0));
        assert_eq!((history.in_future, history.newest_good), (1, Some(at(-DAY))));
        for (now, expected) in
            [(0, true), (-300, true), (-301, false), (DAY - 301, true), (DAY - 300, false), (9 * DAY, false)]
        {
            assert_eq!(history.is_current(at(now)), expected, "{now}");
        }
        assert!(History::empty(at(0)).is_current(at(999 * DAY)));
    }
}
