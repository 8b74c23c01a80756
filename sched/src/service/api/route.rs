//! From a request's first line to what is meant by it. Pure; every text is an answer or a route.

use backy_store::JobName;
use hyper::{Method, StatusCode};

use super::answer::Answer;
use crate::service::rights::{ApiToken, Right};

const GET: &str = "GET, HEAD";
const POST: &str = "POST";
const PUT: &str = "PUT";

/// What is asked for. `/healthz` is not here: it needs no token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Metrics,
    Status { filter: String },
    Check,
    Jobs,
    Run(JobName),
    RunAll,
    Reload,
    Backups,
    Purge(JobName),
    Touch(JobName),
    Revisions { job: JobName, only_clean: bool },
    Tags { job: JobName, spec: String, autoremove: bool },
}

/// What a route is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope<'r> {
    /// All jobs that the token's rights are on; the others are left out.
    Listed,
    /// One job.
    Job(&'r JobName),
    /// The service as a whole.
    Service,
}

impl Route {
    /// Whether its handler may wait for a disk.
    pub(super) fn needs_disk(&self) -> bool {
        !matches!(self, Self::Jobs | Self::Run(_) | Self::RunAll)
    }

    /// Finds the route. Parts of a path are decoded after it was split: `%2f` is part of a name, and of no job's.
    pub(super) fn parse(method: &Method, path: &str, query: Option<&str>) -> Result<Self, Answer> {
        let badly_encoded =
            || Answer::told(StatusCode::BAD_REQUEST, "the path or query is not percent-encoded UTF-8");
        let parts: Option<Vec<String>> = path.split('/').skip(1).map(decode).collect();
        let parts = parts.ok_or_else(badly_encoded)?;
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let query = Query(parse_query(query.unwrap_or_default()).ok_or_else(badly_encoded)?);
        let (allow, route) = match parts.as_slice() {
            ["metrics"] => (GET, Self::Metrics),
            ["v1", "status"] => (GET, Self::Status { filter: query.get("filter").to_owned() }),
            ["v1", "check"] => (GET, Self::Check),
            ["v1", "jobs"] => (GET, Self::Jobs),
            ["v1", "jobs", name, "run"] => (POST, Self::Run(job(name)?)),
            ["v1", "runall"] => (POST, Self::RunAll),
            ["v1", "reload"] => (POST, Self::Reload),
            ["v1", "backups"] => (GET, Self::Backups),
            ["v1", "backups", name, "purge"] => (POST, Self::Purge(job(name)?)),
            ["v1", "backups", name, "touch"] => (POST, Self::Touch(job(name)?)),
            ["v1", "backups", name, "revs"] => {
                (GET, Self::Revisions { job: job(name)?, only_clean: query.is_set("only_clean")? })
            }
            ["v1", "backups", name, "revs", spec, "tags"] => {
                let (spec, autoremove) = ((*spec).to_owned(), query.is_set("autoremove")?);
                (PUT, Self::Tags { job: job(name)?, spec, autoremove })
            }
            _ => return Err(Answer::status(StatusCode::NOT_FOUND)),
        };
        match allow.split(", ").any(|allowed| allowed == method.as_str()) {
            true => Ok(route),
            false => Err(Answer::not_allowed(allow)),
        }
    }

    /// Which right it needs, and on what. Every route is named here: a new one does not compile without a rule.
    pub(super) fn need(&self) -> (Right, Scope<'_>) {
        match self {
            Self::Metrics => (Right::Metrics, Scope::Listed),
            Self::Status { .. } | Self::Check | Self::Jobs | Self::Backups => (Right::Read, Scope::Listed),
            Self::Revisions { job, .. } => (Right::Read, Scope::Job(job)),
            Self::Run(job) => (Right::Run, Scope::Job(job)),
            Self::RunAll => (Right::Run, Scope::Listed),
            Self::Reload => (Right::Admin, Scope::Service),
            Self::Purge(job) | Self::Touch(job) | Self::Tags { job, .. } => (Right::Admin, Scope::Job(job)),
        }
    }

    /// Refuses what a token does not allow.
    pub(super) fn authorize(&self, token: &ApiToken) -> Result<(), Answer> {
        let (right, scope) = self.need();
        let name = &token.name;
        if !token.rights.has(right) {
            let message = format!(
                "the token of {name} lacks the right {right}; `rights` in the service's configuration gives it"
            );
            return Err(Answer::lacks_right(right, &message));
        }
        let what = match scope {
            Scope::Listed => return Ok(()),
            Scope::Job(job) if token.rights.covers(job.as_str()) => return Ok(()),
            Scope::Service if token.rights.jobs().is_none() => return Ok(()),
            Scope::Job(job) => format!("the job {job}"),
            Scope::Service => "the whole service".to_owned(),
        };
        let patterns = token.rights.jobs().unwrap_or_default().iter();
        let patterns: Vec<String> = patterns.map(ToString::to_string).collect();
        let message = format!(
            "the token of {name} lacks the right {right} on {what}; `jobs` in the service's configuration limits it to {}",
            patterns.join(", ")
        );
        Err(Answer::lacks_right(right, &message))
    }

    /// Whether it changes or starts something.
    pub(super) fn is_order(&self) -> bool {
        !matches!(
            self,
            Self::Metrics
                | Self::Status { .. }
                | Self::Check
                | Self::Jobs
                | Self::Backups
                | Self::Revisions { .. }
        )
    }
}

/// What cannot be the name of a job is no job that we have.
fn job(name: &str) -> Result<JobName, Answer> {
    JobName::parse(name).map_err(|_| Answer::status(StatusCode::NOT_FOUND))
}

