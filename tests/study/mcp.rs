//! A study that an agent drives over MCP.

use crate::{compiling::wait_for, tiny};
use overnight::{Ledger, Outcome, Result, StopHandle, StudyBuilder, mcp};
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe},
    path::Path,
    thread::{JoinHandle, spawn},
    time::Duration,
};

/// An agent, and the server that it started.
struct Agent {
    to: PipeWriter,
    from: BufReader<PipeReader>,
    server: JoinHandle<Result<()>>,
}

impl Agent {
    /// An agent whose study is open.
    fn of(dir: &Path, corpus: &Path) -> Self {
        Self::with(tiny::study(dir, corpus))
    }

    fn with(builder: StudyBuilder) -> Self {
        let ((input, to), (from, output)) = (pipe().unwrap(), pipe().unwrap());
        let server = spawn(move || mcp::serve(builder, BufReader::new(input), output));
        let mut agent = Self { to, from: BufReader::new(from), server };
        let hello = agent.ask("initialize", json!({"protocolVersion": "2025-11-25"}));
        assert_eq!(hello["protocolVersion"], "2025-11-25");
        agent.finished();
        agent
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        writeln!(self.to, "{request}").unwrap();
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        let mut reply: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(reply["id"], 1, "{reply}");
        reply["result"].take()
    }

    /// A tool's words and its facts.
    fn call(&mut self, tool: &str, arguments: Value) -> (String, Value) {
        let mut result = self.ask("tools/call", json!({"name": tool, "arguments": arguments}));
        assert_eq!(result["isError"], false, "{result}");
        let text = result["content"][0]["text"].as_str().unwrap().to_owned();
        (text, result["structuredContent"].take())
    }

    /// What became of the latest submission, or of the baseline, however long it takes.
    fn finished(&mut self) -> (String, Value) {
        loop {
            let (text, facts) = self.call("await_result", json!({"seconds": 50}));
            if facts["state"] == "finished" {
                return (text, facts);
            }
        }
    }

    fn leave(self) {
        drop(self.to);
        self.server.join().unwrap().unwrap();
    }
}

pub fn a_pulled_handle_ends_a_conversation_whose_agent_is_still_there() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let stop = StopHandle::new();
    let mut agent = Agent::with(tiny::study(dir.path(), corpus.path()).stop_handle(stop.clone()));
    let ruined = tiny::source().replace("let seq_len =", "let seq_len: String =");
    agent.call("submit_trainer", json!({"source": ruined, "description": "ruined"}));
    stop.stop();
    agent.server.join().unwrap().unwrap();
    drop(agent.to);
}

pub fn an_agent_drives_a_study_over_mcp() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut agent = Agent::of(dir.path(), corpus.path());
    assert_eq!(agent.call("read_trainer", json!({})).0, tiny::source());

    let better = json!({"source": tiny::smoothing("3.0"), "description": "less smoothing"});
    agent.call("submit_trainer", better);
    let (_, kept) = agent.finished();
    assert_eq!(kept["description"], "less smoothing");
    assert_eq!(kept["proposer"], "mcp");
    assert_eq!((&kept["outcome"], &kept["status"]), (&json!("measured"), &json!("keep")), "{kept}");

    let path = dir.path().join("mine.rs");
    fs::write(&path, tiny::source().replace("let seq_len =", "let seq_len: String =")).unwrap();
    agent.call("submit_trainer", json!({"path": path, "description": "lengths as text"}));
    let (text, broken) = agent.finished();
    assert_eq!(broken["description"], "lengths as text");
    assert_eq!(broken["outcome"], "build_failed", "{broken}");
    assert!(text.contains("expected `String`"), "{text}");

    agent.call("submit_trainer", json!({"source": tiny::source(), "description": "as it was"}));
    let (_, repeated) = agent.finished();
    assert_eq!(repeated["description"], "as it was");
    assert_eq!(repeated["outcome"], "refused", "{repeated}");

    let (_, best) = agent.call("best", json!({}));
    assert_eq!(best["trial"], kept["trial"]);
    assert_eq!(agent.call("read_trainer", json!({})).0, tiny::smoothing("3.0"));
    let (history, _) = agent.call("history", json!({"with_rules": true}));
    for part in ["bits per byte", "less smoothing", "lengths as text", "as it was"] {
        assert!(history.contains(part), "{part:?} is missing:\n{history}");
    }
    agent.leave();

    let trials = Ledger::read(dir.path()).unwrap();
    assert_eq!(trials.last().unwrap().outcome, Outcome::Refused);
}

pub fn an_agent_that_comes_back_finds_the_study_as_it_left_it() {
    let (corpus, dir) = (tiny::corpus(), tempfile::tempdir().unwrap());
    let mut agent = Agent::of(dir.path(), corpus.path());
    let better = json!({"source": tiny::smoothing("3.0"), "description": "less smoothing"});
    agent.call("submit_trainer", better);
    agent.finished();
    let later = json!({"source": tiny::smoothing("60.0"), "description": "for later"});
    agent.call("submit_trainer", later);
    let folder = dir.path().join("trials/0002");
    wait_for("the second trial", Duration::from_secs(60), || folder.join("source.rs").exists());
    agent.leave();

    // What had been begun when the agent left comes to its end, and nobody has to submit it again.
    let mut agent = Agent::of(dir.path(), corpus.path());
    let mut history = String::new();
    wait_for("its end", Duration::from_secs(120), || {
        history = agent.call("history", json!({})).0;
        history.contains("for later")
    });
    assert!(history.contains("less smoothing"), "{history}");
    assert_eq!(agent.call("read_trainer", json!({})).0, tiny::smoothing("3.0"));
    agent.leave();
}
