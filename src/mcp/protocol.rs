//! JSON-RPC as MCP speaks it: the revisions that we answer, what a message says, how a reply looks.

use serde_json::{Map, Value, json};

/// A revision of the protocol, named by its date. Dates compare as texts do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Version(&'static str);

/// What we answer, newest first.
const VERSIONS: [Version; 5] = [
    Version("2026-07-28"),
    Version::LAST_WITH_HANDSHAKE,
    Version("2025-06-18"),
    Version("2025-03-26"),
    Version("2024-11-05"),
];

const DECLARED_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const DECLARED_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";

impl Version {
    /// Later revisions have no `initialize`: each request declares its revision in `_meta`.
    /// <https://modelcontextprotocol.io/specification/2026-07-28/basic/versioning>
    pub(super) const LAST_WITH_HANDSHAKE: Self = Self("2025-11-25");

    fn named(name: &str) -> Option<Self> {
        VERSIONS.into_iter().find(|version| version.0 == name)
    }

    /// What to speak after a handshake in which the client asked for `name`.
    pub(super) fn agreed(name: &str) -> Self {
        let known = Self::named(name).filter(|version| !version.is_stateless());
        known.unwrap_or(Self::LAST_WITH_HANDSHAKE)
    }

    /// The revision that a request declares for itself; `None` where it relies on a handshake.
    pub(super) fn declared(params: &Map<String, Value>) -> Result<Option<Self>, Refusal> {
        let meta = |key| params.get("_meta").and_then(|meta| meta.get(key));
        let Some(name) = meta(DECLARED_VERSION) else { return Ok(None) };
        let version = name.as_str().and_then(Self::named).filter(|version| version.is_stateless());
        let version = version.ok_or_else(|| Refusal {
            code: -32022,
            message: "Unsupported protocol version".to_owned(),
            data: Some(json!({"supported": Self::supported(), "requested": name})),
        })?;
        if !meta(DECLARED_CAPABILITIES).is_some_and(Value::is_object) {
            return Err(Refusal::params(format!("`_meta` lacks `{DECLARED_CAPABILITIES}`")));
        }
        Ok(Some(version))
    }

    pub(super) fn supported() -> [&'static str; VERSIONS.len()] {
        VERSIONS.map(Self::name)
    }

    pub(super) fn name(self) -> &'static str {
        self.0
    }

    pub(super) fn is_stateless(self) -> bool {
        self.0 > Self::LAST_WITH_HANDSHAKE.0
    }

    pub(super) fn has_structured_content(self) -> bool {
        self.0 >= "2025-06-18"
    }

    /// Several messages in one came with one revision and went with the next.
    pub(super) fn has_batches(self) -> bool {
        self.0 == "2025-03-26"
    }

    /// A result as this revision wants it.
    pub(super) fn dress(self, mut result: Value) -> Value {
        if self.is_stateless() {
            result["resultType"] = json!("complete");
            result["_meta"] = json!({"io.modelcontextprotocol/serverInfo": server_info()});
        }
        result
    }
}

pub(super) fn server_info() -> Value {
    json!({"name": "overnight", "version": env!("CARGO_PKG_VERSION")})
}

/// Why a request is not answered.
#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    code: i32,
    message: String,
    data: Option<Value>,
}

impl Refusal {
    fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), data: None }
    }

    pub(super) fn parse(problem: impl std::fmt::Display) -> Self {
        Self::new(-32700, format!("not JSON: {problem}"))
    }

    pub(super) fn request(problem: &str) -> Self {
        Self::new(-32600, problem)
    }

    pub(super) fn method(name: &str) -> Self {
        Self::new(-32601, format!("there is no method {name:?}"))
    }

    pub(super) fn params(problem: impl Into<String>) -> Self {
        Self::new(-32602, problem)
    }
}

/// What a client says.
#[derive(Debug, PartialEq)]
pub(super) enum Message {
    Request {
        id: Value,
        method: String,
        params: Map<String, Value>,
    },
    /// Never answered, not even where it makes no sense.
    Notification {
        method: String,
        params: Map<String, Value>,
    },
    /// To a question that we did not ask.
    Response,
}

impl Message {
    /// The message, or why it is none and the id under which to say so.
    pub(super) fn read(message: Value) -> Result<Self, (Value, Refusal)> {
        let Value::Object(mut message) = message else {
            return Err((Value::Null, Refusal::request("a message is an object")));
        };
        let id = message.remove("id");
        let is_id = |id: &Value| id.is_string() || id.is_number();
        let refuse = |refusal| Err((id.clone().filter(is_id).unwrap_or_default(), refusal));
        if message.get("jsonrpc").is_none_or(|version| version != "2.0") {
            return refuse(Refusal::request("`jsonrpc` is not \"2.0\""));
        }
        let method = match message.remove("method") {
            Some(Value::String(method)) => method,
            None if message.contains_key("result") || message.contains_key("error") => {
                return Ok(Self::Response);
            }
            _ => return refuse(Refusal::request("`method` is missing")),
        };
        let params = match message.remove("params") {
            Some(Value::Object(params)) => params,
            Some(_) if id.is_some() => return refuse(Refusal::params("`params` is no object")),
            _ => Map::new(),
        };
        match id {
            None => Ok(Self::Notification { method, params }),
            Some(id) if is_id(&id) => Ok(Self::Request { id, method, params }),
            Some(_) => refuse(Refusal::request("`id` is neither a string nor a number")),
        }
    }
}

pub(super) fn response(id: Value, result: Result<Value, Refusal>) -> Value {
    match result {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(Refusal { code, message, data }) => {
            let mut error = json!({"code": code, "message": message});
            if let Some(data) = data {
                error["data"] = data;
            }
            json!({"jsonrpc": "2.0", "id": id, "error": error})
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handshake_agrees_on_what_the_client_asks_for_or_on_the_newest() {
        for version in ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"] {
            assert_eq!(Version::agreed(version).name(), version);
        }
        // The last of these is known, but has no handshake.
        for version in ["2024-10-07", "2099-01-01", "", "2026-07-28"] {
            assert_eq!(Version::agreed(version).name(), "2025-11-25", "{version}");
        }
    }

    #[test]
    fn a_message_is_a_request_a_notification_or_nonsense() {
        let read =
            |message: Value| Message::read(message).map_err(|(id, refusal)| (id, refusal.code));
        let (method, params) = ("ping".to_owned(), Map::new());
        assert_eq!(
            read(json!({"jsonrpc": "2.0", "id": "a", "method": "ping"})),
            Ok(Message::Request { id: json!("a"), method: method.clone(), params: params.clone() })
        );
        assert_eq!(
            read(json!({"jsonrpc": "2.0", "method": "ping", "params": 3})),
            Ok(Message::Notification { method, params })
        );
        assert_eq!(read(json!({"jsonrpc": "2.0", "id": 1, "result": {}})), Ok(Message::Response));
        for (message, id, code) in [
            (json!(7), Value::Null, -32600),
            (json!({"id": 7, "method": "ping"}), json!(7), -32600),
            (json!({"jsonrpc": "2.0", "id": 7}), json!(7), -32600),
            (json!({"jsonrpc": "2.0", "id": null, "method": "ping"}), Value::Null, -32600),
            (json!({"jsonrpc": "2.0", "id": 7, "method": "ping", "params": []}), json!(7), -32602),
        ] {
            assert_eq!(read(message.clone()), Err((id, code)), "{message}");
        }
    }
}
