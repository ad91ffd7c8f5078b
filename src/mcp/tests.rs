//! Whole conversations over pipes, beside a study that is made up.

use super::{
    converse,
    submissions::{Submissions, Told},
};
use crate::{
    error::{Error, Result},
    event::Event,
    proposer::Proposer,
    record::{Outcome, Status, Trial, made_up::trial},
    stop::StopHandle,
};
use crossbeam_channel::Sender;
use serde_json::{Value, json};
use std::{
    fs,
    io::{BufRead, BufReader, PipeReader, PipeWriter, Write, pipe},
    path::{Path, PathBuf},
    thread::{JoinHandle, sleep, spawn},
    time::Duration,
};

/// A client, and the server that it started.
struct Client {
    to: PipeWriter,
    from: BufReader<PipeReader>,
    server: JoinHandle<Result<()>>,
    asked: u64,
}

impl Client {
    fn of<S>(study: S) -> Self
    where
        S: FnOnce(Submissions, Sender<Event>, StopHandle) -> Result<()> + Send + 'static,
    {
        let ((input, to), (from, output)) = (pipe().unwrap(), pipe().unwrap());
        let server =
            spawn(move || converse(BufReader::new(input), output, &StopHandle::new(), study));
        Self { to, from: BufReader::new(from), server, asked: 0 }
    }

    /// A client of a made-up study that waits for the first submission.
    fn of_open_study(folder: &Path) -> Self {
        let mut client = Self::of(made_up(folder.to_owned()));
        let baseline = client.call("await_result", json!({"seconds": 50}));
        assert_eq!(baseline["structuredContent"]["trial"], 0, "{baseline}");
        client
    }

    fn say(&mut self, line: &str) {
        writeln!(self.to, "{line}").unwrap();
    }

    fn hear(&mut self) -> Value {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|problem| panic!("{line:?}: {problem}"))
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        self.asked += 1;
        let id = self.asked;
        self.say(
            &json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string(),
        );
        let reply = self.hear();
        assert_eq!((&reply["jsonrpc"], &reply["id"]), (&json!("2.0"), &json!(id)), "{reply}");
        reply
    }

    fn call(&mut self, tool: &str, arguments: Value) -> Value {
        let reply = self.ask("tools/call", json!({"name": tool, "arguments": arguments}));
        reply["result"].clone()
    }

    fn submit(&mut self, source: &str) -> Value {
        self.call("submit_trainer", json!({"source": source, "description": "an idea"}))
    }

    /// Nothing was said since the last reply: the next is to a ping.
    fn assert_silence(&mut self) {
        assert_eq!(self.ask("ping", json!({}))["result"], json!({}));
    }

    fn leave(self) -> Result<()> {
        drop(self.to);
        self.server.join().unwrap()
    }
}

fn text(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_default()
}

/// A study that keeps every trial at once, but for three sources: `broken` does not compile,
/// `endless` trains until the study is stopped, and instead of `lost` it asks for another one.
fn made_up(folder: PathBuf) -> impl FnOnce(Submissions, Sender<Event>, StopHandle) -> Result<()> {
    move |mut submissions, observer, stop| {
        let mut trials = Vec::new();
        let finish =
            |submissions: &mut Submissions, trials: &mut Vec<Trial>, trial: Trial, source: &str| {
                let folder = folder.join(format!("trials/{:04}", trial.trial));
                fs::create_dir_all(&folder).unwrap();
                fs::write(folder.join("source.rs"), source).unwrap();
                fs::write(folder.join("build.log"), "error[E0308]: mismatched types\n").unwrap();
                submissions.observe(&trial, source);
                trials.push(trial);
            };
        finish(&mut submissions, &mut trials, trial(0, Status::Keep, Some(1.5), "baseline"), "old");
        loop {
            let number = trials.len();
            let told = Told {
                source: "source.rs".to_owned(),
                trial: number,
                study: folder.clone(),
                trials: trials.clone(),
                history: format!("# History\n\n{number} trials\n"),
                rules: "The lowest wins.".to_owned(),
            };
            let Ok(proposal) = submissions.wait(told, &stop) else { return Ok(()) };
            let (progress, elapsed_seconds, steps, tokens) = (0.4, 2.0, 30, 300);
            let training = Event::Training {
                trial: number,
                progress,
                elapsed_seconds,
                steps,
                tokens,
                loss: None,
            };
            observer.send(training).unwrap();
            let mut done = trial(number, Status::Keep, Some(1.4), &proposal.description);
            match proposal.source.as_str() {
                "endless" => {
                    while !stop.is_stopped() {
                        sleep(Duration::from_millis(1));
                    }
                    return Ok(());
                }
                "lost" => continue,
                "broken" => {
                    done = trial(number, Status::Crash, None, &proposal.description);
                    done.outcome = Outcome::BuildFailed;
                    done.reason = Some("src/train.rs:1: mismatched types".to_owned());
                }
                _ => {}
            }
            finish(&mut submissions, &mut trials, done, &proposal.source);
        }
    }
}

