//! The tools: how they are described to a model, what they are called with, how they answer.

use super::protocol::Version;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value, json};
use std::path::PathBuf;

/// Shown to the model before it calls anything.
pub(super) const INSTRUCTIONS: &str = "\
A study searches for a better trainer: one Rust source file, compiled, trained for a fixed budget and \
scored by the host, kept if it scores better than the best so far (the incumbent). You propose the \
sources. Begin with history (with_rules: true) and read_trainer. Then, over and over: edit a copy of \
the incumbent's source, one idea at a time; submit_trainer; await_result until the trial is finished. \
Trials run one after the other and take minutes. A kept source is the incumbent of the next trial.";

/// A call of a tool.
pub(super) enum Tool {
    Submit(Submit),
    Await(Await),
    History(History),
    Best,
    Read(Read),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Submit {
    pub source: Option<String>,
    pub path: Option<PathBuf>,
    pub description: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Await {
    pub trial: Option<usize>,
    pub seconds: Option<f64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct History {
    #[serde(default)]
    pub with_rules: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Read {
    pub trial: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

impl Tool {
    /// The call; `None` where no tool has that name, an error where the arguments are not its own.
    pub(super) fn read(name: &str, arguments: Map<String, Value>) -> Option<Result<Self, String>> {
        Some(match name {
            "submit_trainer" => typed(arguments).map(Self::Submit),
            "await_result" => typed(arguments).map(Self::Await),
            "history" => typed(arguments).map(Self::History),
            "best" => typed(arguments).map(|Nothing {}| Self::Best),
            "read_trainer" => typed(arguments).map(Self::Read),
            _ => return None,
        })
    }
}

fn typed<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, String> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|problem| format!("the arguments do not fit: {problem}"))
}

pub(super) fn list() -> Value {
    let trial = |description| json!({"type": "integer", "minimum": 0, "description": description});
    json!([
        tool(
            "submit_trainer",
            "Submit the whole source of a trainer as the next trial: it is compiled, trained for the \
             study's budget, scored, and kept if it is better than the incumbent. Returns at once, \
             with the trial's number; call await_result for what becomes of it. One trial at a time: \
             while one is under way, another submission is refused. A source that repeats an earlier \
             trial, but for formatting and comments, comes to nothing.",
            json!({
                "source": {
                    "type": "string",
                    "description": "The whole text of the source file, no diff. Give this or `path`.",
                },
                "path": {
                    "type": "string",
                    "description": "A file that holds the source: an absolute path on the server's \
                                    machine. It is read at once. Give this or `source`.",
                },
                "description": {
                    "type": "string",
                    "description": "One line for the record: what is tried and why it may help.",
                },
            }),
            &["description"],
        ),
        tool(
            "await_result",
            "Wait for a trial to finish. Returns as soon as it has, with its measurements, whether it \
             was kept, and the compiler's or the program's words if it failed. If it is still under \
             way when `seconds` have passed, returns how far it is: call again, as often as it takes. \
             Before the first submission it waits for the baseline, the unchanged trainer, whose \
             preparation may take minutes.",
            json!({
                "trial": trial("The trial's number. Default: the latest submission."),
                "seconds": {
                    "type": "number", "minimum": 0, "maximum": LONGEST_WAIT, "default": USUAL_WAIT,
                    "description": "How long to wait, at most; stay below your own time-out.",
                },
            }),
            &[],
        ),
        tool(
            "history",
            "What the study has learned so far, as Markdown: the changes that were kept with their \
             diffs, the ideas that were discarded or failed, and how much two measurements of one \
             source differ. Read it before you think of the next idea.",
            json!({
                "with_rules": {
                    "type": "boolean", "default": false,
                    "description": "Begin with the rules: the human's research program and what a \
                                    source may call. Ask for them once, before the first submission.",
                },
            }),
            &[],
        ),
        tool(
            "best",
            "The incumbent: the best trial kept so far, with its measurements and the path of its \
             source.",
            json!({}),
            &[],
        ),
        tool(
            "read_trainer",
            "The source of the incumbent, to start the next one from, or of any other trial.",
            json!({"trial": trial("The trial's number, 0 is the baseline. Default: the incumbent.")}),
            &[],
        ),
    ])
}

fn tool(name: &str, description: &str, properties: Value, required: &[&str]) -> Value {
    json!({
        "name": name,
        "description": description,
        "inputSchema": {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": false,
        },
        // Clients ask their human before they call a tool that may destroy something.
        "annotations": {
            "readOnlyHint": name != "submit_trainer",
            "destructiveHint": false,
            "openWorldHint": false,
        },
    })
}

/// Seconds that one call waits where the client does not say.
pub(super) const USUAL_WAIT: f64 = 20.0;
/// Clients give up after 60 seconds, and some of that is spent on the way.
pub(super) const LONGEST_WAIT: f64 = 50.0;

/// What a tool answers: an error is for the model to read, and to do better.
pub(super) type Answer = Result<Reply, String>;

/// Words for a model, and facts where a program may want them.
#[derive(Debug, PartialEq)]
pub(super) struct Reply {
    pub text: String,
    pub facts: Option<Map<String, Value>>,
}

impl Reply {
    /// `facts` is an object.
    pub(super) fn new(text: String, facts: &Value) -> Self {
        Self { text, facts: facts.as_object().cloned() }
    }

    pub(super) fn words(text: String) -> Self {
        Self { text, facts: None }
    }
}

/// An answer as a client of that revision reads it. A model is shown the content or the structured
/// content, as its client likes, so that each is whole.
pub(super) fn result(answer: Answer, version: Version) -> Value {
    let block = |text: &str| json!({"type": "text", "text": text});
    let Reply { text, facts } = match answer {
        Ok(reply) => reply,
        Err(problem) => return json!({"content": [block(&problem)], "isError": true}),
    };
    let Some(mut facts) = facts else {
        return json!({"content": [block(&text)], "isError": false});
    };
    let plain = block(&Value::Object(facts.clone()).to_string());
    let mut result = json!({"content": [block(&text), plain], "isError": false});
    if version.has_structured_content() {
        facts.insert("summary".to_owned(), json!(text));
        result["structuredContent"] = Value::Object(facts);
    }
    result
}
