//! What agents print about their work: their last words, what they cost, what went wrong.

use crate::{proposer::Usage, text::line};
use serde_json::Value;

/// Whose output it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Claude,
    Codex,
    Gemini,
    Opencode,
    Aider,
    Pi,
    /// Anybody's: the last line is what it has to say.
    Plain,
}

/// What an agent said.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Report {
    /// Its last message, as a person would read it.
    pub message: String,
    pub usage: Usage,
    /// What it said went wrong.
    pub error: Option<String>,
}

impl Report {
    /// Reads what an agent printed on its standard output. What cannot be understood is left out:
    /// the file on disk is the result, and this only what is told about it.
    pub(super) fn read(dialect: Dialect, output: &str) -> Self {
        let mut report = Self::default();
        match dialect {
            Dialect::Claude => values(output).for_each(|value| report.claude(&value)),
            Dialect::Codex => values(output).for_each(|value| report.codex(&value)),
            Dialect::Gemini => values(output).for_each(|value| report.gemini(&value)),
            Dialect::Opencode => values(output).for_each(|value| report.opencode(&value)),
            Dialect::Pi => report.pi(&values(output).collect::<Vec<_>>()),
            Dialect::Aider => report.aider(output),
            Dialect::Plain => report.message = output.trim().to_owned(),
        }
        report
    }

    /// The description in the last message: what stands behind `DESCRIPTION:`, or its last line.
    pub(super) fn description(&self) -> Option<String> {
        let lines = || self.message.lines().rev().map(|line| line.trim().trim_matches(['*', '`']));
        let marked = lines().find_map(|line| line.strip_prefix("DESCRIPTION:"));
        let last = marked.or_else(|| lines().find(|line| !line.is_empty()))?;
        let last = line(last, 200);
        (!last.is_empty()).then_some(last)
    }

    /// One object, with the sum of all that was done.
    fn claude(&mut self, value: &Value) {
        if value["type"] != "result" {
            return;
        }
        self.message = text(&value["result"]);
        self.usage.usd = value["total_cost_usd"].as_f64();
        let usage = &value["usage"];
        self.usage.tokens = sum(&[
            &usage["input_tokens"],
            &usage["cache_creation_input_tokens"],
            &usage["cache_read_input_tokens"],
            &usage["output_tokens"],
        ]);
        // Its `subtype` says "success" whatever happened.
        if value["is_error"] == true {
            self.error = Some(self.message.clone());
        }
    }

    /// Events, a line each; every turn has its own usage.
    fn codex(&mut self, value: &Value) {
        match value["type"].as_str() {
            Some("item.completed") if value["item"]["type"] == "agent_message" => {
                self.message = text(&value["item"]["text"]);
            }
            Some("turn.completed") => {
                let usage = &value["usage"];
                // Cached input is part of the input.
                self.count(sum(&[&usage["input_tokens"], &usage["output_tokens"]]));
                self.error = None;
            }
            Some("turn.failed") => self.error = Some(told(&value["error"]["message"])),
            Some("error") => self.error = Some(told(&value["message"])),
            _ => {}
        }
    }

    /// One object, with the usage of each model.
    fn gemini(&mut self, value: &Value) {
        self.message = text(&value["response"]);
        let models = value["stats"]["models"].as_object();
        for model in models.into_iter().flat_map(|models| models.values()) {
            self.count(model["tokens"]["total"].as_u64());
        }
        if !value["error"].is_null() {
            self.error = Some(told(&value["error"]["message"]));
        }
    }

    /// Events, a line each; every step has its own usage.
    fn opencode(&mut self, value: &Value) {
        let part = &value["part"];
        match value["type"].as_str() {
            Some("text") => self.message = text(&part["text"]),
            Some("step_finish") => {
                let tokens = &part["tokens"];
                self.count(sum(&[
                    &tokens["input"],
                    &tokens["output"],
                    &tokens["reasoning"],
                    &tokens["cache"]["read"],
                    &tokens["cache"]["write"],
                ]));
                self.pay(part["cost"].as_f64());
            }
            Some("error") => {
                let error = &value["error"];
                let message = [&error["data"]["message"], &error["message"], &error["name"]];
                self.error = message.into_iter().find(|m| m.is_string()).map(told);
            }
            _ => {}
        }
    }