fn meta(version: &str) -> Value {
    json!({
        "io.modelcontextprotocol/protocolVersion": version,
        "io.modelcontextprotocol/clientCapabilities": {},
    })
}

#[test]
fn a_handshake_is_answered_at_once_while_the_study_is_being_prepared() {
    let mut client = Client::of(|_submissions, observer, stop| {
        let stage = "training the tokenizer".to_owned();
        observer.send(Event::Preparing { stage, done: 3, total: 10 }).unwrap();
        while !stop.is_stopped() {
            sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    let params = json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {}});
    let reply = client.ask("initialize", params);
    assert_eq!(reply["result"]["protocolVersion"], "2025-06-18");
    assert_eq!(reply["result"]["capabilities"], json!({"tools": {}}));
    client.say(r#"{"jsonrpc": "2.0", "method": "notifications/initialized"}"#);
    client.assert_silence();
    for (tool, arguments) in [
        ("submit_trainer", json!({"source": "new", "description": "an idea"})),
        ("await_result", json!({"seconds": 0})),
        ("history", json!({})),
        ("best", json!({})),
        ("read_trainer", json!({})),
    ] {
        let result = client.call(tool, arguments);
        assert_eq!(result["structuredContent"]["state"], "preparing", "{tool}: {result}");
    }
    // The event may come after the question, so it is asked again until it is there.
    while !text(&client.call("best", json!({}))).contains("training the tokenizer, 3 of 10") {}
    client.leave().unwrap();
}

#[test]
fn what_is_no_request_is_refused_with_the_code_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    for (line, id, code) in [
        ("{\"jsonrpc\":", Value::Null, -32700),
        ("\u{fffd}", Value::Null, -32700),
        ("17", Value::Null, -32600),
        (r#"[{"jsonrpc": "2.0", "id": 7, "method": "ping"}]"#, Value::Null, -32600),
        (r#"{"jsonrpc": "2.0", "id": 7, "method": "resources/list"}"#, json!(7), -32601),
        (r#"{"jsonrpc": "2.0", "id": 7, "method": "initialize", "params": {}}"#, json!(7), -32602),
        (r#"{"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {}}"#, json!(7), -32602),
        (
            r#"{"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "rm"}}"#,
            json!(7),
            -32602,
        ),
    ] {
        client.say(line);
        let reply = client.hear();
        assert_eq!((&reply["id"], &reply["error"]["code"]), (&id, &json!(code)), "{line}: {reply}");
    }
    for line in ["", r#"{"jsonrpc": "2.0", "method": "no/such/thing"}"#] {
        client.say(line);
    }
    client.say(r#"{"jsonrpc": "2.0", "id": 1, "result": {}}"#);
    client.assert_silence();
    client.leave().unwrap();
}

#[test]
fn every_tool_is_listed_with_a_schema() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    let reply = client.ask("tools/list", json!({}));
    let tools = reply["result"]["tools"].as_array().unwrap();
    let names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["submit_trainer", "await_result", "history", "best", "read_trainer"]);
    for tool in tools {
        assert!(tool["description"].as_str().unwrap().len() > 60, "{tool}");
        assert_eq!(tool["inputSchema"]["type"], "object", "{tool}");
        for (name, property) in tool["inputSchema"]["properties"].as_object().unwrap() {
            assert!(property["type"].is_string() && property["description"].is_string(), "{name}");
        }
    }
    client.leave().unwrap();
}

#[test]
fn batches_are_answered_where_the_revision_has_them() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    client.ask("initialize", json!({"protocolVersion": "2025-03-26"}));
    client.submit("endless");
    let call = json!({"name": "await_result", "arguments": {"seconds": 50}});
    let wait = |id| json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": call});
    client.say(&wait(6).to_string());
    let cancelled = json!({"requestId": 6});
    let batch = json!([
        {"jsonrpc": "2.0", "id": 7, "method": "ping"},
        {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancelled},
        wait(8),
    ]);
    client.say(&batch.to_string());
    let replies = client.hear();
    assert_eq!(replies[0], json!({"jsonrpc": "2.0", "id": 7, "result": {}}));
    assert_eq!(replies[1]["id"], 8);
    assert!(text(&replies[1]["result"]).contains("Call await_result again"), "{replies}");
    assert!(replies[1]["result"].get("structuredContent").is_none(), "{replies}");
    client.leave().unwrap();
}

#[test]
fn a_client_without_handshake_is_answered_request_by_request() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    let reply = client.ask("server/discover", json!({"_meta": meta("2026-07-28")}));
    assert_eq!(reply["result"]["supportedVersions"][0], "2026-07-28");
    assert_eq!(reply["result"]["resultType"], "complete");
    assert!(reply["result"]["_meta"]["io.modelcontextprotocol/serverInfo"].is_object(), "{reply}");
    let reply = client.ask("tools/list", json!({"_meta": meta("2026-07-28")}));
    assert_eq!(reply["result"]["cacheScope"], "public");
    let best = json!({"name": "best", "_meta": meta("2026-07-28")});
    assert_eq!(client.ask("tools/call", best)["result"]["structuredContent"]["trial"], 0);

    for (params, code) in [
        (json!({"_meta": meta("2099-01-01")}), -32022),
        (json!({"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}), -32602),
    ] {
        let reply = client.ask("tools/list", params);
        assert_eq!(reply["error"]["code"], code, "{reply}");
    }
    for method in ["initialize", "ping"] {
        let reply = client.ask(method, json!({"_meta": meta("2026-07-28")}));
        assert_eq!(reply["error"]["code"], -32601, "{reply}");
    }
    client.leave().unwrap();
}

#[test]
fn a_result_is_told_while_another_proposer_is_still_thinking() {
    let folder = tempfile::tempdir().unwrap();
    let study = folder.path().to_owned();
    let mut client = Client::of(move |submissions, observer, stop| {
        let trials = vec![trial(0, Status::Keep, Some(1.5), "baseline")];
        let told = Told { trial: 1, study, trials, ..Told::default() };
        let _ = submissions.wait(told, &stop);
        // All proposers are away: the submission's hears of nothing.
        let done = trial(1, Status::Keep, Some(1.4), "an idea");
        observer.send(Event::Finished(Box::new(done))).unwrap();
        while !stop.is_stopped() {
            sleep(Duration::from_millis(1));
        }
        Ok(())
    });
    client.call("await_result", json!({"seconds": 50}));
    client.submit("new");
    let kept = client.call("await_result", json!({"seconds": 50}));
    assert_eq!(kept["structuredContent"]["state"], "finished", "{kept}");
    assert_eq!(kept["structuredContent"]["trial"], 1, "{kept}");
    client.leave().unwrap();
}

#[test]
fn a_submission_becomes_a_trial_and_its_result_is_awaited() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    let submitted = client.submit("new");
    assert_eq!(submitted["structuredContent"]["trial"], 1, "{submitted}");
    let result = client.call("await_result", json!({"seconds": 50}));
    assert_eq!(result["structuredContent"]["state"], "finished", "{result}");
    assert_eq!(result["structuredContent"]["val_bpb"], 1.4);
    assert_eq!(text(&result), "Trial 1 was kept: val_bpb 1.400000.");
    assert_eq!(result["structuredContent"]["summary"], text(&result));
    let facts: Value =
        serde_json::from_str(result["content"][1]["text"].as_str().unwrap()).unwrap();
    assert_eq!(facts["description"], "an idea");

    let best = client.call("best", json!({}));
    let path = best["structuredContent"]["path"].as_str().unwrap();
    assert_eq!(fs::read_to_string(path).unwrap(), "new");
    assert_eq!(text(&client.call("read_trainer", json!({}))), "new");
    assert_eq!(text(&client.call("read_trainer", json!({"trial": 0}))), "old");
    assert_eq!(client.call("read_trainer", json!({"trial": 9}))["isError"], true);
    let history = client.call("history", json!({"with_rules": true}));
    assert!(text(&history).starts_with("The lowest wins."), "{history}");
    assert!(text(&history).contains("# History"), "{history}");
    client.leave().unwrap();
}

#[test]
fn a_source_that_does_not_compile_comes_back_with_the_compilers_words() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    let path = folder.path().join("mine.rs");
    fs::write(&path, "broken").unwrap();
    client.call("submit_trainer", json!({"path": path, "description": "from a file"}));
    let result = client.call("await_result", json!({"seconds": 50}));
    assert_eq!(result["structuredContent"]["outcome"], "build_failed", "{result}");
    assert!(text(&result).starts_with("Trial 1 came to nothing: build failed"), "{result}");
    assert!(text(&result).contains("error[E0308]: mismatched types"), "{result}");
    client.leave().unwrap();
}

#[test]
fn while_a_trial_is_under_way_another_submission_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    assert_eq!(client.submit("endless")["isError"], false);
    let refused = client.submit("new");
    assert_eq!(refused["isError"], true);
    assert!(text(&refused).contains("call await_result first"), "{refused}");
    client.leave().unwrap();
}

#[test]
fn a_submission_that_becomes_no_trial_makes_room_for_the_next() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    client.submit("lost");
    while client.submit("new")["isError"] == true {}
    let result = client.call("await_result", json!({"seconds": 50}));
    assert_eq!(text(&result), "Trial 1 was kept: val_bpb 1.400000.");
    client.leave().unwrap();
}

#[test]
fn arguments_that_make_no_sense_are_explained() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    for (tool, arguments, problem) in [
        ("submit_trainer", json!({"source": "new"}), "missing field `description`"),
        ("submit_trainer", json!({"source": "new", "description": " "}), "`description` is empty"),
        ("submit_trainer", json!({"description": "an idea"}), "either `source` or `path`"),
        ("submit_trainer", json!({"path": "/no/such/file", "description": "it"}), "/no/such/file"),
        ("submit_trainer", json!({"path": "/dev/zero", "description": "it"}), "it is no file"),
        ("await_result", json!({"trial": 7}), "there is no trial 7 yet"),
        ("await_result", json!({"trial": -1}), "the arguments do not fit"),
        ("best", json!({"trial": 7}), "unknown field `trial`"),
    ] {
        let result = client.call(tool, arguments);
        assert_eq!(result["isError"], true, "{tool}: {result}");
        assert!(text(&result).contains(problem), "{problem}: {result}");
    }
    client.leave().unwrap();
}

