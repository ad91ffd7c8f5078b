//! Options: which model to ask, where, and with how much patience.

use super::key::Key;
use crate::error::{Error, Result};
use std::{fmt, str::FromStr, time::Duration};
use ureq::http::Uri;

/// How to ask a model. `MODEL` and `MODEL@URL` parse into it.
#[derive(Debug, Clone, PartialEq)]
pub struct ChatOptions {
    /// The model's name, as its server knows it.
    pub model: String,
    /// What the server speaks; guessed from the URL and the model's name where it is `None`.
    pub protocol: Option<Protocol>,
    /// Where the server is, such as `http://localhost:8080/v1`. `None` stands for the variable
    /// `OPENAI_BASE_URL` or `ANTHROPIC_BASE_URL`, and without one for the service itself.
    pub url: Option<String>,
    /// What tokens cost, for servers that do not say what an answer did.
    pub price: Option<Price>,
    /// The longest answer, in tokens. `None` leaves it to the server, or where it must be said, as
    /// Anthropic wants it, is enough for a whole file.
    pub max_tokens: Option<u32>,
    /// The longest wait for one answer.
    pub timeout: Duration,
    /// Answers that the model may give to one question before it counts as unanswered: edits that
    /// do not fit go back to it.
    pub rounds: usize,
    /// Requests for one answer, where a server is overloaded or does not respond.
    pub attempts: usize,
    /// The pause before the second request. Each further one is twice as long.
    pub pause: Duration,
}

/// What tokens cost. Cached ones count as ordinary input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Price {
    /// US dollars for a million tokens read.
    pub input: f64,
    /// US dollars for a million tokens written.
    pub output: f64,
}

impl FromStr for Price {
    type Err = Error;

    /// `3/15`: dollars for a million tokens read, and written.
    fn from_str(text: &str) -> Result<Self> {
        let dollars = |text: &str| text.trim().parse().ok().filter(|usd| (0.0..1e6).contains(usd));
        let price = text.split_once('/').and_then(|(input, output)| {
            Some(Self { input: dollars(input)?, output: dollars(output)? })
        });
        price.ok_or_else(|| Error::Price { text: text.to_owned() })
    }
}

/// What a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protocol {
    /// OpenAI's Chat Completions, as llama.cpp, Ollama, vLLM and OpenRouter speak it too.
    OpenAi,
    /// Anthropic's Messages.
    Anthropic,
}

/// Where requests go, and in whose name.
#[derive(Debug, Clone)]
pub(super) struct Endpoint {
    pub protocol: Protocol,
    /// Of the requests themselves.
    pub url: String,
    /// On this machine: a proxy has no business with it.
    pub is_local: bool,
    pub key: Option<Key>,
}

impl ChatOptions {
    /// The model at the place that its name and the environment suggest.
    pub fn new(model: impl Into<String>) -> Self {
        Self {
            model: model.into(),
            protocol: None,
            url: None,
            price: None,
            max_tokens: None,
            timeout: Duration::from_secs(10 * 60),
            rounds: 3,
            attempts: 6,
            pause: Duration::from_secs(2),
        }
    }

