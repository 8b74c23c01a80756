//! Verdicts as Nagios wants them: a line with the state and measures behind `|`, then lines for people.

use std::fmt::Write as _;

use backy_sched::policy::health::{Kind, Report, Severity};
use serde_json::{Value, json};

use super::text::{count, escape};

/// The status that says that nothing could be found out.
pub(crate) const UNKNOWN: u8 = 3;

/// Each kind, its measure's name, and the words before which its count stands: for one job and for several.
const KINDS: [(Kind, &str, &str); 9] = [
    (Kind::Overdue, "overdue", "overdue"),
    (Kind::NeverRan, "never_ran", "without a backup"),
    (Kind::Unknown, "unknown", "unknown"),
    (Kind::NewestDistrusted, "newest_distrusted", "with a distrusted newest revision"),
    (Kind::SourceChanged, "source_changed", "with a changed source"),
    (Kind::Distrusted, "distrusted", "with distrusted revisions"),
    (Kind::Unreadable, "unreadable", "with unreadable manifests"),
    (Kind::Quarantined, "quarantined", "with quarantine reports"),
    (Kind::InFuture, "in_future", "with revisions of the future"),
];

/// Returns the exit status.
pub(crate) fn status(report: &Report) -> u8 {
    match report.severity() {
        Severity::Info => 0,
        Severity::Warning => 1,
        Severity::Critical => 2,
    }
}

/// Returns the verdict for Nagios. Whether the service runs is `None` when nobody expects it to.
pub(crate) fn as_text(report: &Report, service_runs: Option<bool>) -> String {
    let mut text =
        format!("{}: {} |{}\n", word(report.severity()), headline(report), measures(report, service_runs));
    for problem in &report.problems {
        let severity = match problem.severity {
            Severity::Info => "INFO",
            other => word(other),
        };
        let job = problem.job.as_ref().map_or_else(String::new, |job| format!(" {job}"));
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{severity}{job}: {}", plain(&problem.message));
    }
    text
}

/// Returns the verdict for programs.
pub(crate) fn as_json(report: &Report, service_runs: Option<bool>) -> Value {
    json!({
        "status": word(report.severity()).to_lowercase(),
        "message": headline(report),
        "jobs": report.jobs,
        "revisions": report.revisions,
        "service_runs": works(report, service_runs),
        "problems": report.problems,
    })
}

/// Returns what is said when nothing could be found out, and why: one line for each of `details`.
pub(crate) fn unknown_as_text(message: &str, details: &[String]) -> String {
    let mut text = format!("UNKNOWN: {}\n", plain(message));
    for detail in details {
        let _ = writeln!(text, "{}", plain(detail));
    }
    text
}

/// The same for programs.
pub(crate) fn unknown_as_json(message: &str, details: &[String]) -> Value {
    let problems: Vec<Value> = details
        .iter()
        .map(|detail| json!({ "severity": "critical", "kind": "configuration", "job": null, "message": detail }))
        .collect();
    json!({
        "status": "unknown",
        "message": message,
        "jobs": null,
        "revisions": null,
        "service_runs": null,
        "problems": problems,
    })
}

/// Whether there is a service that does its work: one that hangs is none.
fn works(report: &Report, service_runs: Option<bool>) -> Option<bool> {
    service_runs.map(|runs| runs && report.count(Kind::HungService) == 0)
}

fn word(severity: Severity) -> &'static str {
    match severity {
        Severity::Info => "OK",
        Severity::Warning => "WARNING",
        Severity::Critical => "CRITICAL",
    }
}

fn headline(report: &Report) -> String {
    let jobs = report.jobs;
    let mut parts: Vec<String> = KINDS
        .iter()
        .map(|(kind, _, words)| (report.count(*kind), words))
        .filter(|(number, _)| *number > 0)
        .map(|(number, words)| format!("{number} of {jobs} jobs {words}"))
        .collect();
    for (kind, does) in [(Kind::NoService, "does not run"), (Kind::HungService, "hangs")] {
        if report.count(kind) > 0 {
            parts.push(format!("the scheduler service {does}"));
        }
    }
    match parts.is_empty() {
        true => format!("{} within SLA", count(jobs, "job", "jobs")),
        false => parts.join(", "),
    }
}

