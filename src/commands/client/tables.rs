//! The tables of `backy client`. Pure. What they show comes from a server and may be anything.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use backy_sched::service::control::StatusEntry;
use backy_store::{Timestamp, Zone};

use crate::output::size::human_duration;
use crate::output::table::{Column, Table};
use crate::output::text::count;

/// Stands where there is nothing to show.
const NOTHING: &str = "-";

/// Brings jobs into order: by name, dead directories last.
pub(super) fn sort(entries: &mut [StatusEntry]) {
    entries.sort_by(|one, other| (one.sla.is_none(), &one.job).cmp(&(other.sla.is_none(), &other.job)));
}

/// Returns the table of jobs.
pub(super) fn jobs(entries: &[StatusEntry], zone: &Zone, width: Option<usize>) -> String {
    let mut table = Table::new(vec![
        Column::left("Job"),
        Column::left("SLA"),
        Column::left("SLA overdue"),
        Column::wrapping("Status"),
        Column::left(format!("Last Backup ({})", zone.name())),
        Column::wrapping("Last Tags"),
        Column::right("Last Duration"),
        Column::left(format!("Next Backup ({})", zone.name())),
        Column::wrapping("Next Tags"),
    ]);
    for entry in entries {
        let overdue = entry.sla_overdue.filter(|&secs| secs > 0.0);
        table.row([
            entry.job.clone(),
            text(entry.sla.as_deref()),
            overdue.map_or_else(|| NOTHING.to_owned(), human_duration),
            status_cell(entry),
            local_time(entry.last_time.as_deref(), zone),
            text(entry.last_tags.as_deref()),
            entry.last_duration.map_or_else(|| NOTHING.to_owned(), human_duration),
            local_time(entry.next_time.as_deref(), zone),
            text(entry.next_tags.as_deref()),
        ]);
    }
    let mut text = table.render(width);
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{} shown", count(entries.len(), "job", "jobs"));
    text
}

/// What a job does, that somebody has to look at its source, and why it could not be read.
fn status_cell(entry: &StatusEntry) -> String {
    let failure = entry.failure.as_ref().map(|failure| format!("cannot be read: {failure}"));
    let mut words = vec![entry.status.as_str()];
    words.extend(entry.source_changed.as_ref().map(|_| "source changed"));
    words.extend(failure.as_deref());
    words.retain(|word| !word.is_empty());
    words.join(", ")
}

/// Returns how many jobs are in each state.
pub(super) fn states(entries: &[StatusEntry]) -> BTreeMap<String, usize> {
    let mut states = BTreeMap::new();
    for entry in entries {
        *states.entry(entry.status.clone()).or_default() += 1;
    }
    states
}

/// Returns the table of states.
pub(super) fn status(states: &BTreeMap<String, usize>, width: Option<usize>) -> String {
    let mut table = Table::new(vec![Column::left("Status"), Column::right("#")]);
    for (state, number) in states {
        table.row([state.clone(), number.to_string()]);
    }
    table.render(width)
}

fn text(value: Option<&str>) -> String {
    value.filter(|text| !text.is_empty()).unwrap_or(NOTHING).to_owned()
}

/// A time in the zone of whoever looks; what is no time is shown as it came.
fn local_time(value: Option<&str>, zone: &Zone) -> String {
    let parsed = value.and_then(|text| Timestamp::parse(text, &Zone::utc()));
    parsed.map_or_else(|| text(value), |time| time.format(zone))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<StatusEntry> {
        let some = |text: &str| Some(text.to_owned());
        let test01 = StatusEntry {
            job: "test01".to_owned(),
            sla: some("OK"),
            sla_overdue: Some(0.0),
            status: "waiting for deadline".to_owned(),
            last_time: some("2015-11-05T11:56:10Z"),
            last_tags: some("daily"),
            last_duration: Some(50.2),
            next_time: some("2015-11-06T12:56:10+01:00"),
            next_tags: some("daily,weekly"),
            ..StatusEntry::default()
        };
        let test02 = StatusEntry {
            job: "test02".to_owned(),
            sla: some("TOO OLD"),
            sla_overdue: Some(130_000.0),
            status: "running (slow)".to_owned(),
            source_changed: some("it is empty and had 5 bytes"),
            ..StatusEntry::default()
        };
        let dead = StatusEntry {
            job: "old".to_owned(),
            status: "Dead".to_owned(),
            last_time: some("soon\x1b[2J"),
            ..StatusEntry::default()
        };
        let test03 = StatusEntry {
            job: "test03".to_owned(),
            sla: some("UNKNOWN"),
            failure: some("no backy store"),
            ..StatusEntry::default()
        };
        vec![dead, test03, test02, test01]
    }

    #[test]
    fn jobs_are_shown_as_in_the_manual_of_the_original() {
        let mut entries = entries();
        sort(&mut entries);
        let expected = "\
Job     SLA      SLA overdue  Status                          Last Backup (UTC)    Last Tags  Last Duration  Next Backup (UTC)    Next Tags
test01  OK       -            waiting for deadline            2015-11-05 11:56:10  daily         50 seconds  2015-11-06 11:56:10  daily,weekly
test02  TOO OLD  a day        running (slow), source changed  -                    -                      -  -                    -
test03  UNKNOWN  -            cannot be read: no backy store  -                    -                      -  -                    -
old     -        -            Dead                            soon\\u{1b}[2J        -                      -  -                    -
4 jobs shown
";
        assert_eq!(jobs(&entries, &Zone::utc(), None), expected);
        assert!(jobs(&entries[..1], &Zone::utc(), None).ends_with("\n1 job shown\n"));
    }

    #[test]
    fn states_are_counted_with_the_dead() {
        let expected = "Status                #\n                      1\nDead                  1\nrunning (slow)        1\nwaiting for deadline  1\n";
        assert_eq!(status(&states(&entries()), None), expected);
    }
}
