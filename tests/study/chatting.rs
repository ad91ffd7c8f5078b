//! Whole studies with a chat model, played by a server on this machine.

use crate::tiny;
use overnight::{
    Outcome, Status,
    proposer::{Chat, ChatOptions, Price},
};
use serde_json::{Value, json};
use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex},
    thread,
};

/// Gives each request the next answer, as OpenAI's Chat Completions, and keeps what was asked.
struct Model {
    url: String,
    asked: Arc<Mutex<Vec<Value>>>,
}

impl Model {
    fn new(answers: Vec<String>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let keep = asked.clone();
        thread::spawn(move || {
            let mut answers = answers.into_iter();
            for stream in listener.incoming().map_while(Result::ok) {
                let request = read_body(&stream);
                keep.lock().unwrap().push(request);
                let Some(answer) = answers.next() else { return };
                let body = json!({
                    "choices": [{
                        "message": {"role": "assistant", "content": answer},
                        "finish_reason": "stop",
                    }],
                    "usage": {"prompt_tokens": 1000, "completion_tokens": 200},
                });
                reply(stream, &body.to_string());
            }
        });
        Self { url, asked }
    }

    /// What the model was told before its answer `n`, all messages in one text.
    fn told(&self, n: usize) -> String {
        let asked = self.asked.lock().unwrap();
        let messages = asked[n]["messages"].as_array().unwrap().iter();
        let texts = messages.map(|message| message["content"].as_str().unwrap_or_default());
        texts.collect::<Vec<_>>().join("\n")
    }
}

fn read_body(stream: &TcpStream) -> Value {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        if line.trim().is_empty() {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    serde_json::from_slice(&body).unwrap()
}

fn reply(mut stream: TcpStream, body: &str) {
    let length = body.len();
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close";
    let _ = write!(stream, "{head}\r\nContent-Length: {length}\r\n\r\n{body}");
}

fn edit(description: &str, from: &str, to: &str) -> String {
    format!(
        "DESCRIPTION: {description}\n\n<<<<<<< SEARCH\nconst SMOOTHING: f64 = {from};{COMMENT}\n=======\n\
         const SMOOTHING: f64 = {to};{COMMENT}\n>>>>>>> REPLACE\n"
    )
}

const COMMENT: &str = " // added to every count  search: log 1e-3..1e2";

pub fn a_chat_model_completes_a_study() {
    let whole = tiny::smoothing("0.5").replace("let nats: f64", "let nats: f32");
    let model = Model::new(vec![
        // Kept.
        edit("less smoothing", "30.0", "3.0"),
        // Does not fit at first, and is discarded when it does.
        edit("more smoothing", "30.0", "60.0"),
        edit("more smoothing", "3.0", "60.0"),
        // A whole file that does not compile, mended by an edit.
        format!("DESCRIPTION: hardly any\n```rust\n{whole}```\n"),
        "DESCRIPTION: hardly any\n<<<<<<< SEARCH\n            let nats: f32\n=======\n            \
         let nats: f64\n>>>>>>> REPLACE\n"
            .replace("let nats: f32", &line_with(&whole, "let nats: f32"))
            .replace("let nats: f64", &line_with(&tiny::source(), "let nats: f64")),
    ]);
    let options = ChatOptions {
        url: Some(model.url.clone()),
        price: Some(Price { input: 1.0, output: 10.0 }),
        ..ChatOptions::new("mock")
    };
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    // The model's edits follow each other.
    let study = tiny::study(dir.path(), corpus.path()).without_thinking_ahead();
    let mut study = study.proposer(Chat::new(options).unwrap()).open().unwrap();
    study.optimize(Some(3)).unwrap();

    let trials = study.trials();
    let statuses: Vec<_> = trials.iter().map(|trial| trial.status).collect();
    assert_eq!(
        statuses,
        [Status::Keep, Status::Keep, Status::Discard, Status::Keep],
        "{trials:#?}"
    );
    assert_eq!(trials[3].outcome, Outcome::Measured);
    assert_eq!((trials[3].repairs, trials[3].description.as_str()), (1, "hardly any"));
    assert!(trials[1..].iter().all(|trial| trial.proposer == "chat:mock"));
    // Two answers each for the second and third.
    assert_eq!(trials[2].measurement.propose_tokens, Some(2400));
    assert!((trials[1].measurement.propose_usd.unwrap() - 0.003).abs() < 1e-9);

    assert!(model.told(0).contains("const SMOOTHING: f64 = 30.0;"));
    assert!(model.told(2).contains("const SMOOTHING: f64 = 3.0;"), "the nearest lines");
    assert!(model.told(3).contains("more smoothing"), "what was discarded");
    assert!(model.told(4).contains("does not compile") && model.told(4).contains("mismatched"));
    assert!(study.folder_of(3).join("propose.log").exists());
}

/// The first line of a source that holds some words.
fn line_with(source: &str, words: &str) -> String {
    source.lines().find(|line| line.contains(words)).unwrap().trim_start().to_owned()
}