    /// Where to ask, given the environment.
    pub(super) fn endpoint(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Endpoint> {
        let is_set = |value: &String| !value.is_empty();
        let variable =
            |name: &str| variable(name).map(|value| value.trim().to_owned()).filter(is_set);
        self.found(variable).map_err(|problem| refusal(&self.model, problem))
    }

    fn found(&self, variable: impl Fn(&str) -> Option<String>) -> Result<Endpoint, String> {
        problem_of_model(&self.model).map_or(Ok(()), Err)?;
        let protocol = self.protocol.unwrap_or_else(|| self.guess());
        let key_variable = protocol.key_variable();
        let url = self.url.clone().or_else(|| variable(protocol.url_variable()));
        let key = match variable(key_variable).map(|text| Key::new(&text)) {
            Some(None) => return Err(format!("{key_variable} is set, but not to a key")),
            None if url.is_none() => {
                return Err(format!(
                    "{key_variable} is not set; set it, or name a server that wants no key, as in \
                     chat:{}@http://localhost:8080/v1",
                    self.model
                ));
            }
            key => key.flatten(),
        };
        let base = url.unwrap_or_else(|| protocol.home().to_owned());
        let uri = checked(&base)?;
        Ok(Endpoint { protocol, url: protocol.address(&base, &uri), is_local: is_local(&uri), key })
    }

    fn guess(&self) -> Protocol {
        let is_claude = self.model.starts_with("claude");
        match self.url.as_deref().map(|url| url.trim_end_matches('/')) {
            Some(url) if url.contains("anthropic") => Protocol::Anthropic,
            Some(url) if url.ends_with("/v1") => Protocol::OpenAi,
            _ if is_claude => Protocol::Anthropic,
            _ => Protocol::OpenAi,
        }
    }
}

impl Protocol {
    pub(super) fn key_variable(self) -> &'static str {
        match self {
            Self::OpenAi => "OPENAI_API_KEY",
            Self::Anthropic => "ANTHROPIC_API_KEY",
        }
    }

    fn url_variable(self) -> &'static str {
        match self {
            Self::OpenAi => "OPENAI_BASE_URL",
            Self::Anthropic => "ANTHROPIC_BASE_URL",
        }
    }

    fn home(self) -> &'static str {
        match self {
            Self::OpenAi => "https://api.openai.com/v1",
            Self::Anthropic => "https://api.anthropic.com",
        }
    }

    /// OpenAI's base URLs end in `/v1` by custom, Anthropic's before it; both are taken either way.
    fn address(self, base: &str, uri: &Uri) -> String {
        let base = base.trim_end_matches('/');
        match self {
            Self::OpenAi if uri.path() == "/" => format!("{base}/v1/chat/completions"),
            Self::OpenAi => format!("{base}/chat/completions"),
            Self::Anthropic => {
                format!("{}/v1/messages", base.strip_suffix("/v1").unwrap_or(base))
            }
        }
    }
}

/// The URL's parts, or what is wrong with it, without repeating it.
fn checked(url: &str) -> Result<Uri, String> {
    let uri: Uri = url.parse().map_err(|_| "its URL is none".to_owned())?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) {
        return Err("its URL must begin with http:// or https://".to_owned());
    }
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return Err("its URL holds a password; put the key into the environment".to_owned());
    }
    if uri.query().is_some() {
        return Err("its URL must end with the path, without a `?`".to_owned());
    }
    Ok(uri)
}

/// Without the URL, which may hold a password.
fn refusal(model: &str, problem: String) -> Error {
    Error::ProposerSpec { text: format!("chat:{model}"), problem }
}

fn is_local(uri: &Uri) -> bool {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = |ip: std::net::IpAddr| ip.is_loopback();
    host == "localhost" || host.parse().is_ok_and(is_loopback)
}

fn problem_of_model(model: &str) -> Option<String> {
    if model.is_empty() {
        return Some("no model is named".to_owned());
    }
    let is_odd = |c: char| c.is_whitespace() || c.is_control();
    model.contains(is_odd).then(|| "a model's name has no blanks".to_owned())
}

impl FromStr for ChatOptions {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (model, url) = match text.find("@http://").or_else(|| text.find("@https://")) {
            Some(at) => (&text[..at], Some(text[at + 1..].to_owned())),
            None => (text, None),
        };
        // Names may hold an @, as in @cf/meta/llama or model@20240620.
        let half_a_url = model
            .split_once('@')
            .filter(|(name, rest)| url.is_none() && !name.is_empty() && rest.contains([':', '/']));
        let problem = match (&url, half_a_url) {
            (Some(url), _) => checked(url).err(),
            (None, Some(_)) => {
                Some("what follows the @ must begin with http:// or https://".to_owned())
            }
            (None, None) => None,
        };
        match problem_of_model(model).or(problem) {
            Some(problem) => Err(refusal(model, problem)),
            None => Ok(Self { url, ..Self::new(model) }),
        }
    }
}