/// What follows the question mark.
struct Query(Vec<(String, String)>);

impl Query {
    /// Returns the first value of a key; the empty text for none.
    fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    /// Whether a key is `1`. A value that is neither yes nor no is not guessed at.
    fn is_set(&self, key: &str) -> Result<bool, Answer> {
        match self.get(key) {
            "1" => Ok(true),
            "" | "0" => Ok(false),
            _ => Err(Answer::told(StatusCode::BAD_REQUEST, &format!("{key} is neither 0 nor 1"))),
        }
    }
}

fn parse_query(query: &str) -> Option<Vec<(String, String)>> {
    let pair = |text: &str| {
        let text = text.replace('+', " ");
        let (key, value) = text.split_once('=').unwrap_or((&text, ""));
        Some((decode(key)?, decode(value)?))
    };
    query.split('&').filter(|text| !text.is_empty()).map(pair).collect()
}

/// Decodes `%xx`; `None` for what is not two hex digits, or no UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let [high, low, tail @ ..] = tail else { return None };
            bytes.push(hex(*high)? << 4 | hex(*low)?);
            rest = tail;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> Result<Route, u16> {
        let (path, query) = uri.split_once('?').map_or((uri, None), |(path, query)| (path, Some(query)));
        Route::parse(&method.parse().unwrap(), path, query).map_err(|answer| answer.code())
    }

    fn job(name: &str) -> JobName {
        JobName::parse(name).unwrap()
    }

    /// A request for every route: another variant does not compile without a number, and fails without a request.
    pub(crate) const EACH: [(&str, &str); 12] = [
        ("GET", "/metrics"),
        ("GET", "/v1/status"),
        ("GET", "/v1/check"),
        ("GET", "/v1/jobs"),
        ("POST", "/v1/jobs/web01/run"),
        ("POST", "/v1/runall"),
        ("POST", "/v1/reload"),
        ("GET", "/v1/backups"),
        ("POST", "/v1/backups/old/purge"),
        ("POST", "/v1/backups/old/touch"),
        ("GET", "/v1/backups/old/revs"),
        ("PUT", "/v1/backups/old/revs/aaa/tags"),
    ];

    #[test]
    fn there_is_a_request_for_every_route() {
        let number = |route: &Route| match route {
            Route::Metrics => 0,
            Route::Status { .. } => 1,
            Route::Check => 2,
            Route::Jobs => 3,
            Route::Run(_) => 4,
            Route::RunAll => 5,
            Route::Reload => 6,
            Route::Backups => 7,
            Route::Purge(_) => 8,
            Route::Touch(_) => 9,
            Route::Revisions { .. } => 10,
            Route::Tags { .. } => 11,
        };
        let numbers = EACH.map(|(method, uri)| number(&parse(method, uri).unwrap()));
        assert!(numbers.into_iter().eq(0..EACH.len()), "{numbers:?}");
    }

    #[test]
    fn what_changes_something_needs_more_than_the_right_to_read() {
        for (method, uri) in EACH {
            let route = parse(method, uri).unwrap();
            let (right, _) = route.need();
            assert_eq!(route.is_order(), matches!(right, Right::Run | Right::Admin), "{method} {uri}");
        }
    }

    #[test]
    fn routes_are_found_with_what_is_in_them() {
        let filter = |text: &str| Ok(Route::Status { filter: text.to_owned() });
        assert_eq!(parse("GET", "/v1/status"), filter(""));
        assert_eq!(parse("HEAD", "/v1/status?filter=^web%2B+x&x=y&filter=z"), filter("^web+ x"));
        assert_eq!(parse("POST", "/v1/jobs/web01/run"), Ok(Route::Run(job("web01"))));
        assert_eq!(parse("POST", "/v1/jobs/%77eb01/run"), Ok(Route::Run(job("web01"))));
        assert_eq!(
            parse("GET", "/v1/backups/a/revs?only_clean=1"),
            Ok(Route::Revisions { job: job("a"), only_clean: true })
        );
        assert_eq!(
            parse("PUT", "/v1/backups/a/revs/tag%3Ax%2Fy/tags?autoremove=0"),
            Ok(Route::Tags { job: job("a"), spec: "tag:x/y".to_owned(), autoremove: false })
        );
    }

    #[test]
    fn everything_else_has_its_answer() {
        for (method, uri, status) in [
            ("GET", "/", 404),
            ("GET", "", 404),
            ("OPTIONS", "*", 404),
            ("GET", "/v1", 404),
            ("GET", "/v1/status/", 404),
            ("GET", "//v1/status", 404),
            ("GET", "/v2/status", 404),
            ("POST", "/v1/status", 405),
            ("GET", "/v1/reload", 405),
            ("DELETE", "/v1/backups/a/revs/b/tags", 405),
            ("POST", "/v1/jobs/..%2f..%2fetc/run", 404),
            ("POST", "/v1/jobs/../run", 404),
            ("POST", "/v1/jobs/%2e%2e/run", 404),
            ("POST", "/v1/jobs//run", 404),
            ("POST", "/v1/jobs/chunks/run", 404),
            ("POST", "/v1/jobs/a%00/run", 404),
            ("POST", "/v1/jobs/a%/run", 400),
            ("POST", "/v1/jobs/a%f/run", 400),
            ("POST", "/v1/jobs/a%+1/run", 400),
            ("POST", "/v1/jobs/%ff%fe/run", 400),
            ("GET", "/v1/status?filter=%zz", 400),
            ("GET", "/v1/backups/a/revs?only_clean=yes", 400),
        ] {
            assert_eq!(parse(method, uri).unwrap_err(), status, "{method} {uri}");
        }
    }
}
