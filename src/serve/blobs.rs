//! Blobs out: whole or by range, streamed from the file.

use std::io::SeekFrom;

use futures_util::TryStreamExt as _;
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Method, StatusCode,
    body::Frame,
    header::{self, HeaderMap},
};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::answer::{Answer, CONTENT_DIGEST, Refusal, empty, put};
use crate::{oci::Digest, store::Store};

/// Bytes read from disk at once.
const CHUNK_BYTES: usize = 256 << 10;

/// GET and HEAD of a blob.
pub(super) async fn get(
    store: &Store,
    method: &Method,
    headers: &HeaderMap,
    digest: Digest,
) -> Result<Answer, Refusal> {
    let Some(size) = store.blob_size(digest) else {
        let message = match store.diff_id_of(digest)? {
            None => format!("blob {digest} unknown to registry"),
            Some(_) => format!(
                "blob {digest} is a layer that only another registry has; \
                 `idpbuilder push` of an image with it brings it here"
            ),
        };
        return Err(Refusal::new(StatusCode::NOT_FOUND, "BLOB_UNKNOWN", message));
    };
    let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok());
    let (status, start, end) = match range.map(|range| parse_range(range, size)) {
        None | Some(Range::Ignored) => (StatusCode::OK, 0, size),
        Some(Range::Part(start, end)) => (StatusCode::PARTIAL_CONTENT, start, end),
        Some(Range::Beyond) => {
            let mut answer = empty(StatusCode::RANGE_NOT_SATISFIABLE);
            put(&mut answer, header::CONTENT_RANGE, &format!("bytes */{size}"));
            return Ok(answer);
        }
    };
    let mut answer = empty(status);
    if method == Method::GET {
        let file = tokio::fs::File::from_std(store.open_blob(digest)?);
        *answer.body_mut() = stream(file, start, end).await.map_err(|error| {
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", error.to_string())
        })?;
    }
    put(&mut answer, header::CONTENT_LENGTH, &(end - start).to_string());
    put(&mut answer, header::CONTENT_TYPE, "application/octet-stream");
    put(&mut answer, header::ACCEPT_RANGES, "bytes");
    put(&mut answer, CONTENT_DIGEST, &digest.to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let range = format!("bytes {start}-{}/{size}", end - 1);
        put(&mut answer, header::CONTENT_RANGE, &range);
    }
    Ok(answer)
}

async fn stream(
    mut file: tokio::fs::File,
    start: u64,
    end: u64,
) -> std::io::Result<super::answer::Body> {
    file.seek(SeekFrom::Start(start)).await?;
    let chunks = ReaderStream::with_capacity(file.take(end - start), CHUNK_BYTES);
    Ok(BodyExt::boxed(StreamBody::new(chunks.map_ok(Frame::data))))
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// Not of a form that we serve: the whole is sent, as RFC 9110 allows.
    Ignored,
    /// First byte, and one past the last.
    Part(u64, u64),
    /// Starts past the end.
    Beyond,
}

/// `bytes=A-B`, `bytes=A-`, `bytes=-N`; several ranges at once are ignored.
fn parse_range(text: &str, size: u64) -> Range {
    let Some((first, last)) = text.strip_prefix("bytes=").and_then(|rest| rest.split_once('-'))
    else {
        return Range::Ignored;
    };
    let (start, end) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(start), Ok(last)) if start <= last => (start, last.saturating_add(1).min(size)),
        (Ok(start), _) if last.is_empty() => (start, size),
        (_, Ok(0)) if first.is_empty() => return Range::Beyond,
        (_, Ok(count)) if first.is_empty() => (size.saturating_sub(count), size),
        _ => return Range::Ignored,
    };
    if start >= size { Range::Beyond } else { Range::Part(start, end) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn g08_ranges() {
        for (text, range) in [
            ("bytes=0-0", Range::Part(0, 1)),
            ("bytes=-5", Range::Part(5, 10)),
            ("bytes=-50", Range::Part(0, 10)),
            ("bytes=5-", Range::Part(5, 10)),
            ("bytes=5-99", Range::Part(5, 10)),
            ("bytes=10-", Range::Beyond),
            ("bytes=-0", Range::Beyond),
            ("bytes=0-1,3-4", Range::Ignored),
            ("bytes=4-2", Range::Ignored),
            ("items=0-1", Range::Ignored),
            ("bytes=0-18446744073709551615", Range::Part(0, 10)),
        ] {
            assert_eq!(parse_range(text, 10), range, "{text}");
        }
    }
}
