//! HTTP: a request and its answer, with retries, and an ear for the call to stop.

use super::{
    options::{ChatOptions, Endpoint, Protocol},
    wire,
};
use crate::{error::ProposeError, stop::StopHandle, text::line};
use crossbeam_channel::{RecvTimeoutError, bounded};
use serde_json::Value;
use std::{
    thread,
    time::{Duration, Instant},
};
use ureq::{
    Agent,
    http::{HeaderName, HeaderValue},
};

/// Somebody to send requests to.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    endpoint: Endpoint,
    attempts: usize,
    pause: Duration,
}

/// What a server sent, whatever it means.
struct Response {
    status: u16,
    retry_after: Option<Duration>,
    body: Vec<u8>,
}

/// Why an attempt brought no answer.
enum Failure {
    /// Another attempt may bring one. The server may have said when.
    Passing { problem: String, retry_after: Option<Duration> },
    /// Another attempt brings the same.
    Lasting(ProposeError),
}

/// No answer is larger: it would be a thousand trainers.
const LARGEST_BODY: u64 = 16 << 20;

/// A server that is there takes a connection at once; what it takes long for is the answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Who wants a longer pause is asked again in a later trial.
const LONGEST_PAUSE: Duration = Duration::from_secs(120);

/// How often waits look at the stop handle.
const TICK: Duration = Duration::from_millis(100);

const ANTHROPIC_VERSION: &str = "2023-06-01";

impl Client {
    pub(super) fn new(endpoint: Endpoint, options: &ChatOptions) -> Self {
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            // The key is for one server, not for whatever it points to.
            .max_redirects(0)
            .timeout_global(Some(options.timeout))
            .timeout_connect(Some(CONNECT_TIMEOUT.min(options.timeout)))
            .user_agent(concat!("overnight/", env!("CARGO_PKG_VERSION")));
        if endpoint.is_local {
            config = config.proxy(None);
        }
        let agent = config.build().new_agent();
        Self { agent, endpoint, attempts: options.attempts.max(1), pause: options.pause }
    }

    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Posts the body until there is an answer, or reason to give up.
    pub(super) fn post(&self, body: &Value, stop: &StopHandle) -> Result<Value, ProposeError> {
        let body = body.to_string();
        let mut pause = self.pause;
        let mut left = self.attempts;
        loop {
            let (problem, retry_after) = match self.attempt(body.clone(), stop) {
                Ok(answer) => return Ok(answer),
                Err(Failure::Lasting(error)) => return Err(error),
                Err(Failure::Passing { problem, retry_after }) => (problem, retry_after),
            };
            left -= 1;
            if left == 0 {
                let problem = format!("{problem} ({} attempts)", self.attempts);
                return Err(ProposeError::Failed(problem));
            }
            let wanted = retry_after.unwrap_or_default();
            if wanted > LONGEST_PAUSE {
                let seconds = wanted.as_secs();
                return Err(ProposeError::Failed(format!("{problem}; again in {seconds} s")));
            }
            wait(pause.max(wanted).min(LONGEST_PAUSE), stop)?;
            pause = pause.saturating_mul(2);
        }
    }

