//! What each route does, but those of single backups (`backups.rs`). Runs in threads that may block.

use backy_store::{JobName, Timestamp};
use hyper::StatusCode;
use regex::{Regex, RegexBuilder};
use serde_json::{Value, json};

use super::answer::Answer;
use super::route::Route;
use super::{backups, metrics};
use crate::error::{Error, in_full};
use crate::service::control::{Control, JobEntry};
use crate::service::rights::Rights;

/// Longest regular expression.
const FILTER_BYTES_MAX: usize = 1024;
/// Memory of a compiled one, and of its cache.
const FILTER_MEMORY_MAX: usize = 1 << 20;
/// Groups in groups.
const FILTER_NEST_MAX: u32 = 50;

/// Answers a request of somebody who may ask. Lists show what `rights` are on.
pub(super) fn handle(control: &dyn Control, rights: &Rights, route: Route, body: &[u8]) -> Answer {
    let is_covered = |job: &str| rights.covers(job);
    match route {
        Route::Metrics => Answer::metrics(metrics::render(control, &is_covered, Timestamp::now())),
        Route::Status { filter } => status(control, rights, &filter),
        Route::Check => Answer::json(StatusCode::OK, &control.report(&is_covered, Timestamp::now())),
        Route::Jobs => Answer::json(StatusCode::OK, &jobs(control, rights)),
        Route::Run(job) => match control.run(&job) {
            true => Answer::status(StatusCode::ACCEPTED),
            false => Answer::status(StatusCode::NOT_FOUND),
        },
        Route::RunAll => run_all(control, rights),
        Route::Reload => reload(control),
        Route::Backups => match control.dead_jobs() {
            Ok(mut names) => {
                names.retain(|name| is_covered(name.as_str()));
                Answer::json(StatusCode::OK, &names)
            }
            Err(error) => Answer::failed(&error),
        },
        Route::Purge(job) => backups::purge(control, &job),
        Route::Touch(job) => backups::touch(control, &job, Timestamp::now()),
        Route::Revisions { job, only_clean } => backups::revisions(control, &job, only_clean),
        Route::Tags { job, spec, autoremove } => backups::set_tags(control, &job, &spec, autoremove, body),
    }
}

fn status(control: &dyn Control, rights: &Rights, filter: &str) -> Answer {
    let filter = match compile(filter) {
        Ok(filter) => filter,
        Err(why) => return Answer::told(StatusCode::BAD_REQUEST, &format!("the filter {why}")),
    };
    Answer::json(StatusCode::OK, &control.status(&|job| rights.covers(job) && filter.is_match(job)))
}

/// Compiles a regular expression. Matching is linear in the length of the name, whatever the expression.
fn compile(filter: &str) -> Result<Regex, String> {
    if filter.len() > FILTER_BYTES_MAX {
        return Err(format!("is longer than {FILTER_BYTES_MAX} bytes"));
    }
    let compiled = RegexBuilder::new(filter)
        .size_limit(FILTER_MEMORY_MAX)
        .dfa_size_limit(FILTER_MEMORY_MAX)
        .nest_limit(FILTER_NEST_MAX)
        .build();
    compiled.map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => "is too large a regular expression".to_owned(),
        other => {
            // The message draws the expression with marks below it; its last line says what is wrong.
            let message = other.to_string();
            let reason = message.lines().last().unwrap_or_default().trim_start_matches("error: ");
            format!("is not a regular expression: {reason}")
        }
    })
}

/// The configured jobs. The service leaves secrets out; what looks like one is hidden here all the same.
fn jobs(control: &dyn Control, rights: &Rights) -> Vec<JobEntry> {
    let mut jobs = control.jobs();
    jobs.retain(|job| rights.covers(&job.name));
    jobs.iter_mut().for_each(|job| hide_secrets(&mut job.source));
    jobs
}

/// Replaces the values of keys that sound like secrets.
pub(super) fn hide_secrets(value: &mut Value) {
    // The commands around a snapshot may hold anything.
    const WORDS: [&str; 6] = ["token", "secret", "password", "passphrase", "pre-snapshot", "post-snapshot"];
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let key = key.to_ascii_lowercase();
                match WORDS.iter().any(|word| key.contains(word)) && !value.is_null() {
                    true => *value = json!("***"),
                    false => hide_secrets(value),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(hide_secrets),
        _ => {}
    }
}

fn run_all(control: &dyn Control, rights: &Rights) -> Answer {
    let names = jobs(control, rights).into_iter().filter_map(|job| JobName::parse(&job.name).ok());
    let started = names.filter(|name| control.run(name)).count();
    Answer::json(StatusCode::ACCEPTED, &json!({ "jobs": started }))
}

fn reload(control: &dyn Control) -> Answer {
    let error = match control.reload() {
        Ok(()) => return Answer::done(),
        Err(error) => error,
    };
    let mut message = in_full(&error);
    if let Error::ConfigInvalid { path, problems } = &error {
        for problem in problems {
            message.push('\n');
            message.push_str(&problem.in_file(path));
        }
    }
    Answer::told(StatusCode::CONFLICT, &message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_expressions_are_refused_or_harmless() {
        assert!(compile("").unwrap().is_match("web01"));
        assert!(!compile("^01").unwrap().is_match("web01"));
        let evil = compile("(a*)*$").unwrap();
        assert!(evil.is_match(&format!("{}b", "a".repeat(128))));
        for (filter, reason) in [
            ("(", "is not a regular expression: unclosed group"),
            ("a{1000}{1000}{1000}", "is too large a regular expression"),
            (&"(".repeat(1000), "is not a regular expression: "),
            (&format!("{}a{}", "(".repeat(100), ")".repeat(100)), "is not a regular expression: exceed"),
            (&"a".repeat(10 << 20), "is longer than 1024 bytes"),
            ("(?=a)", "is not a regular expression: look-around"),
        ] {
            let why = compile(filter).unwrap_err();
            assert!(why.starts_with(reason), "{filter:.20}: {why}");
            assert!(!why.contains('\n') && why.len() < 200, "{why}");
        }
    }

    #[test]
    fn what_sounds_like_a_secret_is_hidden_wherever_it_is() {
        let mut value = json!({
            "vm": "web01", "consul_acl_token": "x1", "s3": [{"Secret-Key": {"a": "x2"}}], "token": null,
        });
        hide_secrets(&mut value);
        let hidden = json!({
            "vm": "web01", "consul_acl_token": "***", "s3": [{"Secret-Key": "***"}], "token": null,
        });
        assert_eq!(value, hidden);
    }
}
