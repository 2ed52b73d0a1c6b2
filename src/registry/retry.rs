//! When to try again, and how long to wait before it.
//!
//! Full jitter (<https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/>): many clients
//! that failed together must not come back together.

use std::time::{Duration, Instant};

use super::{Client, RegistryError};

/// Every wait, size and count of the client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Times that something is tried again.
    pub(super) retries: u32,
    /// Times that a refused connection or an unknown name is tried again.
    pub(super) retries_brief: u32,
    /// Longest wait before the first retry; doubles with each.
    pub(super) backoff: Duration,
    /// Longest wait before any retry.
    pub(super) backoff_max: Duration,
    /// After so long without progress nothing is tried again.
    pub(super) patience: Duration,
    /// Longest `Retry-After` that is waited for.
    pub(super) retry_after_max: Duration,
    /// Longest wait for a connection.
    pub(super) connect: Duration,
    /// Longest wait for an answer to a reading request.
    pub(super) answer: Duration,
    /// Longest wait for an answer after everything is sent.
    pub(super) answer_to_write: Duration,
    /// A transfer slower than [`Limits::slow_bytes`] in a window as long as this is given up.
    pub(super) slow_window: Duration,
    /// See [`Limits::slow_window`].
    pub(super) slow_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            retries: 5,
            retries_brief: 2,
            backoff: Duration::from_millis(400),
            backoff_max: Duration::from_secs(10),
            patience: Duration::from_secs(120),
            retry_after_max: Duration::from_secs(60),
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(30),
            answer_to_write: Duration::from_secs(300),
            slow_window: Duration::from_secs(30),
            slow_bytes: 30 << 10,
        }
    }
}

/// Whether trying again can help.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Again {
    /// It cannot.
    Never,
    /// It may, but not for long: nobody listens, or nobody knows the name.
    Brief,
    /// It may.
    Yes,
    /// The server said when.
    After(Duration),
}

/// An error, and whether trying again can help.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: Box<RegistryError>,
    pub(super) again: Again,
}

impl Failure {
    pub(super) fn new(error: RegistryError, again: Again) -> Self {
        Self { error: Box::new(error), again }
    }
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::new(error, Again::Never)
    }
}

/// Counts the tries of one piece of work.
pub(super) struct Tries<'a> {
    client: &'a Client,
    done: u32,
    retries_max: u32,
    /// What failed tries and the waits after them took.
    lost: Duration,
    since: Instant,
}

impl<'a> Tries<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self::at_most(client, client.limits().retries)
    }

    /// Fewer, because there is another place to ask.
    pub(super) fn few(client: &'a Client) -> Self {
        Self::at_most(client, client.limits().retries.min(1))
    }

    fn at_most(client: &'a Client, retries_max: u32) -> Self {
        Self { client, done: 0, retries_max, lost: Duration::ZERO, since: Instant::now() }
    }

    /// Progress was made: what failed before does not count any more.
    pub(super) fn reset(&mut self) {
        (self.done, self.lost) = (0, Duration::ZERO);
    }

    /// Waits until it is time for the next try.
    ///
    /// # Errors
    ///
    /// The failure itself, with the number of tries in it, when there is no next try.
    pub(super) async fn wait(&mut self, failure: Failure) -> Result<(), RegistryError> {
        let limits = self.client.limits();
        let retries_max = match failure.again {
            Again::Never => return Err(*failure.error),
            Again::Brief => self.retries_max.min(limits.retries_brief),
            Again::Yes => self.retries_max,
            Again::After(wait) if wait > limits.retry_after_max => {
                return Err(noted(
                    *failure.error,
                    &format!("it asks to wait {} s", wait.as_secs()),
                ));
            }
            Again::After(_) => self.retries_max,
        };
        self.done += 1;
        let wait = match failure.again {
            Again::After(wait) => wait,
            Again::Never | Again::Brief | Again::Yes => jittered(limits, self.done),
        };
        // A try that took longer than an answer may take was busy sending or receiving for the rest of the time.
        self.lost += self.since.elapsed().min(limits.answer) + wait;
        if self.done > retries_max || self.lost > limits.patience {
            let tries = self.done;
            let times = if tries == 1 { "once".to_owned() } else { format!("{tries} times") };
            return Err(noted(*failure.error, &format!("tried {times}")));
        }
        if let Some(told) = &self.client.options().on_retry {
            told(&failure.error.to_string(), self.done + 1, wait);
        }
        tracing::debug!(error = %failure.error, attempt = self.done + 1, ?wait, "trying again");
        tokio::time::sleep(wait).await;
        self.since = Instant::now();
        Ok(())
    }
}

fn noted(mut error: RegistryError, note: &str) -> RegistryError {
    if let RegistryError::Network { reason, .. } | RegistryError::Refused { reason, .. } =
        &mut error
    {
        *reason = format!("{reason} ({note})");
    }
    error
}

fn jittered(limits: &Limits, tries: u32) -> Duration {
    let doubled = limits.backoff.saturating_mul(1 << (tries - 1).min(16));
    let longest = doubled.min(limits.backoff_max);
    let mut bytes = [0; 4];
    if getrandom::fill(&mut bytes).is_err() {
        return longest;
    }
    longest.mul_f64(f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX))
}

/// `Retry-After`: seconds, or a date. Garbage is as if it were not there.
pub(super) fn retry_after(value: &str) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let then = jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp();
    let wait = then.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_within_their_bounds() {
        let limits = Limits::default();
        for tries in 1..40 {
            let longest = limits.backoff * 2_u32.pow(tries.min(6) - 1);
            assert!(jittered(&limits, tries) <= longest.min(limits.backoff_max));
        }
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let begun = Instant::now();
        let in_an_hour = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
        let date = in_an_hour.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        assert_eq!(retry_after(" 2 "), Some(Duration::from_secs(2)));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::ZERO));
        let wait = retry_after(&date).unwrap().as_secs();
        // The date is in whole seconds, and so is what is left.
        assert!(wait <= 3_600 && wait + begun.elapsed().as_secs() + 3 >= 3_600, "{wait}");
        for garbage in ["", "soon", "-1", "1.5", "99999999999999999999999"] {
            assert_eq!(retry_after(garbage), None, "{garbage}");
        }
    }
}
