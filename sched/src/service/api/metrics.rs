//! `/metrics`: the text of OpenMetrics 1.0, and the older text format of Prometheus for clients that do not ask for it.
//! `docs/api.md` lists every name.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use backy_store::{JobName, Timestamp};

use crate::policy::health::{self, JobFacts, Kind, Report};
use crate::service::control::{Control, StatusEntry, Vitals};

/// The names of the pools, as in [`Vitals`].
const POOLS: [&str; 2] = ["fast", "slow"];

/// Returns the whole text, with the jobs that have a wanted name.
pub(super) fn render(control: &dyn Control, wanted: &dyn Fn(&str) -> bool, now: Timestamp) -> String {
    let mut facts = control.facts(now);
    facts.retain(|facts| wanted(facts.job.as_str()));
    let report = health::judge(&facts, Some(true), now);
    let mut text = Text(String::new());
    text.family("backy_build", "info", "The program.");
    text.sample("backy_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    service(&mut text, &control.vitals());
    problems(&mut text, &report);
    states(&mut text, &control.status(wanted));
    jobs(&mut text, &facts, &report, now);
    text.0.push_str("# EOF\n");
    text.0
}

/// Whether a client's `Accept` header asks for OpenMetrics, and likes it no less than plain text.
pub(super) fn wants_openmetrics(accept: &str) -> bool {
    let weight = |wanted: &str| {
        let ranges = accept.split(',').map(|range| range.split(';').map(str::trim).collect::<Vec<_>>());
        let weights = ranges.filter(|range| range[0].eq_ignore_ascii_case(wanted)).map(|range| {
            let weight = range.iter().find_map(|part| part.strip_prefix("q=")?.parse::<f64>().ok());
            weight.unwrap_or(1.0)
        });
        weights.fold(0.0, f64::max)
    };
    let openmetrics = weight("application/openmetrics-text");
    openmetrics > 0.0 && openmetrics >= weight("text/plain")
}

/// Turns the text of OpenMetrics into version 0.0.4 of Prometheus' text format: it has no mark of the end, a counter is
/// declared by the name of its sample, and information is a gauge.
pub(super) fn to_prometheus(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut renamed: Option<(&str, &str)> = None;
    for line in text.lines().filter(|line| *line != "# EOF") {
        let words: Vec<&str> = line.splitn(4, ' ').collect();
        // Writing to a string cannot fail.
        let _ = match (&words[..], renamed) {
            (["#", "TYPE", name, "counter"], _) => {
                renamed = Some((*name, "_total"));
                writeln!(out, "# TYPE {name}_total counter")
            }
            (["#", "TYPE", name, "info"], _) => {
                renamed = Some((*name, "_info"));
                writeln!(out, "# TYPE {name}_info gauge")
            }
            (["#", "HELP", name, help], Some((family, end))) if *name == family => {
                writeln!(out, "# HELP {name}{end} {help}")
            }
            _ => writeln!(out, "{line}"),
        };
    }
    out
}

fn service(text: &mut Text, vitals: &Vitals) {
    let times = [
        ("backy_start_time_seconds", "When the service started.", vitals.started_at),
        ("backy_main_loop_time_seconds", "When the main loop last came round.", vitals.seen_at),
        ("backy_config_time_seconds", "When the configuration in force was read.", vitals.configured_at),
    ];
    for (name, help, at) in times {
        text.family(name, "gauge", help);
        if let Some(at) = at {
            text.sample(name, &[], at.as_micros() as f64 / 1e6);
        }
    }
    let refused = f64::from(u8::from(vitals.reload_refused));
    text.gauge("backy_config_reload_refused", "1 when the last order to read it was refused.", refused);
    text.gauge("backy_workers", "Backups at a time, in each pool.", f64::from(vitals.workers));
    text.gauge("backy_backing_off", "Jobs that wait after a failure.", vitals.backing_off as f64);
    let pools = [
        ("backy_running", "Backups that are running.", vitals.running),
        ("backy_queued", "Jobs that wait for a worker.", vitals.queued),
    ];
    for (name, help, numbers) in pools {
        text.family(name, "gauge", help);
        for (pool, number) in POOLS.iter().zip(numbers) {
            text.sample(name, &[("pool", pool)], number as f64);
        }
    }
    text.family("backy_rounds", "counter", "Rounds of jobs that ended since the start.");
    for (result, number) in [("done", vitals.rounds_done), ("failed", vitals.rounds_failed)] {
        text.sample("backy_rounds_total", &[("result", result)], number as f64);
    }
}

fn problems(text: &mut Text, report: &Report) {
    let name = "backy_problems";
    text.family(name, "gauge", "Jobs with a problem of this kind, as `backy check` counts them.");
    for kind in Kind::ALL {
        let number = report.count(kind) as f64;
        text.sample(name, &[("kind", kind.as_str()), ("severity", kind.severity().as_str())], number);
    }
}

fn states(text: &mut Text, entries: &[StatusEntry]) {
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in entries {
        *states.entry(&entry.status).or_default() += 1;
    }
    text.family("backy_jobs", "gauge", "Jobs and dead directories by what they do.");
    for (state, number) in states {
        text.sample("backy_jobs", &[("state", state)], number as f64);
    }
    text.family("backy_job_last_duration_seconds", "gauge", "How long the newest complete backup took.");
    for entry in entries {
        if let Some(secs) = entry.last_duration.filter(|_| entry.sla.is_some()) {
            text.sample("backy_job_last_duration_seconds", &[("job", &entry.job)], secs);
        }
    }
}

fn jobs(text: &mut Text, facts: &[JobFacts], report: &Report, now: Timestamp) {
    type Measure<'m> = (&'static str, &'static str, &'m dyn Fn(&JobFacts) -> Option<f64>);
    let late: BTreeSet<&JobName> = report
        .problems
        .iter()
        .filter(|problem| matches!(problem.kind, Kind::Overdue | Kind::NeverRan))
        .filter_map(|problem| problem.job.as_ref())
        .collect();
    let known = |facts: &JobFacts, number: usize| facts.failure.is_none().then_some(number as f64);
    let measures: [Measure<'_>; 7] = [
        ("backy_job_overdue", "1 when the job has no good revision that is young enough.", &|facts| {
            known(facts, usize::from(late.contains(&facts.job)))
        }),
        ("backy_job_newest_good_age_seconds", "Age of the newest good revision.", &|facts| {
            facts.newest_good.map(|newest| now.secs_since(newest).max(0.0))
        }),
        ("backy_job_revisions", "Complete revisions.", &|facts| known(facts, facts.revisions)),
        ("backy_job_distrusted_revisions", "Distrusted revisions.", &|facts| known(facts, facts.distrusted)),
        ("backy_job_suspicious_revisions", "Revisions whose source had changed.", &|facts| {
            known(facts, facts.suspicious)
        }),
        ("backy_job_unreadable_manifests", "Manifests that cannot be read.", &|facts| {
            known(facts, facts.unreadable)
        }),
        ("backy_job_quarantine_reports", "Reports in the job's quarantine.", &|facts| {
            known(facts, facts.quarantine_reports)
        }),
    ];
    for (name, help, measure) in measures {
        text.family(name, "gauge", help);
        for one in facts {
            if let Some(value) = measure(one) {
                text.sample(name, &[("job", one.job.as_str())], value);
            }
        }
    }
}

