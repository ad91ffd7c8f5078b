//! The server's side of the conversation: what is answered at once, and what waits for a trial.

use super::{
    desk::Desk,
    protocol::{Message, Refusal, Version, response, server_info},
    tools::{self, INSTRUCTIONS, Tool},
};
use serde_json::{Map, Value, json};
use std::time::{Duration, Instant};

pub(super) struct Server {
    pub desk: Desk,
    /// What the handshake agreed on.
    version: Version,
    waiting: Vec<Waiting>,
}

/// A call of `await_result` that is not answered yet.
struct Waiting {
    id: Value,
    version: Version,
    trial: Option<usize>,
    until: Instant,
}

/// What a request comes to.
enum Turn {
    Now(Value),
    Later { trial: Option<usize>, until: Instant },
}

impl Server {
    pub(super) fn new(desk: Desk) -> Self {
        Self { desk, version: Version::LAST_WITH_HANDSHAKE, waiting: Vec::new() }
    }

    /// Reads a line and says what there is to reply at once.
    pub(super) fn hear(&mut self, line: &[u8]) -> Option<Value> {
        if line.trim_ascii().is_empty() {
            return None;
        }
        match serde_json::from_slice(line) {
            Ok(Value::Array(batch)) => self.batch(batch),
            Ok(message) => self.message(message),
            Err(problem) => Some(response(Value::Null, Err(Refusal::parse(problem)))),
        }
    }

    /// How long there is nothing to do if nothing happens.
    pub(super) fn patience(&self) -> Duration {
        let next = self.waiting.iter().map(|waiting| waiting.until).min();
        next.map_or(Duration::from_secs(3600), |next| {
            next.saturating_duration_since(Instant::now())
        })
    }

    /// Replies to those who have waited long enough, or whose trial is over.
    pub(super) fn due(&mut self) -> Vec<Value> {
        let (now, desk) = (Instant::now(), &self.desk);
        let is_due =
            |waiting: &mut Waiting| waiting.until <= now || desk.result(waiting.trial).is_some();
        self.waiting.extract_if(.., is_due).map(|waiting| reply(desk, waiting)).collect()
    }

    /// The replies to a batch come in one, so nothing in it may wait.
    fn batch(&mut self, batch: Vec<Value>) -> Option<Value> {
        if !self.version.has_batches() || batch.is_empty() {
            let refusal = Refusal::request("batches are for revision 2025-03-26, and not empty");
            return Some(response(Value::Null, Err(refusal)));
        }
        let mut replies = Vec::new();
        for message in batch {
            let waiting = self.waiting.len();
            replies.extend(self.message(message));
            if self.waiting.len() > waiting {
                replies.extend(self.waiting.pop().map(|waiting| reply(&self.desk, waiting)));
            }
        }
        (!replies.is_empty()).then_some(Value::Array(replies))
    }

    fn message(&mut self, message: Value) -> Option<Value> {
        match Message::read(message) {
            Ok(Message::Request { id, method, params }) => self.request(id, &method, params),
            Ok(Message::Notification { method, params }) => {
                if method == "notifications/cancelled" {
                    self.waiting.retain(|waiting| params.get("requestId") != Some(&waiting.id));
                }
                None
            }
            Ok(Message::Response) => None,
            Err((id, refusal)) => Some(response(id, Err(refusal))),
        }
    }

    fn request(&mut self, id: Value, method: &str, params: Map<String, Value>) -> Option<Value> {
        let turn = Version::declared(&params).and_then(|declared| {
            let version = declared.unwrap_or(self.version);
            Ok((version, self.turn(version, method, params)?))
        });
        match turn {
            Ok((version, Turn::Now(result))) => Some(response(id, Ok(version.dress(result)))),
            Ok((version, Turn::Later { trial, until })) => {
                self.waiting.push(Waiting { id, version, trial, until });
                None
            }
            Err(refusal) => Some(response(id, Err(refusal))),
        }
    }

    fn turn(
        &mut self,
        version: Version,
        method: &str,
        params: Map<String, Value>,
    ) -> Result<Turn, Refusal> {
        let result = match (method, version.is_stateless()) {
            ("initialize", false) => self.initialize(&params)?,
            ("ping", false) => json!({}),
            ("server/discover", true) => json!({
                "supportedVersions": Version::supported(),
                "capabilities": {"tools": {}},
                "instructions": INSTRUCTIONS,
                "ttlMs": 3_600_000,
                "cacheScope": "public",
            }),
            ("tools/list", false) => json!({"tools": tools::list()}),
            ("tools/list", true) => {
                json!({"tools": tools::list(), "ttlMs": 3_600_000, "cacheScope": "public"})
            }
            ("tools/call", _) => return self.call(version, params),
            _ => return Err(Refusal::method(method)),
        };
        Ok(Turn::Now(result))
    }

    fn initialize(&mut self, params: &Map<String, Value>) -> Result<Value, Refusal> {
        let Some(asked) = params.get("protocolVersion").and_then(Value::as_str) else {
            return Err(Refusal::params("`protocolVersion` is missing"));
        };
        self.version = Version::agreed(asked);
        Ok(json!({
            "protocolVersion": self.version.name(),
            "capabilities": {"tools": {}},
            "serverInfo": server_info(),
            "instructions": INSTRUCTIONS,
        }))
    }

    fn call(&mut self, version: Version, mut params: Map<String, Value>) -> Result<Turn, Refusal> {
        let arguments = match params.remove("arguments") {
            None | Some(Value::Null) => Map::new(),
            Some(Value::Object(arguments)) => arguments,
            Some(_) => return Err(Refusal::params("`arguments` is no object")),
        };
        let Some(name) = params.get("name").and_then(Value::as_str) else {
            return Err(Refusal::params("`name` is missing"));
        };
        let Some(tool) = Tool::read(name, arguments) else {
            return Err(Refusal::params(format!("there is no tool {name:?}")));
        };
        let answer = match tool {
            Ok(Tool::Submit(submit)) => self.desk.submit(submit),
            Ok(Tool::Await(wanted)) => {
                let seconds = wanted.seconds.unwrap_or(tools::USUAL_WAIT);
                let wait = Duration::from_secs_f64(seconds.clamp(0.0, tools::LONGEST_WAIT));
                return Ok(Turn::Later { trial: wanted.trial, until: Instant::now() + wait });
            }
            Ok(Tool::History(wanted)) => self.desk.history(wanted.with_rules),
            Ok(Tool::Best) => self.desk.best(),
            Ok(Tool::Read(wanted)) => self.desk.source(wanted.trial),
            Err(problem) => Err(problem),
        };
        Ok(Turn::Now(tools::result(answer, version)))
    }
}

fn reply(desk: &Desk, Waiting { id, version, trial, .. }: Waiting) -> Value {
    let answer = desk.result(trial).unwrap_or_else(|| Ok(desk.progress(trial)));
    response(id, Ok(version.dress(tools::result(answer, version))))
}