    /// Events, a line each. The last one holds every message of the model, each with its own usage:
    /// between the lines that tell of a message as it grows, those that tell of its end are lost
    /// where the output is cut.
    fn pi(&mut self, values: &[Value]) {
        let ends = values.iter().filter(|value| value["type"] == "agent_end");
        let all: Vec<&Value> =
            ends.filter_map(|end| end["messages"].as_array()).flatten().collect();
        let single = values.iter().filter(|value| value["type"] == "message_end");
        // Without an end, it was killed.
        let messages =
            if all.is_empty() { single.map(|end| &end["message"]).collect() } else { all };
        for message in messages.into_iter().filter(|message| message["role"] == "assistant") {
            let parts = message["content"].as_array().into_iter().flatten();
            let texts: Vec<_> = parts.filter_map(|part| part["text"].as_str()).collect();
            if !texts.is_empty() {
                self.message = texts.join("\n");
            }
            let usage = &message["usage"];
            self.count(sum(&[
                &usage["input"],
                &usage["output"],
                &usage["cacheRead"],
                &usage["cacheWrite"],
            ]));
            self.pay(usage["cost"]["total"].as_f64());
            self.error = (message["stopReason"] == "error").then(|| told(&message["errorMessage"]));
        }
    }

    /// Prose, with a line such as `Tokens: 5.2k sent, 310 received. Cost: $0.02 message, $0.05
    /// session.` behind every answer; where a cache is used, the cost has a line of its own.
    fn aider(&mut self, output: &str) {
        let mut message = Vec::new();
        for line in output.lines() {
            if line.starts_with("Tokens: ") || line.starts_with("Cost: ") {
                let mut words = line.split_whitespace().peekable();
                while let Some(word) = words.next() {
                    let unit = words.peek().map_or("", |unit| unit.trim_end_matches([',', '.']));
                    match (word.strip_prefix('$'), unit) {
                        // A sum of all so far, rounded once.
                        (Some(dollars), "session") => self.usage.usd = dollars.parse().ok(),
                        (None, "sent" | "received") => self.count(thousands(word)),
                        _ => {}
                    }
                }
            } else if line.starts_with("Added ") && line.contains(" to the chat") {
                // The last words before the model's.
                message.clear();
            } else if line.starts_with("Applied edit to ") {
                self.error = None;
            } else {
                if line.starts_with("litellm.") || line.ends_with(" failed to match!") {
                    self.error = Some(line.trim_start_matches("# ").to_owned());
                }
                message.push(line);
            }
        }
        self.message = message.join("\n").trim().to_owned();
    }

    fn count(&mut self, tokens: Option<u64>) {
        self.usage += Usage { tokens, usd: None };
    }

    fn pay(&mut self, usd: Option<f64>) {
        self.usage += Usage { usd, tokens: None };
    }
}

/// The JSON values of an output: of its lines, or of all of it, between whatever else it says.
fn values(output: &str) -> impl Iterator<Item = Value> {
    // Behind whatever else it says, or before it.
    let brace = output.rfind("\n{").map(|end| end + 1).or_else(|| output.find('{'));
    let whole = brace.and_then(|brace| {
        serde_json::Deserializer::from_str(&output[brace..]).into_iter().next()?.ok()
    });
    let lines: Vec<Value> = output
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .filter(Value::is_object)
        .collect();
    let whole: Option<Value> = if lines.is_empty() { whole } else { None };
    lines.into_iter().chain(whole)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().trim().to_owned()
}

/// What an error says: some hand on the JSON that a server answered.
fn told(message: &Value) -> String {
    let message = text(message);
    let answer = serde_json::from_str(&message).unwrap_or(Value::Null);
    match answer["error"]["message"].as_str() {
        Some(inner) => inner.trim().to_owned(),
        None => message,
    }
}

fn sum(numbers: &[&Value]) -> Option<u64> {
    let known = numbers.iter().filter_map(|number| number.as_u64());
    known.reduce(u64::saturating_add)
}

