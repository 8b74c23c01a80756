//! Answers, before they become HTTP.

use backy_store::Error as StoreError;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::metrics;
use crate::error::{Error, in_full};
use crate::service::rights::{MISSING_RIGHT, Right};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What is answered.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    body: Vec<u8>,
    /// The methods that the path has, where it was asked with another.
    allow: Option<&'static str>,
    /// The right that the token lacks.
    missing_right: Option<Right>,
}

impl Answer {
    /// A status and its name, as the original answers: `404: Not Found`.
    pub(super) fn status(status: StatusCode) -> Self {
        let text = format!("{}: {}", status.as_u16(), status.canonical_reason().unwrap_or_default());
        Self { status, content_type: TEXT, body: text.into_bytes(), allow: None, missing_right: None }
    }

    /// A status, its name and what there is to say.
    pub(super) fn told(status: StatusCode, message: &str) -> Self {
        let mut answer = Self::status(status);
        answer.body.extend_from_slice(b": ");
        answer.body.extend_from_slice(message.as_bytes());
        answer
    }

    /// A plain text and nothing else.
    pub(super) fn text(status: StatusCode, text: &str) -> Self {
        Self { status, content_type: TEXT, body: text.as_bytes().to_vec(), allow: None, missing_right: None }
    }

    /// Done, and nothing to say.
    pub(super) fn done() -> Self {
        Self {
            status: StatusCode::NO_CONTENT,
            content_type: TEXT,
            body: Vec::new(),
            allow: None,
            missing_right: None,
        }
    }

    /// Data for programs.
    pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status, content_type: JSON, body, allow: None, missing_right: None },
            Err(error) => Self::told(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    /// Metrics, in the format of OpenMetrics.
    pub(super) fn metrics(text: String) -> Self {
        Self {
            status: StatusCode::OK,
            content_type: METRICS,
            body: text.into_bytes(),
            allow: None,
            missing_right: None,
        }
    }

    /// Metrics in the format that the client wants; everything else as it is.
    pub(super) fn in_wanted_format(self, accept: &str) -> Self {
        if self.content_type != METRICS || metrics::wants_openmetrics(accept) {
            return self;
        }
        let body = metrics::to_prometheus(&String::from_utf8_lossy(&self.body)).into_bytes();
        Self { content_type: PROMETHEUS, body, ..self }
    }

    /// The path is right, the method is not.
    pub(super) fn not_allowed(allow: &'static str) -> Self {
        Self { allow: Some(allow), ..Self::status(StatusCode::METHOD_NOT_ALLOWED) }
    }

    /// The token is right, but does not allow this.
    pub(super) fn lacks_right(right: Right, message: &str) -> Self {
        Self { missing_right: Some(right), ..Self::told(StatusCode::FORBIDDEN, message) }
    }

    /// What went wrong while answering.
    pub(super) fn failed(error: &Error) -> Self {
        let status = match error {
            // Its message says where the store is, which another server need not know.
            Error::Store(StoreError::JobUnknown { .. }) => return Self::status(StatusCode::NOT_FOUND),
            Error::Store(StoreError::RevisionUnknown { .. } | StoreError::SpecInvalid { .. }) => {
                StatusCode::NOT_FOUND
            }
            Error::Store(StoreError::Locked { .. }) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message = in_full(error);
        if status.is_server_error() {
            tracing::error!(error = message, "a request failed");
        }
        Self::told(status, &message)
    }

    /// Returns the status as a number.
    pub(super) fn code(&self) -> u16 {
        self.status.as_u16()
    }

    /// Makes HTTP of it.
    pub(super) fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::new(Bytes::from(self.body)));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        let mut set = |name, value| headers.insert(name, HeaderValue::from_static(value));
        if self.status != StatusCode::NO_CONTENT {
            set(header::CONTENT_TYPE, self.content_type);
        }
        set(header::CACHE_CONTROL, "no-store");
        set(header::X_CONTENT_TYPE_OPTIONS, "nosniff");
        if self.status == StatusCode::UNAUTHORIZED {
            set(header::WWW_AUTHENTICATE, "Bearer");
        }
        if let Some(allow) = self.allow {
            set(header::ALLOW, allow);
        }
        if let Some(right) = self.missing_right {
            set(HeaderName::from_static(MISSING_RIGHT), right.as_str());
        }
        response
    }
}
