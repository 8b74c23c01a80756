//! `backy tags {set,add,remove}`: changes tags. Listing, selecting, checking and changing happen under one
//! guard, so that no other run changes a tag in between; nothing is changed unless every check passes.

use std::collections::BTreeSet;

use backy_store::select;
use backy_store::{Revision, Tag, Timestamp};
use clap::{Args, ValueEnum};

use super::{Context, id_list, join_tags, load_config, note_nothing_selected, revisions};
use crate::failure::{Outcome, Result, refused, usage};
use crate::output::terminal;

/// Changes the tags of revisions: `tags set REVISION TAGS`, or `tags set -r REVISION TAGS`.
#[derive(Args, Debug)]
#[command(override_usage = "backy tags <set|add|remove> [OPTIONS] REVISION TAGS
       backy tags <set|add|remove> [OPTIONS] -r SPEC TAGS")]
pub(crate) struct Arguments {
    /// What to do with the tags
    #[arg(value_enum)]
    action: Action,
    /// The revisions (unless given with -r) and the tags, separated by commas
    #[arg(value_name = "REVISION TAGS", required = true, num_args = 1..=2)]
    words: Vec<String>,
    /// The revisions
    #[arg(short, long, value_name = "SPEC", allow_hyphen_values = true)]
    revision: Option<String>,
    /// Forget revisions that are left without tags
    #[arg(long)]
    autoremove: bool,
    /// Change nothing unless every selected revision has exactly these tags
    #[arg(long, value_name = "TAGS")]
    expect: Option<String>,
    /// Take tags that the schedule does not know
    #[arg(short, long)]
    force: bool,
}

/// What to do with the tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Action {
    /// Replace them
    Set,
    /// Add to them
    Add,
    /// Take away from them
    Remove,
}

/// Changes the tags of all selected revisions, or of none.
pub(crate) fn run(context: &Context, arguments: &Arguments) -> Result {
    let (spec, words) = spec_and_tags(arguments.revision.as_deref(), &arguments.words)?;
    let tags = Tag::parse_list(words)?;
    let expected = arguments.expect.as_deref().map(Tag::parse_list).transpose()?;
    if arguments.action != Action::Remove {
        select::check_new_tags(&tags)?;
    }
    let job = context.job()?;
    if arguments.action != Action::Remove && !arguments.force {
        load_config(&job)?.schedule.check_tags(&tags)?;
    }
    let guard = job.lock_manifests()?;
    let selected = select::select(spec, &revisions(&job)?, &context.zone)?;
    check_expected(&selected, expected.as_ref())?;
    if selected.is_empty() {
        return Ok(note_nothing_selected(spec));
    }
    let now = Timestamp::now();
    for revision in &selected {
        let changed = arguments.action.apply(&revision.tags, &tags);
        let after = join_tags(&changed);
        if backy_sched::tags::replace(&job, &guard, revision, changed, arguments.autoremove, now)? {
            terminal::print_line(format_args!("{} forgotten", revision.id))?;
        } else {
            terminal::print_line(format_args!("{} {after}", revision.id))?;
        }
    }
    Ok(Outcome::Done)
}

/// Tells the two forms apart. There is no default for the revisions: it would have to be all.
fn spec_and_tags<'w>(option: Option<&'w str>, words: &'w [String]) -> anyhow::Result<(&'w str, &'w str)> {
    match (option, words) {
        (Some(spec), [tags]) => Ok((spec, tags)),
        (None, [spec, tags]) => Ok((spec, tags)),
        (Some(_), _) => Err(usage("the revisions are given twice", "`tags ACTION -r REVISION TAGS`")),
        (None, _) => Err(usage("which revisions?", "`tags ACTION REVISION TAGS`; `all` means all")),
    }
}

fn check_expected(selected: &[Revision], expected: Option<&BTreeSet<Tag>>) -> anyhow::Result<()> {
    let Some(expected) = expected else { return Ok(()) };
    let other = backy_sched::tags::differing(selected, expected);
    if other.is_empty() {
        return Ok(());
    }
    Err(refused(
        format!("nothing was changed: {} not tagged {:?}", id_list(&other), join_tags(expected)),
        "another run may have changed them; `backy status` shows the tags",
    ))
}

impl Action {
    fn apply(self, present: &BTreeSet<Tag>, tags: &BTreeSet<Tag>) -> BTreeSet<Tag> {
        match self {
            Self::Set => tags.clone(),
            Self::Add => present | tags,
            Self::Remove => present - tags,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_understood_and_the_ambiguous_refused() {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<String>>();
        assert_eq!(spec_and_tags(None, &words(&["last", "daily"])).unwrap(), ("last", "daily"));
        assert_eq!(spec_and_tags(Some("all"), &words(&["daily"])).unwrap(), ("all", "daily"));
        assert!(spec_and_tags(None, &words(&["daily"])).is_err());
        assert!(spec_and_tags(Some("all"), &words(&["last", "daily"])).is_err());
    }

    #[test]
    fn tags_are_sets() {
        let set = |tags| Tag::parse_list(tags).unwrap();
        assert_eq!(Action::Set.apply(&set("a,b"), &set("c")), set("c"));
        assert_eq!(Action::Add.apply(&set("a,b"), &set("b,c")), set("a,b,c"));
        assert_eq!(Action::Remove.apply(&set("a,b"), &set("b,c")), set("a"));
    }
}