/// As it is parsed: what else was set does not show.
impl fmt::Display for ChatOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.url {
            Some(url) => write!(f, "{}@{url}", self.model),
            None => f.write_str(&self.model),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_two_numbers() {
        let price: Price = "1.25/10".parse().unwrap();
        assert_eq!(price, Price { input: 1.25, output: 10.0 });
        for text in ["3", "3/", "-1/2", "NaN/1", "a/b", "1/2/3"] {
            assert!(text.parse::<Price>().is_err(), "{text:?} was taken");
        }
    }

    const KEY: &str = "sk-0123456789abcdef";

    fn endpoint(text: &str, variables: &[(&str, &str)]) -> Result<Endpoint> {
        text.parse::<ChatOptions>()?.endpoint(|name| {
            let found = variables.iter().find(|(of, _)| *of == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_name_and_the_url_say_who_is_asked_and_where() {
        let keys = [("OPENAI_API_KEY", KEY), ("ANTHROPIC_API_KEY", KEY)];
        for (text, url) in [
            ("gpt-5", "https://api.openai.com/v1/chat/completions"),
            ("claude-opus", "https://api.anthropic.com/v1/messages"),
            ("qwen3:8b@http://localhost:11434/v1", "http://localhost:11434/v1/chat/completions"),
            ("m@http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/chat/completions"),
            ("claude-opus@https://gate.example/v1/", "https://gate.example/v1/chat/completions"),
            ("claude-opus@https://gate.example", "https://gate.example/v1/messages"),
            ("m@https://gate.example/anthropic/v1", "https://gate.example/anthropic/v1/messages"),
            ("@cf/m@https://gate.example/ai/v1", "https://gate.example/ai/v1/chat/completions"),
        ] {
            assert_eq!(endpoint(text, &keys).unwrap().url, url);
            assert_eq!(text.parse::<ChatOptions>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn the_environment_names_a_server_too() {
        let variables = [("OPENAI_BASE_URL", "http://[::1]:9/v1"), ("OPENAI_API_KEY", " ")];
        let found = endpoint("a-model", &variables).unwrap();
        assert_eq!(found.url, "http://[::1]:9/v1/chat/completions");
        assert!(found.is_local && found.key.is_none());
        // A URL that is spelled out goes before.
        let found = endpoint("a-model@https://example.org/v1", &variables).unwrap();
        assert_eq!(found.url, "https://example.org/v1/chat/completions");
        assert!(!found.is_local);
    }

    #[test]
    fn a_missing_key_is_named_before_the_night() {
        for (text, variable) in [("gpt-5", "OPENAI_API_KEY"), ("claude-opus", "ANTHROPIC_API_KEY")]
        {
            let error = endpoint(text, &[]).unwrap_err().to_string();
            assert!(error.contains(&format!("{variable} is not set; set it")), "{error}");
        }
        let error = endpoint("gpt-5", &[("OPENAI_API_KEY", "sk-012\n345678901")]).unwrap_err();
        assert!(!error.to_string().contains("345678901"), "{error}");
    }

    #[test]
    fn what_cannot_be_asked_is_refused_without_its_password() {
        for (text, complaint) in [
            ("", "no model is named"),
            ("@http://localhost/v1", "no model is named"),
            ("two words", "no blanks"),
            ("m@localhost:8080/v1", "must begin with http://"),
            ("m@http://me:hunter2@example.org/v1", "holds a password"),
            ("m@https://example.org/v1?key=hunter2", "without a `?`"),
            ("m@http://", "its URL is none"),
        ] {
            let error = text.parse::<ChatOptions>().unwrap_err().to_string();
            assert!(error.contains(complaint) && !error.contains("hunter2"), "{error}");
        }
    }
}