    /// One request, on a thread that is left to itself when the study stops: it ends by its time-out.
    fn attempt(&self, body: String, stop: &StopHandle) -> Result<Value, Failure> {
        let interrupted = || Failure::Lasting(ProposeError::Interrupted);
        if stop.is_stopped() {
            return Err(interrupted());
        }
        let (sender, receiver) = bounded(1);
        let (agent, url, headers) = (self.agent.clone(), self.endpoint.url.clone(), self.headers());
        thread::spawn(move || {
            // Nobody listens any more where the study stopped.
            let _ = sender.send(send(&agent, &url, headers, &body));
        });
        loop {
            match receiver.recv_timeout(TICK) {
                Ok(response) => return self.judge(&response.map_err(|error| self.broken(&error))?),
                Err(RecvTimeoutError::Timeout) if stop.is_stopped() => return Err(interrupted()),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let problem = format!("the request to {} broke off", self.endpoint.url);
                    return Err(Failure::Passing { problem, retry_after: None });
                }
            }
        }
    }

    fn headers(&self) -> Vec<(HeaderName, HeaderValue)> {
        let name = HeaderName::from_static;
        let key = self.endpoint.key.as_ref();
        match self.endpoint.protocol {
            Protocol::OpenAi => {
                key.map(|key| (name("authorization"), key.header("Bearer "))).into_iter().collect()
            }
            Protocol::Anthropic => {
                let version = HeaderValue::from_static(ANTHROPIC_VERSION);
                let key = key.map(|key| (name("x-api-key"), key.header("")));
                [(name("anthropic-version"), version)].into_iter().chain(key).collect()
            }
        }
    }

    /// What to make of a request that brought no whole response.
    fn broken(&self, error: &ureq::Error) -> Failure {
        let url = &self.endpoint.url;
        let problem = match error {
            ureq::Error::BodyExceedsLimit(_) => {
                let limit = LARGEST_BODY >> 20;
                let problem = format!("the answer of {url} is larger than {limit} MiB");
                return Failure::Lasting(ProposeError::Failed(problem));
            }
            ureq::Error::Timeout(_) => format!("{url} did not answer in time ({error})"),
            _ => format!("no answer from {url} ({error}); is it running, and is this its URL?"),
        };
        Failure::Passing { problem, retry_after: None }
    }

    /// What to make of a response.
    fn judge(&self, response: &Response) -> Result<Value, Failure> {
        let url = &self.endpoint.url;
        let value: Option<Value> = wire::json_of(&response.body);
        // OpenRouter answers 200, and says in the body that the model's own server did not.
        let status = match (response.status, value.as_ref().and_then(|value| value.get("error"))) {
            (200..=299, Some(error)) if !error.is_null() => {
                error["code"].as_u64().and_then(|code| code.try_into().ok()).unwrap_or(500)
            }
            (status, _) => status,
        };
        let value = match value {
            Some(value) if (200..300).contains(&status) => return Ok(value),
            value => value,
        };
        let complaint = self.complaint(&response.body, value.as_ref());
        let problem = format!("{url} answers {status}: {complaint}");
        let code = value.as_ref().and_then(|value| value.pointer("/error/code"));
        let is_out_of_money = code.and_then(Value::as_str) == Some("insufficient_quota");
        let key = self.endpoint.protocol.key_variable();
        let hint = match status {
            300..=399 => "it points elsewhere; name the server's own URL",
            401 | 403 => &format!("check {key}"),
            402 => "the account is empty",
            404 | 405 => "check the model's name and the URL",
            429 if is_out_of_money => "the account is empty",
            408 | 409 | 425 | 429 | 500.. => {
                let retry_after = response.retry_after;
                return Err(Failure::Passing { problem, retry_after });
            }
            _ => return Err(Failure::Lasting(ProposeError::Failed(problem))),
        };
        Err(Failure::Lasting(ProposeError::Unable(format!("{problem} ({hint})"))))
    }

    /// What a server says went wrong, in any of the shapes that servers have for it.
    fn complaint(&self, body: &[u8], value: Option<&Value>) -> String {
        let places = ["/error/message", "/error", "/message", "/detail"];
        let said = value.and_then(|value| {
            places.iter().find_map(|place| value.pointer(place).and_then(Value::as_str))
        });
        let text = said.map_or_else(|| String::from_utf8_lossy(body), Into::into);
        // In this order: half a key would not be found.
        let text = line(&self.redact(&text), 300);
        if text.is_empty() { "nothing".to_owned() } else { text }
    }

    /// The text without the key.
    pub(super) fn redact(&self, text: &str) -> String {
        self.endpoint.key.as_ref().map_or_else(|| text.to_owned(), |key| key.redact(text))
    }
}

fn send(
    agent: &Agent,
    url: &str,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: &str,
) -> Result<Response, ureq::Error> {
    let mut request = agent.post(url).header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let mut response = request.send(body)?;
    let header = |name: &str| response.headers().get(name)?.to_str().ok().map(str::trim);
    let milliseconds = header("retry-after-ms").and_then(|value| value.parse::<f64>().ok());
    let retry_after = milliseconds.map(|milliseconds| milliseconds / 1000.0);
    let retry_after = retry_after.or_else(|| seconds_until(header("retry-after")?, header("date")));
    let retry_after = retry_after.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let status = response.status().as_u16();
    let body = response.body_mut().with_config().limit(LARGEST_BODY).read_to_vec()?;
    Ok(Response { status, retry_after, body })
}

/// Seconds, or a date (RFC 9110, 10.2.3), which is compared with the server's own clock where it tells that.
fn seconds_until(value: &str, now: Option<&str>) -> Option<f64> {
    if let Ok(seconds) = value.parse() {
        return Some(seconds);
    }
    let moment = |text: &str| Some(jiff::fmt::rfc2822::parse(text).ok()?.timestamp());
    let now = now.and_then(moment).unwrap_or_else(jiff::Timestamp::now);
    Some((moment(value)?.duration_since(now)).as_secs_f64().max(0.0))
}

fn wait(pause: Duration, stop: &StopHandle) -> Result<(), ProposeError> {
    let end = Instant::now() + pause;
    loop {
        if stop.is_stopped() {
            return Err(ProposeError::Interrupted);
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(TICK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_says_when_to_come_again_in_seconds_or_by_a_date() {
        assert_eq!(seconds_until("1.5", None), Some(1.5));
        let (now, then) = ("Fri, 27 Nov 2026 15:00:00 GMT", "Fri, 27 Nov 2026 15:00:40 GMT");
        assert_eq!(seconds_until(then, Some(now)), Some(40.0));
        assert_eq!(seconds_until(now, Some(then)), Some(0.0));
        assert_eq!(seconds_until("soon", Some(now)), None);
    }
}
