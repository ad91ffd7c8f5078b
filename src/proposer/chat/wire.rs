//! The wire: what is said in OpenAI's and in Anthropic's JSON.

use super::{
    options::{ChatOptions, Endpoint, Price, Protocol},
    thoughts::without_thoughts,
};
use serde_json::{Value, json};

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub role: Role,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    User,
    Assistant,
}

/// What came back.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answer {
    /// Without what a reasoning model thought aloud.
    pub text: String,
    pub end: End,
    pub tokens: Option<Tokens>,
    /// US dollars, where the server says so.
    pub usd: Option<f64>,
    /// Where something stands, if the answer is empty.
    pub elsewhere: Option<&'static str>,
}

/// How an answer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum End {
    Complete,
    /// It reached the limit of its length.
    CutOff,
    /// The model, or a filter before it, would not answer: why.
    Refused(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tokens {
    pub read: u64,
    pub written: u64,
}

impl Tokens {
    pub(super) fn all(self) -> u64 {
        self.read.saturating_add(self.written)
    }

    pub(super) fn usd(self, price: Price) -> f64 {
        (price.input * self.read as f64 + price.output * self.written as f64) / 1e6
    }
}

/// Anthropic wants a limit. A trainer of 30 KB has 10,000 tokens.
const ANTHROPIC_MAX_TOKENS: u32 = 16_000;

/// The body of a request.
pub(super) fn request(
    endpoint: &Endpoint,
    options: &ChatOptions,
    system: &str,
    messages: &[Message],
) -> Value {
    let said = messages.iter().map(|message| {
        let role = match message.role {
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        json!({"role": role, "content": message.text})
    });
    match endpoint.protocol {
        Protocol::OpenAi => {
            let system = json!({"role": "system", "content": system});
            let messages: Vec<_> = [system].into_iter().chain(said).collect();
            let mut body = json!({"model": options.model, "messages": messages});
            if let Some(limit) = options.max_tokens {
                // OpenAI's newer models refuse the old name, many other servers ignore the new one.
                let is_openai = endpoint.url.starts_with("https://api.openai.com/");
                body[if is_openai { "max_completion_tokens" } else { "max_tokens" }] = json!(limit);
            }
            body
        }
        Protocol::Anthropic => json!({
            "model": options.model,
            "max_tokens": options.max_tokens.unwrap_or(ANTHROPIC_MAX_TOKENS),
            "system": system,
            "messages": said.collect::<Vec<_>>(),
        }),
    }
}

/// The JSON of a body, whatever servers and the gates before them put around it: a byte-order mark, white space,
/// lines that keep the connection alive (`: PROCESSING`), and the stream of events that nobody asked for.
pub(super) fn json_of(body: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim();
    if let Ok(value) = serde_json::from_str(text) {
        return Some(value);
    }
    let lines = || text.lines().filter(|line| !line.starts_with(':'));
    if let Ok(value) = serde_json::from_str(&lines().collect::<Vec<_>>().join("\n")) {
        return Some(value);
    }
    // Server-sent events (WHATWG HTML, 9.2): of Chat Completions, pieces of one message.
    let events = lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim);
    let events = events.filter_map(|event| serde_json::from_str::<Value>(event).ok());
    events.reduce(|mut whole, event| {
        for name in ["content", "reasoning_content", "reasoning", "refusal"] {
            let piece = |value: &Value| {
                let delta =
                    value.pointer("/choices/0/delta").or(value.pointer("/choices/0/message"));
                delta.and_then(|delta| delta[name].as_str()).unwrap_or_default().to_owned()
            };
            let text = piece(&whole) + &piece(&event);
            if !text.is_empty() {
                whole["choices"][0]["message"][name] = text.clone().into();
                whole["choices"][0]["delta"][name] = text.into();
            }
        }
        for (name, value) in event.as_object().into_iter().flatten() {
            if name != "choices" && !value.is_null() {
                whole[name] = value.clone();
            }
        }
        if let Some(reason) = event.pointer("/choices/0/finish_reason").filter(|it| !it.is_null()) {
            whole["choices"][0]["finish_reason"] = reason.clone();
        }
        whole
    })
}

/// Reads the body of a response; `None` where it is no answer at all.
pub(super) fn answer(protocol: Protocol, body: &Value) -> Option<Answer> {
    match protocol {
        Protocol::OpenAi => openai(body),
        Protocol::Anthropic => anthropic(body),
    }
}

fn openai(body: &Value) -> Option<Answer> {
    let choice = body.pointer("/choices/0")?;
    let message = choice.get("message")?;
    let end = match (message["refusal"].as_str(), choice["finish_reason"].as_str()) {
        (Some(why), _) if !why.is_empty() => End::Refused(why.to_owned()),
        (_, Some("content_filter")) => End::Refused("a content filter stopped it".to_owned()),
        (_, Some("length")) => End::CutOff,
        _ => End::Complete,
    };
    let usage = &body["usage"];
    let tokens = usage["prompt_tokens"].as_u64().map(|read| Tokens {
        read,
        written: usage["completion_tokens"].as_u64().unwrap_or_default(),
    });
    let usd = usage["cost"].as_f64();
    let text = without_thoughts(&text(&message["content"]));
    let is_there = |name: &&&str| match &message[**name] {
        Value::String(text) => !text.trim().is_empty(),
        Value::Array(parts) => !parts.is_empty(),
        _ => false,
    };
    let places = ["reasoning_content", "reasoning", "tool_calls", "function_call"];
    let elsewhere = places.iter().find(is_there).copied().filter(|_| text.is_empty());
    Some(Answer { text, end, tokens, usd, elsewhere })
}

fn anthropic(body: &Value) -> Option<Answer> {
    let text = without_thoughts(&text(body.get("content")?));
    let end = match body["stop_reason"].as_str() {
        Some("refusal") => End::Refused(if text.is_empty() {
            "it gives no reason".to_owned()
        } else {
            text.clone()
        }),
        Some("max_tokens" | "model_context_window_exceeded") => End::CutOff,
        _ => End::Complete,
    };
    let usage = &body["usage"];
    let cached = ["cache_creation_input_tokens", "cache_read_input_tokens"];
    let cached = cached.iter().filter_map(|name| usage[name].as_u64());
    let tokens = usage["input_tokens"].as_u64().map(|read| Tokens {
        read: cached.fold(read, u64::saturating_add),
        written: usage["output_tokens"].as_u64().unwrap_or_default(),
    });
    Some(Answer { text, end, tokens, usd: usage["cost"].as_f64(), elsewhere: None })
}

/// A string, or parts of which some are text.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said() -> Vec<Message> {
        [(Role::User, "a"), (Role::Assistant, "b"), (Role::User, "c")]
            .map(|(role, text)| Message { role, text: text.to_owned() })
            .to_vec()
    }

    fn place(text: &str) -> (Endpoint, ChatOptions) {
        let options: ChatOptions = text.parse().unwrap();
        (options.endpoint(|_| None).unwrap(), options)
    }

    #[test]
    fn openai_takes_the_rules_as_its_first_message() {
        let (endpoint, options) = place("a-model@http://localhost/v1");
        let body = request(&endpoint, &options, "rules", &said());
        let expected = json!({"model": "a-model", "messages": [
            {"role": "system", "content": "rules"},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]});
        assert_eq!(body, expected);
    }

    #[test]
    fn a_limit_goes_by_the_name_that_the_server_knows() {
        for (text, name) in [
            ("m@https://api.openai.com/v1", "max_completion_tokens"),
            ("m@http://localhost/v1", "max_tokens"),
        ] {
            let (endpoint, options) = place(text);
            let options = ChatOptions { max_tokens: Some(9), ..options };
            assert_eq!(request(&endpoint, &options, "", &[])[name], 9);
        }
    }

    #[test]
    fn anthropic_takes_the_rules_apart_and_wants_a_limit() {
        let (endpoint, options) = place("claude@https://gate.example/anthropic");
        let body = request(&endpoint, &options, "rules", &said());
        let expected = json!({"model": "claude", "max_tokens": 16_000, "system": "rules", "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]});
        assert_eq!(body, expected);
    }

    #[test]
    fn every_way_to_end_is_told_apart() {
        let of_openai = |content: Value, refusal: Value, reason: &str| {
            let message = json!({"role": "assistant", "content": content, "refusal": refusal});
            let body = json!({"choices": [{"message": message, "finish_reason": reason}]});
            answer(Protocol::OpenAi, &body).unwrap().end
        };
        let of_anthropic = |content: Value, reason: &str| {
            let body = json!({"type": "message", "content": content, "stop_reason": reason});
            answer(Protocol::Anthropic, &body).unwrap().end
        };
        assert_eq!(of_openai(json!("hi"), Value::Null, "stop"), End::Complete);
        assert_eq!(of_openai(json!("hi"), Value::Null, "length"), End::CutOff);
        assert_eq!(of_openai(Value::Null, json!("No."), "stop"), End::Refused("No.".to_owned()));
        let filtered = of_openai(Value::Null, Value::Null, "content_filter");
        assert!(matches!(filtered, End::Refused(why) if why.contains("filter")));
        assert_eq!(
            of_anthropic(json!([{"type": "text", "text": "hi"}]), "end_turn"),
            End::Complete
        );
        assert_eq!(of_anthropic(json!([]), "max_tokens"), End::CutOff);
        assert!(matches!(of_anthropic(json!([]), "refusal"), End::Refused(_)));
        assert_eq!(answer(Protocol::OpenAi, &json!({"content": []})), None);
        assert_eq!(answer(Protocol::Anthropic, &json!({"choices": []})), None);
    }

    #[test]
    fn parts_that_are_thoughts_are_left_out() {
        let parts = json!([{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "so"}]);
        assert_eq!(text(&parts), "so");
    }

    #[test]
    fn an_answer_is_found_in_what_stands_around_it() {
        let body = r#"{"choices": [{"message": {"content": "so"}, "finish_reason": "stop"}]}"#;
        for around in [
            body.to_owned(),
            format!("\u{feff}  \n{body}\n"),
            format!(": PROCESSING\n\n: PROCESSING\n\n{body}"),
            "data: {\"choices\": [{\"delta\": {\"role\": \"assistant\", \"content\": \"s\"}}]}\n\n\
             : ping\n\ndata: {\"choices\": [{\"delta\": {\"content\": \"o\"}}]}\n\n\
             data: {\"choices\": [{\"delta\": {}, \"finish_reason\": \"stop\"}]}\n\ndata: [DONE]\n"
                .to_owned(),
        ] {
            let found = answer(Protocol::OpenAi, &json_of(around.as_bytes()).unwrap()).unwrap();
            assert_eq!((found.text.as_str(), found.end), ("so", End::Complete), "{around}");
        }
        assert_eq!(json_of(b"<html>"), None);
        assert_eq!(json_of("[".repeat(100_000).as_bytes()), None);
    }

    #[test]
    fn a_text_in_another_place_is_told_of() {
        let body = json!({"choices": [{"message": {"content": "", "reasoning_content": "hm"}}]});
        let answer = answer(Protocol::OpenAi, &body).unwrap();
        assert_eq!((answer.text.as_str(), answer.elsewhere), ("", Some("reasoning_content")));
    }

    #[test]
    fn tokens_are_counted_cached_ones_included() {
        let body = json!({"content": [], "usage": {
            "input_tokens": 10, "cache_creation_input_tokens": 200, "cache_read_input_tokens": 3000,
            "output_tokens": 40000,
        }});
        let answer_ = answer(Protocol::Anthropic, &body).unwrap();
        assert_eq!(answer_.tokens, Some(Tokens { read: 3210, written: 40000 }));
        let body = json!({"choices": [{"message": {}}], "usage": {
            "prompt_tokens": 3, "completion_tokens": 4, "cost": 0.25,
            "prompt_tokens_details": {"cached_tokens": 2},
        }});
        let answer_ = answer(Protocol::OpenAi, &body).unwrap();
        assert_eq!(answer_.tokens, Some(Tokens { read: 3, written: 4 }));
        assert_eq!(answer_.usd, Some(0.25));
    }
}