/// `5.2k` and the like.
fn thousands(number: &str) -> Option<u64> {
    let (digits, factor) = match number.strip_suffix('k') {
        Some(digits) => (digits, 1e3),
        None => number.strip_suffix('M').map_or((number, 1.0), |digits| (digits, 1e6)),
    };
    let number: f64 = digits.replace(',', "").parse().ok()?;
    Some((number * factor) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(usd: Option<f64>, tokens: u64) -> Usage {
        Usage { usd, tokens: Some(tokens) }
    }

    #[test]
    fn every_dialect_is_understood() {
        let claude = r#"{"type":"result","subtype":"success","is_error":false,"num_turns":3,
            "result":"Done.\nDESCRIPTION: wider MLP","total_cost_usd":0.25,
            "usage":{"input_tokens":10,"cache_read_input_tokens":100,"output_tokens":5}}"#;
        let codex = concat!(
            r#"{"type":"thread.started","thread_id":"x"}"#,
            "\n",
            r#"{"type":"item.completed","item":{"id":"1","type":"agent_message","text":"DESCRIPTION: wider MLP"}}"#,
            "\n",
            r#"{"type":"turn.completed","usage":{"input_tokens":110,"cached_input_tokens":50,"output_tokens":5}}"#,
        );
        let gemini = r#"Loaded cached credentials.
            {"response":"I did it.\n**DESCRIPTION: wider MLP**",
             "stats":{"models":{"gemini-x":{"tokens":{"prompt":90,"candidates":25,"total":115}}}}}"#;
        let opencode = concat!(
            r#"{"type":"text","part":{"type":"text","text":"wider MLP"}}"#,
            "\n",
            r#"{"type":"step_finish","part":{"cost":0.125,"tokens":{"input":50,"output":5,"reasoning":0,"cache":{"read":0,"write":0}}}}"#,
            "\n",
            r#"{"type":"step_finish","part":{"cost":0.125,"tokens":{"input":55,"output":5,"reasoning":0,"cache":{"read":0,"write":0}}}}"#,
        );
        let pi = concat!(
            r#"{"type":"agent_start"}"#,
            "\n",
            r#"{"type":"message_end","message":{"role":"assistant","content":[{"type":"text","text":"DESCRIPTION: wider MLP"}],"usage":{"input":100,"output":15,"cacheRead":0,"cacheWrite":0,"cost":{"total":0.25}},"stopReason":"stop"}}"#,
        );
        let aider = "Aider v1\n\nDESCRIPTION: wider MLP\n\nTokens: 110 sent, 5 received. Cost: $0.25 message, $0.25 session.\nApplied edit to src/train.rs\n";
        for (dialect, output, expected) in [
            (Dialect::Claude, claude, usage(Some(0.25), 115)),
            (Dialect::Codex, codex, usage(None, 115)),
            (Dialect::Gemini, gemini, usage(None, 115)),
            (Dialect::Opencode, opencode, usage(Some(0.25), 115)),
            (Dialect::Pi, pi, usage(Some(0.25), 115)),
            (Dialect::Aider, aider, usage(Some(0.25), 115)),
            (Dialect::Plain, "thinking\nwider MLP\n", Usage::default()),
        ] {
            let report = Report::read(dialect, output);
            assert_eq!(report.description().as_deref(), Some("wider MLP"), "{dialect:?}");
            assert_eq!(report.usage, expected, "{dialect:?}");
            assert_eq!(report.error, None, "{dialect:?}");
        }
    }

    #[test]
    fn errors_are_found_where_each_agent_puts_them() {
        for (dialect, output) in [
            (
                Dialect::Claude,
                r#"{"type":"result","subtype":"success","is_error":true,"result":"no credit"}"#,
            ),
            (Dialect::Codex, r#"{"type":"turn.failed","error":{"message":"no credit"}}"#),
            (
                Dialect::Gemini,
                "{\n  \"error\": {\n \"type\": \"ApiError\", \"message\": \"no credit\"}}",
            ),
            (
                Dialect::Opencode,
                r#"{"type":"error","error":{"name":"APIError","data":{"message":"no credit"}}}"#,
            ),
            (
                Dialect::Pi,
                r#"{"type":"message_end","message":{"role":"assistant","content":[],"stopReason":"error","errorMessage":"no credit"}}"#,
            ),
        ] {
            assert_eq!(
                Report::read(dialect, output).error.as_deref(),
                Some("no credit"),
                "{dialect:?}"
            );
        }
        let aider = Report::read(Dialect::Aider, "litellm.AuthenticationError: no credit\n");
        assert!(aider.error.unwrap().contains("no credit"));
    }

    #[test]
    fn what_is_no_report_says_nothing() {
        for dialect in
            [Dialect::Claude, Dialect::Codex, Dialect::Gemini, Dialect::Opencode, Dialect::Pi]
        {
            let report = Report::read(dialect, "Segmentation fault {\n[1,2]\nnull");
            assert_eq!(report, Report::default(), "{dialect:?}");
            assert_eq!(report.description(), None);
        }
    }

    #[test]
    fn aiders_thousands_are_read() {
        assert_eq!(thousands("5.2k"), Some(5200));
        assert_eq!(thousands("1,310"), Some(1310));
        assert_eq!(thousands("1.5M"), Some(1_500_000));
        assert_eq!(thousands("many"), None);
    }
}
