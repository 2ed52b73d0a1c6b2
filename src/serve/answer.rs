//! Answers: bodies that stream, and errors in the specification's JSON.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, combinators::BoxBody};
use hyper::{Response, StatusCode, header};

/// A body of any kind.
pub(super) type Body = BoxBody<Bytes, std::io::Error>;

/// An answer.
pub(super) type Answer = Response<Body>;

/// A refusal: status, code and words. Codes are those of the distribution specification.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into() }
    }

    pub(super) fn into_answer(self) -> Answer {
        let error = serde_json::json!({
            "errors": [{ "code": self.code, "message": self.message, "detail": null }]
        });
        json(self.status, &error)
    }
}

impl From<crate::store::StoreError> for Refusal {
    fn from(error: crate::store::StoreError) -> Self {
        use crate::store::StoreError;
        let message = error.to_string();
        match error {
            StoreError::DigestMismatch { .. } => {
                Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", message)
            }
            StoreError::MissingBlob(_) => Self::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message),
            StoreError::NoSpace { .. } => {
                Self::new(StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN", message)
            }
            StoreError::Io { .. }
            | StoreError::Facts { .. }
            | StoreError::Damaged { .. }
            | StoreError::Locked { .. }
            | StoreError::Backup { .. }
            | StoreError::NamesTaken { .. }
            | StoreError::Newer { .. }
            | StoreError::Remote { .. }
            | StoreError::NoImage(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
            }
        }
    }
}

/// An answer without a body.
pub(super) fn empty(status: StatusCode) -> Answer {
    bytes(status, Bytes::new())
}

/// An answer with these bytes.
pub(super) fn bytes(status: StatusCode, body: Bytes) -> Answer {
    let length = body.len();
    let body = Full::new(body).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    put(&mut answer, header::CONTENT_LENGTH, &length.to_string());
    answer
}

/// An answer with this document.
pub(super) fn json(status: StatusCode, document: &serde_json::Value) -> Answer {
    let mut answer = bytes(status, Bytes::from(document.to_string()));
    put(&mut answer, header::CONTENT_TYPE, "application/json");
    answer
}

/// Sets a header; values that no header may hold (from a request's path) are left out.
pub(super) fn put(answer: &mut Answer, name: header::HeaderName, value: &str) {
    if let Ok(value) = header::HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// `Docker-Content-Digest`.
pub(super) const CONTENT_DIGEST: header::HeaderName =
    header::HeaderName::from_static("docker-content-digest");