#[test]
fn a_wait_ends_in_time_holds_up_nobody_and_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let mut client = Client::of_open_study(folder.path());
    client.submit("endless");
    let slice = client.call("await_result", json!({"seconds": 0}));
    assert_eq!(slice["structuredContent"]["state"], "running", "{slice}");
    assert_eq!(slice["structuredContent"]["trial"], 1);
    while !text(&client.call("await_result", json!({"seconds": 0}))).contains("40 % of the budget")
    {
    }

    let call = json!({"name": "await_result", "arguments": {"seconds": 50}});
    client.say(
        &json!({"jsonrpc": "2.0", "id": "w", "method": "tools/call", "params": call}).to_string(),
    );
    client.assert_silence();
    let (method, params) = ("notifications/cancelled", json!({"requestId": "w"}));
    client.say(&json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string());
    client.assert_silence();
    client.leave().unwrap();
}

#[test]
fn a_message_without_end_is_cut_and_the_next_one_is_heard() {
    let long = vec![b'x'; super::LONGEST_LINE + 100_000];
    let text = [&long[..], b"\n{}\nlast"].concat();
    let mut input = BufReader::new(&text[..]);
    assert_eq!(super::line(&mut input).unwrap().len(), super::LONGEST_LINE);
    assert_eq!(super::line(&mut input).unwrap(), b"{}");
    assert_eq!(super::line(&mut input).unwrap(), b"last");
    assert_eq!(super::line(&mut input), None);
}

#[test]
fn a_study_that_cannot_go_on_says_why_in_every_tool() {
    let mut client = Client::of(|_, _, _| Err(Error::NoCacheFolder));
    let result = client.call("await_result", json!({"seconds": 50}));
    assert_eq!(result["isError"], true);
    assert!(text(&result).contains("set OVERNIGHT_CACHE to one"), "{result}");
    for tool in ["history", "best", "read_trainer"] {
        assert_eq!(client.call(tool, json!({}))["isError"], true, "{tool}");
    }
    assert_eq!(client.submit("new")["isError"], true);
    assert!(matches!(client.leave(), Err(Error::NoCacheFolder)));
}
