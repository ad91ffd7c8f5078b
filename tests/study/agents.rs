//! Whole studies with real coding agents, whose model a server on this machine plays.
//!
//! An agent that is neither on the PATH nor in the folder `bin` of `OVERNIGHT_AGENTS` is left out;
//! `tests/agents/install.sh` fills such a folder.

use crate::tiny;
use overnight::{Event, Status, proposer::Agent};
use serde_json::{Value, json};
use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

/// What the model changes the smoothing from, and to, and says of it, in one proposal each.
const IDEAS: [(&str, &str, &str); 3] = [
    ("30.0", "3.0", "less smoothing of the counts, since there are few of most pairs of letters"),
    ("3.0", "60.0", "more smoothing"),
    ("3.0", "0.5", "hardly any"),
];

/// Tokens of one answer.
const READ: u64 = 5200;
const WRITTEN: u64 = 120;

/// An agent that is known by name.
struct Known {
    name: &'static str,
    arguments: &'static str,
    protocol: Protocol,
    /// The calls of its tools that replace the first text by the second, in the file named last.
    edit: fn(&str, &str, &str) -> Vec<Call>,
    /// Has it ask the server at a URL, by files in its home and by variables.
    configure: fn(&str, &Path) -> Vec<(&'static str, String)>,
    /// Whether it tells what it cost.
    priced: bool,
}

/// A tool's name and its arguments.
type Call = (&'static str, Value);

pub fn aider_edits_the_trainer() {
    completes_a_study(&Known {
        name: "aider",
        arguments: "--model openai/gpt-4o",
        protocol: Protocol::Completions,
        // It has no tools: its model writes blocks.
        edit: |_, _, _| Vec::new(),
        configure: |url, _| {
            vec![("OPENAI_API_BASE", format!("{url}/v1")), ("OPENAI_API_KEY", "none".into())]
        },
        priced: true,
    });
}

pub fn claude_edits_the_trainer() {
    completes_a_study(&Known {
        name: "claude",
        arguments: "--model sonnet",
        protocol: Protocol::Messages,
        edit: |from, to, file| {
            vec![
                ("Read", json!({"file_path": file})),
                ("Edit", json!({"file_path": file, "old_string": from, "new_string": to})),
            ]
        },
        configure: |url, _| {
            vec![("ANTHROPIC_BASE_URL", url.into()), ("ANTHROPIC_API_KEY", "none".into())]
        },
        priced: true,
    });
}

pub fn codex_edits_the_trainer() {
    completes_a_study(&Known {
        name: "codex",
        arguments: "",
        protocol: Protocol::Responses,
        edit: |from, to, _| {
            let patch = format!(
                "*** Begin Patch\n*** Update File: src/train.rs\n@@\n-{from}\n+{to}\n*** End Patch"
            );
            vec![("exec_command", json!({"cmd": format!("apply_patch <<'EOF'\n{patch}\nEOF\n")}))]
        },
        configure: |url, home| {
            let provider = "model = \"mock\"\nmodel_provider = \"mock\"\n[model_providers.mock]\n\
                            name = \"mock\"\nenv_key = \"MOCK_KEY\"\nwire_api = \"responses\"\n";
            let config = format!("{provider}base_url = \"{url}/v1\"\n");
            fs::write(home.join("config.toml"), config).unwrap();
            vec![("CODEX_HOME", home.to_string_lossy().into()), ("MOCK_KEY", "none".into())]
        },
        priced: false,
    });
}

pub fn gemini_edits_the_trainer() {
    completes_a_study(&Known {
        name: "gemini",
        arguments: "--model gemini-2.5-flash",
        protocol: Protocol::Gemini,
        edit: |from, to, file| {
            let arguments = json!({
                "file_path": file, "instruction": "Change the smoothing.",
                "old_string": from, "new_string": to,
            });
            vec![("read_file", json!({"file_path": file})), ("replace", arguments)]
        },
        configure: |url, home| {
            fs::create_dir(home.join(".gemini")).unwrap();
            let settings = json!({"security": {"auth": {"selectedType": "gemini-api-key"}}});
            fs::write(home.join(".gemini/settings.json"), settings.to_string()).unwrap();
            vec![("GOOGLE_GEMINI_BASE_URL", url.into()), ("GEMINI_API_KEY", "none".into())]
        },
        priced: false,
    });
}

pub fn opencode_edits_the_trainer() {
    completes_a_study(&Known {
        name: "opencode",
        arguments: "--model mock/mock",
        protocol: Protocol::Completions,
        edit: |from, to, file| {
            vec![
                ("read", json!({"filePath": file})),
                ("edit", json!({"filePath": file, "oldString": from, "newString": to})),
            ]
        },
        configure: |url, _| {
            let config = json!({"provider": {"mock": {
                "npm": "@ai-sdk/openai-compatible",
                "options": {"baseURL": format!("{url}/v1"), "apiKey": "none"},
                "models": {"mock": {"cost": {"input": 1, "output": 4}}},
            }}});
            vec![("OPENCODE_CONFIG_CONTENT", config.to_string())]
        },
        priced: true,
    });
}

pub fn pi_edits_the_trainer() {
    completes_a_study(&Known {
        name: "pi",
        arguments: "--provider mock --model mock",
        protocol: Protocol::Completions,
        edit: |from, to, file| {
            let edits = json!([{"oldText": from, "newText": to}]);
            vec![("edit", json!({"path": file, "edits": edits}))]
        },
        configure: |url, home| {
            let cost = json!({"input": 1, "output": 4, "cacheRead": 0, "cacheWrite": 0});
            let models = json!({"providers": {"mock": {
                "baseUrl": format!("{url}/v1"), "api": "openai-completions", "apiKey": "none",
                "models": [{"id": "mock", "cost": cost}],
            }}});
            fs::write(home.join("models.json"), models.to_string()).unwrap();
            vec![("PI_CODING_AGENT_DIR", home.to_string_lossy().into())]
        },
        priced: true,
    });
}

/// A refusal, which the agent passes on, then three proposals.
fn completes_a_study(known: &Known) {
    let Some(folder) = folder_of(known.name) else {
        println!("skipped: there is no {} on this machine", known.name);
        return;
    };
    let (corpus, home) = (tiny::corpus(), tempfile::tempdir().unwrap());
    // As its agent sees it: where a temporary folder is a link, what it leads to.
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().canonicalize().unwrap();
    let file = dir.join("brief/src/train.rs").to_string_lossy().into_owned();
    let model = Model { protocol: known.protocol, edit: known.edit, file, idea: 0, refused: false };

    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(std::iter::once(folder).chain(env::split_paths(&path))).unwrap();
    let mut agent = Agent::new(format!("{} -- {}", known.name, known.arguments).parse().unwrap())
        .limit(Duration::from_secs(120))
        .env("PATH", path.to_string_lossy())
        .env("NO_PROXY", "127.0.0.1");
    for name in ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_DATA_HOME"] {
        agent = agent.env(name, home.path().to_string_lossy());
    }
    for (name, value) in (known.configure)(&model.serve(), home.path()) {
        agent = agent.env(name, value);
    }
    let (sender, events) = crossbeam_channel::unbounded();
    let study = tiny::study(&dir, corpus.path()).proposer(agent).observer(sender);
    let mut study = study.open().unwrap();
    study.optimize(Some(IDEAS.len())).unwrap();

    let failures: Vec<String> = events
        .try_iter()
        .filter_map(|event| match event {
            Event::ProposerFailed { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    assert!(failures.len() == 1 && failures[0].contains("redit balance"), "{failures:?}");
    let trials = &study.trials()[1..];
    let statuses: Vec<_> = trials.iter().map(|trial| trial.status).collect();
    assert_eq!(statuses, [Status::Keep, Status::Discard, Status::Keep], "{trials:#?}");
    let calls = (known.edit)("", "", "").len() as u64;
    for (trial, (_, _, description)) in trials.iter().zip(IDEAS) {
        assert_eq!((trial.proposer.as_str(), trial.repairs), (known.name, 0));
        assert_eq!(trial.description, description);
        assert_eq!(trial.remarks, [""; 0], "nothing else was changed");
        assert_eq!(trial.measurement.propose_tokens, Some((calls + 1) * (READ + WRITTEN)));
        assert_eq!(trial.measurement.propose_usd.is_some(), known.priced);
    }
}

/// Where an agent lies.
fn folder_of(name: &str) -> Option<PathBuf> {
    let given = env::var_os("OVERNIGHT_AGENTS").map(|folder| Path::new(&folder).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    given.into_iter().chain(env::split_paths(&path)).find(|folder| folder.join(name).is_file())
}

/// A model that refuses once, and then goes through its ideas.
struct Model {
    protocol: Protocol,
    edit: fn(&str, &str, &str) -> Vec<Call>,
    file: String,
    idea: usize,
    refused: bool,
}

/// What the model does next.
enum Turn {
    Call(Call),
    Say(String),
}

impl Model {
    /// Answers whoever asks; the URL to ask at.
    fn serve(self) -> String {
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
        let turn = match (self.edit)(&from, &to, &self.file).into_iter().nth(step) {
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
enum Protocol {
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
