//! A model that follows a script, in each of the protocols that coding agents speak.

use crate::tiny;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

/// What the model changes the smoothing from, and to, and says of it, in one proposal each.
pub const IDEAS: [(&str, &str, &str); 3] = [
    ("30.0", "3.0", "less smoothing of the counts, since there are few of most pairs of letters"),
    ("3.0", "60.0", "more smoothing"),
    ("3.0", "0.5", "hardly any"),
];

/// Tokens of one answer, read and written.
pub const TOKENS: u64 = READ + WRITTEN;
const READ: u64 = 5200;
const WRITTEN: u64 = 120;

/// A tool's name and its arguments.
pub type Call = (&'static str, Value);

/// A model that refuses once, and then goes through its ideas.
pub struct Model {
    protocol: Protocol,
    edit: fn(&str, &str, &str) -> Vec<Call>,
    /// Where agents find a folder to work in, another one for each call.
    folders: PathBuf,
    idea: usize,
    refused: bool,
}

/// What the model does next.
enum Turn {
    Call(Call),
    Say(String),
}

impl Model {
    /// One that edits the trainer in the folder that lies in `folders`, by the calls that `edit` makes of a text and
    /// what replaces it.
    pub fn new(
        protocol: Protocol,
        edit: fn(&str, &str, &str) -> Vec<Call>,
        folders: PathBuf,
    ) -> Self {
        Self { protocol, edit, folders, idea: 0, refused: false }
    }

    /// The file to edit, as a model finds it: by the folder that its agent names.
    fn file(&self) -> String {
        let folder = fs::read_dir(&self.folders).unwrap().flatten().next();
        let file = folder.map(|folder| folder.path().join("src/train.rs")).unwrap_or_default();
        file.to_string_lossy().into_owned()
    }

    /// Answers whoever asks; the URL to ask at.
    pub fn serve(self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let model = Arc::new(Mutex::new(self));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let model = model.clone();
                // A connection that is opened in advance must not hold up the others.
                thread::spawn(move || {
                    let Some(request) = read_request(&stream) else { return };
                    let (status, answer) = model.lock().unwrap().answer(&request);
                    reply(stream, status, &answer);
                });
            }
        });
        url
    }

    fn answer(&mut self, request: &Value) -> (&'static str, String) {
        if request.is_null() {
            return ("404 Not Found", String::new());
        }
        if !std::mem::replace(&mut self.refused, true) {
            let error = json!({
                "type": "invalid_request_error", "code": 400, "status": "INVALID_ARGUMENT",
                "message": "Your credit balance is too low.",
            });
            return ("400 Bad Request", json!({"type": "error", "error": error}).to_string());
        }
        let (from, to, description) = IDEAS[self.idea.min(IDEAS.len() - 1)];
        let (from, to) = (line_of(from), line_of(to));
        let step = self.protocol.results(request);
        let turn = match (self.edit)(&from, &to, &self.file()).into_iter().nth(step) {
            Some(call) => Turn::Call(call),
            None => {
                self.idea += 1;
                let block = format!("<<<<<<< SEARCH\n{from}\n=======\n{to}\n>>>>>>> REPLACE");
                let block = format!("src/train.rs\n```rust\n{block}\n```\n");
                let block = if step == 0 { block } else { String::new() };
                Turn::Say(format!("I change the smoothing.\n\n{block}\nDESCRIPTION: {description}"))
            }
        };
        ("200 OK", self.protocol.write(turn, step, request))
    }
}

/// The line of the tiny trainer that sets the smoothing.
fn line_of(smoothing: &str) -> String {
    let source = tiny::smoothing(smoothing);
    source.lines().find(|line| line.starts_with("const SMOOTHING")).unwrap().to_owned()
}

/// How an agent speaks with its model.
#[derive(Clone, Copy)]
pub enum Protocol {
    /// OpenAI's Chat Completions.
    Completions,
    /// OpenAI's Responses.
    Responses,
    /// Anthropic's Messages.
    Messages,
    /// Google's generateContent.
    Gemini,
}

impl Protocol {
    /// How many results of tools a request holds.
    fn results(self, request: &Value) -> usize {
        let request = request.to_string();
        let mark = match self {
            Self::Completions => "\"role\":\"tool\"",
            Self::Responses => "\"type\":\"function_call_output\"",
            Self::Messages => "\"type\":\"tool_result\"",
            Self::Gemini => "\"functionResponse\":{",
        };
        request.matches(mark).count()
    }