fn measures(report: &Report, service_runs: Option<bool>) -> String {
    let mut text = format!(" jobs={}", report.jobs);
    for (kind, name, _) in KINDS {
        // Writing to a string cannot fail.
        let _ = write!(text, " {name}={}", report.count(kind));
    }
    let _ = write!(text, " revisions={}", report.revisions);
    if let Some(runs) = works(report, service_runs) {
        let _ = write!(text, " service={}", u8::from(runs));
    }
    text
}

/// A line without what Nagios would take for the beginning of measures, or a terminal for a command.
fn plain(text: &str) -> String {
    escape(text).replace('|', "/")
}

#[cfg(test)]
mod tests {
    use backy_sched::policy::health::Problem;
    use backy_store::JobName;

    use super::*;

    fn problem(kind: Kind, job: Option<&str>, message: &str) -> Problem {
        let job = job.map(|job| JobName::parse(job).unwrap());
        Problem { severity: kind.severity(), kind, job, message: message.to_owned() }
    }

    #[test]
    fn the_first_line_has_state_and_measures() {
        let report = Report {
            jobs: 40,
            revisions: 800,
            problems: vec![
                problem(Kind::Overdue, Some("web01"), "late"),
                problem(Kind::Overdue, Some("web02"), "late"),
                problem(Kind::NoService, None, "it does not run"),
                problem(Kind::ManualTags, Some("db"), "kept by hand: manual:a|b\nc"),
            ],
        };
        assert_eq!(
            as_text(&report, Some(false)),
            "CRITICAL: 2 of 40 jobs overdue, the scheduler service does not run | jobs=40 overdue=2 never_ran=0 \
             unknown=0 newest_distrusted=0 source_changed=0 distrusted=0 unreadable=0 quarantined=0 in_future=0 revisions=800 \
             service=0\n\
             CRITICAL web01: late\nCRITICAL web02: late\nWARNING: it does not run\n\
             INFO db: kept by hand: manual:a/b\\nc\n"
        );
        assert_eq!(status(&report), 2);
        assert_eq!(as_json(&report, None)["status"], "critical");
    }

    #[test]
    fn nothing_wrong_is_ok() {
        let report = Report { jobs: 1, revisions: 2, problems: Vec::new() };
        let text = as_text(&report, None);
        assert!(text.starts_with("OK: 1 job within SLA | jobs=1 overdue=0 "), "{text}");
        assert!(text.ends_with(" revisions=2\n") && status(&report) == 0, "{text}");
    }

    #[test]
    fn a_service_that_hangs_is_critical_and_counts_as_none() {
        let report = Report { jobs: 1, revisions: 2, problems: Vec::new() };
        let report = report.with_hung_service(Some(std::time::Duration::from_secs(200)));
        let text = as_text(&report, Some(true));
        assert!(text.starts_with("CRITICAL: the scheduler service hangs | jobs=1 "), "{text}");
        assert!(
            text.contains(" service=0\nCRITICAL: the scheduler service hangs: it has shown no sign of life"),
            "{text}"
        );
        assert!(text.ends_with(" for 200 s\n") && status(&report) == 2, "{text}");
        assert_eq!(as_json(&report, Some(true))["service_runs"], false);
    }

    #[test]
    fn what_is_not_known_is_told_with_its_reasons() {
        let details = ["/etc/backy.conf:1:1: it | is empty".to_owned()];
        assert_eq!(
            unknown_as_text("it cannot be used", &details),
            "UNKNOWN: it cannot be used\n/etc/backy.conf:1:1: it / is empty\n"
        );
        assert_eq!(unknown_as_json("x", &details)["problems"][0]["kind"], "configuration");
    }
}
