//! Accepting that a source is right as it is: its suspicious revisions become as good as all others, and the next backups
//! are compared with them.

use backy_store::{Job, Revision, RevisionId, Timestamp};

use crate::error::Result;
use crate::source::shape::{Shape, Suspicion, assess};

/// Returns the suspicious revisions that are right if `last` is: itself, and those from which it does not differ. Whoever
/// accepts the disk of today need not name the backups that were made of it yesterday; those of yet another disk stay
/// suspicious.
pub fn agreeing<'r>(revisions: &'r [Revision], last: &Revision) -> Vec<&'r Revision> {
    let Some(now) = Shape::of(last) else { return Vec::new() };
    let agrees = |one: &&Revision| {
        let Some(before) = Shape::of(one) else { return false };
        let is_as = |one: &Shape, other: &Shape| !assess(one, other).iter().any(Suspicion::is_grave);
        one.id == last.id || (is_as(&before, &now) && is_as(&now, &before))
    };
    revisions.iter().filter(|one| one.is_local() && one.is_suspicious()).filter(agrees).collect()
}

/// Returns what is accepted when nobody says which: the newest complete revision that is here, with those that agree with
/// it; nothing when it is not suspicious. `revisions` are in order.
pub fn of_newest(revisions: &[Revision]) -> Vec<&Revision> {
    let newest = revisions.iter().rfind(|one| one.is_local() && one.is_clean());
    let suspicious = newest.filter(|one| one.is_suspicious());
    suspicious.map_or_else(Vec::new, |newest| agreeing(revisions, newest))
}

/// Accepts revisions. Each is durable by itself, so a run that dies is finished by repeating it.
pub fn accept(job: &Job, revisions: &[&RevisionId], now: Timestamp) -> Result<()> {
    let guard = job.lock_manifests()?;
    for id in revisions {
        job.accept(&guard, id, now)?;
        tracing::info!(job = %job.name(), revision = %id, "source-accepted");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use backy_store::revision::suspicion;

    use super::*;
    use crate::policy::testing;

    fn made(number: u128, size_bytes: u64, is_suspicious: bool) -> Revision {
        let mut made = testing::revision(number, number as i64, "");
        made.image_size = Some(size_bytes);
        if is_suspicious {
            suspicion::record(&mut made.source, &["it shrank".to_owned()], None);
        }
        made
    }

    #[test]
    fn the_newest_is_accepted_with_those_that_agree() {
        let bits = |revisions: &[Revision]| -> Vec<usize> {
            let found = of_newest(revisions);
            (0..revisions.len()).filter(|&n| found.iter().any(|one| one.id == revisions[n].id)).collect()
        };
        let mut all = vec![made(1, 100, false), made(2, 70, true), made(3, 10, true), made(4, 10, true)];
        assert_eq!(bits(&all), [2, 3], "the one of 70 bytes would be suspicious again");
        all.push(made(5, 10, false));
        assert!(bits(&all).is_empty(), "the newest is good");
        let mut peer = made(6, 10, true);
        peer.server = "backup2".to_owned();
        all[4] = peer;
        assert_eq!(bits(&all), [2, 3], "of those that are here");
        assert!(bits(&[]).is_empty());
    }
}
