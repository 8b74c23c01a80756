//! `backy distrust`: marks revisions as possibly damaged, so that they are no base for new ones and are
//! verified.

use backy_store::select;
use backy_store::{Revision, Timestamp, Trust, Zone};
use clap::Args;

use super::{Context, id_list, note_nothing_selected, revisions};
use crate::failure::{Outcome, Result, refused, usage};
use crate::output::terminal;

/// Seconds of a day; UTC has no other days.
const DAY_SECS: i64 = 86_400;

/// Marks revisions as possibly damaged.
#[derive(Args, Debug)]
pub(crate) struct Arguments {
    /// The revisions [default: local]
    #[arg(short, long, value_name = "SPEC", conflicts_with_all = ["from", "until"], allow_hyphen_values = true)]
    revision: Option<String>,
    /// The first day, YYYY-MM-DD by UTC
    #[arg(short, long, value_name = "DATE")]
    from: Option<String>,
    /// The last day, YYYY-MM-DD by UTC
    #[arg(short, long, value_name = "DATE")]
    until: Option<String>,
}

/// Distrusts all that is selected, or nothing.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let days = Days::parse(arguments.from.as_deref(), arguments.until.as_deref())?;
    let job = context.job()?;
    let guard = job.lock_manifests()?;
    let spec = arguments.revision.as_deref().unwrap_or("local");
    let mut selected = select::select(spec, &revisions(&job)?, &context.zone)?;
    selected.retain(|revision| days.contain(revision.timestamp));
    let remote: Vec<Revision> = selected.iter().filter(|revision| !revision.is_local()).cloned().collect();
    if !remote.is_empty() {
        return Err(refused(
            format!("nothing was changed: {} on other servers", id_list(&remote)),
            "only their servers may distrust these; add `&local` to the specification",
        ));
    }
    if selected.is_empty() {
        return Ok(match days.is_everything() {
            true => note_nothing_selected(spec),
            false => {
                terminal::note(format_args!("no revision of this server was made {}", period(arguments)));
                Outcome::Done
            }
        });
    }
    for revision in &selected {
        job.set_trust(&guard, &revision.id, Trust::Distrusted)?;
        tracing::info!(target: crate::logging::QUIET, revision = %revision.id, "distrusted");
        terminal::print_line(format_args!("{} distrusted", revision.id))?;
    }
    Ok(Outcome::Done)
}

/// The period that `--from` and `--until` name, in words.
fn period(arguments: &Arguments) -> String {
    match (&arguments.from, &arguments.until) {
        (Some(from), Some(until)) => format!("from {from} to {until}"),
        (Some(from), None) => format!("on {from} or later"),
        (None, Some(until)) => format!("on {until} or earlier"),
        (None, None) => "at any time".to_owned(),
    }
}

/// A range of whole days, UTC; open where an end is `None`.
#[derive(Debug, PartialEq, Eq)]
struct Days {
    from: Option<Timestamp>,
    /// First moment after the last day.
    until: Option<Timestamp>,
}

impl Days {
    fn parse(from: Option<&str>, until: Option<&str>) -> anyhow::Result<Self> {
        let from = from.map(parse_day).transpose()?;
        let until = until.map(parse_day).transpose()?.map(|day| day.plus_secs(DAY_SECS));
        if from.zip(until).is_some_and(|(from, until)| from >= until) {
            return Err(usage("the first day lies after the last", ""));
        }
        Ok(Self { from, until })
    }

    fn is_everything(&self) -> bool {
        self.from.is_none() && self.until.is_none()
    }

    fn contain(&self, time: Timestamp) -> bool {
        self.from.is_none_or(|from| from <= time) && self.until.is_none_or(|until| time < until)
    }
}

fn parse_day(text: &str) -> anyhow::Result<Timestamp> {
    let shape = |(place, byte): (usize, u8)| match place {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    };
    let shaped = text.len() == 10 && text.bytes().enumerate().all(shape);
    let day = shaped.then(|| Timestamp::parse(text, &Zone::utc())).flatten();
    day.ok_or_else(|| usage(format!("{text:?} is not a day"), "days look like 2024-03-01"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(text: &str) -> Timestamp {
        Timestamp::parse(text, &Zone::utc()).unwrap()
    }

    #[test]
    fn both_days_are_included() {
        let days = Days::parse(Some("2024-03-01"), Some("2024-03-02")).unwrap();
        for (text, inside) in [
            ("2024-02-29 23:59:59.999999", false),
            ("2024-03-01 00:00:00", true),
            ("2024-03-02 23:59:59.999999", true),
            ("2024-03-03 00:00:00", false),
        ] {
            assert_eq!(days.contain(time(text)), inside, "{text}");
        }
        assert!(Days::parse(None, None).unwrap().contain(time("1999-01-01")));
        assert!(
            Days::parse(Some("2024-03-01"), Some("2024-03-01")).unwrap().contain(time("2024-03-01 12:00"))
        );
    }

    #[test]
    fn what_is_not_a_day_is_refused() {
        for text in ["", "2024-3-1", "2024-02-30", "2024-03-01T00:00", "yesterday", "2024-03-0\u{661}"] {
            assert!(Days::parse(Some(text), None).is_err(), "{text:?}");
        }
        assert!(Days::parse(Some("2024-03-02"), Some("2024-03-01")).is_err());
    }
}