    /// A turn as the body of an answer: events, or one object where no stream was asked for.
    fn write(self, turn: Turn, step: usize, request: &Value) -> String {
        let id = format!("call_{step}");
        let events = match self {
            Self::Completions => {
                let (mut message, reason) = match turn {
                    Turn::Say(text) => (json!({"content": text}), "stop"),
                    Turn::Call((name, arguments)) => {
                        let function = json!({"name": name, "arguments": arguments.to_string()});
                        let call =
                            json!({"index": 0, "id": id, "type": "function", "function": function});
                        (json!({"content": null, "tool_calls": [call]}), "tool_calls")
                    }
                };
                message["role"] = "assistant".into();
                let usage = json!({
                    "prompt_tokens": READ, "completion_tokens": WRITTEN,
                    "total_tokens": READ + WRITTEN,
                });
                let whole = |key: &str, kind: &str| {
                    let choice = json!({"index": 0, key: message, "finish_reason": reason});
                    json!({
                        "id": "1", "object": kind, "created": 1, "model": "mock",
                        "choices": [choice], "usage": usage,
                    })
                };
                if request["stream"] != true {
                    return whole("message", "chat.completion").to_string();
                }
                vec![whole("delta", "chat.completion.chunk")]
            }
            Self::Responses => {
                let item = match turn {
                    Turn::Say(text) => json!({
                        "type": "message", "role": "assistant",
                        "content": [{"type": "output_text", "text": text}],
                    }),
                    Turn::Call((name, arguments)) => json!({
                        "type": "function_call", "call_id": id, "name": name,
                        "arguments": arguments.to_string(),
                    }),
                };
                let usage = json!({
                    "input_tokens": READ, "output_tokens": WRITTEN,
                    "total_tokens": READ + WRITTEN,
                });
                vec![
                    json!({"type": "response.output_item.done", "item": item}),
                    json!({"type": "response.completed", "response": {"id": "1", "usage": usage}}),
                ]
            }
            Self::Messages => {
                let (block, delta, reason) = match turn {
                    Turn::Say(text) => (
                        json!({"type": "text", "text": ""}),
                        json!({"type": "text_delta", "text": text}),
                        "end_turn",
                    ),
                    Turn::Call((name, arguments)) => (
                        json!({"type": "tool_use", "id": id, "name": name, "input": {}}),
                        json!({"type": "input_json_delta", "partial_json": arguments.to_string()}),
                        "tool_use",
                    ),
                };
                let usage = json!({"input_tokens": READ, "output_tokens": WRITTEN});
                let message = json!({
                    "id": id, "type": "message", "role": "assistant", "content": [],
                    "model": request["model"], "usage": usage,
                });
                vec![
                    json!({"type": "message_start", "message": message}),
                    json!({"type": "content_block_start", "index": 0, "content_block": block}),
                    json!({"type": "content_block_delta", "index": 0, "delta": delta}),
                    json!({"type": "content_block_stop", "index": 0}),
                    json!({
                        "type": "message_delta", "delta": {"stop_reason": reason}, "usage": usage,
                    }),
                    json!({"type": "message_stop"}),
                ]
            }
            Self::Gemini => {
                let part = match turn {
                    Turn::Say(text) => json!({"text": text}),
                    Turn::Call((name, arguments)) => {
                        json!({"functionCall": {"name": name, "args": arguments}})
                    }
                };
                let content = json!({"role": "model", "parts": [part]});
                let usage = json!({
                    "promptTokenCount": READ, "candidatesTokenCount": WRITTEN,
                    "totalTokenCount": READ + WRITTEN,
                });
                vec![json!({
                    "candidates": [{"content": content, "finishReason": "STOP"}],
                    "usageMetadata": usage,
                })]
            }
        };
        let event = |event: &Value| match event["type"].as_str() {
            Some(name) => format!("event: {name}\ndata: {event}\n\n"),
            None => format!("data: {event}\n\n"),
        };
        events.iter().map(event).collect()
    }
}

/// The JSON of a request, null where it has none; `None` for a connection that is closed unused.
fn read_request(stream: &TcpStream) -> Option<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    Some(serde_json::from_slice(&body).unwrap_or(Value::Null))
}

fn reply(mut stream: TcpStream, status: &str, body: &str) {
    let kind = if body.starts_with('{') { "application/json" } else { "text/event-stream" };
    let length = body.len();
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    );
}