/// The text in the making. Writing to a string cannot fail.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# TYPE {name} {kind}\n# HELP {name} {help}");
    }

    /// A family of one value without labels.
    fn gauge(&mut self, name: &str, help: &str, value: f64) {
        self.family(name, "gauge", help);
        self.sample(name, &[], value);
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        if !value.is_finite() {
            return;
        }
        let labels: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escape(value))).collect();
        let _ = match labels.is_empty() {
            true => writeln!(self.0, "{name} {value}"),
            false => writeln!(self.0, "{name}{{{}}} {value}", labels.join(",")),
        };
    }
}

fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_get_the_format_that_they_ask_for() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;\
             q=0.3,text/plain;version=0.0.4;q=0.2,*/*;q=0.1";
        for (accept, openmetrics) in [
            (prometheus, true),
            ("application/openmetrics-text", true),
            ("text/plain;version=0.0.4;q=0.5, Application/OpenMetrics-Text; version=1.0.0; q=0.5", true),
            ("text/plain;version=0.0.4, application/openmetrics-text;q=0.5", false),
            ("application/openmetrics-text;q=0", false),
            ("text/plain", false),
            ("*/*", false),
            ("", false),
            (";,;q=x", false),
        ] {
            assert_eq!(wants_openmetrics(accept), openmetrics, "{accept}");
        }
    }

    #[test]
    fn the_older_format_has_other_names_of_families_and_no_end() {
        let mut text = Text(String::new());
        text.family("b_build", "info", "The program.");
        text.sample("b_build_info", &[("version", "1")], 1.0);
        text.gauge("b_workers", "At a time.", 2.0);
        text.family("b_rounds", "counter", "Rounds that ended.");
        text.sample("b_rounds_total", &[], 3.0);
        text.0.push_str("# EOF\n");
        assert_eq!(
            to_prometheus(&text.0),
            "# TYPE b_build_info gauge\n# HELP b_build_info The program.\nb_build_info{version=\"1\"} 1\n\
             # TYPE b_workers gauge\n# HELP b_workers At a time.\nb_workers 2\n\
             # TYPE b_rounds_total counter\n# HELP b_rounds_total Rounds that ended.\nb_rounds_total 3\n"
        );
    }

    #[test]
    fn values_of_labels_cannot_break_out() {
        let mut text = Text(String::new());
        text.sample("m", &[("a", "x\"} 1\nm \\")], 2.5);
        text.sample("m", &[], f64::NAN);
        assert_eq!(text.0, "m{a=\"x\\\"} 1\\nm \\\\\"} 2.5\n");
    }
}
