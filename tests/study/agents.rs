//! Whole studies with real coding agents, whose model a server on this machine plays.
//!
//! An agent that is neither on the PATH nor in the folder `bin` of `OVERNIGHT_AGENTS` is left out;
//! `tests/agents/install.sh` fills such a folder.

use crate::{
    scripted::{Call, IDEAS, Model, Protocol, TOKENS},
    tiny,
};
use overnight::{Event, Status, StopHandle, proposer::Agent};
use serde_json::json;
use std::{
    env, fs,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

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
    let model = Model::new(known.protocol, known.edit, dir.join("brief"));

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
    let (sender, events) = overnight::events();
    let stop = StopHandle::new();
    let study = tiny::study(&dir, corpus.path()).proposer(agent).observer(sender);
    // The model's ideas follow each other.
    let study = study.without_thinking_ahead();
    let mut study = study.stop_handle(stop.clone()).open().unwrap();
    let listener = thread::spawn(move || {
        let mut failures = Vec::new();
        for event in events {
            if let Event::ProposerFailed { reason, .. } = event {
                failures.push(reason);
                // It would be asked for ever.
                if failures.len() > 1 {
                    stop.stop();
                }
            }
        }
        failures
    });
    study.optimize(Some(IDEAS.len())).unwrap();
    let trials = study.trials()[1..].to_vec();
    drop(study);
    let failures = listener.join().unwrap();

    assert!(failures.len() == 1 && failures[0].contains("redit balance"), "{failures:?}");
    let statuses: Vec<_> = trials.iter().map(|trial| trial.status).collect();
    assert_eq!(statuses, [Status::Keep, Status::Discard, Status::Keep], "{trials:#?}");
    let calls = (known.edit)("", "", "").len() as u64;
    for (trial, (_, _, description)) in trials.iter().zip(IDEAS) {
        assert_eq!((trial.proposer.as_str(), trial.repairs), (known.name, 0));
        assert_eq!(trial.description, description);
        assert_eq!(trial.remarks, [""; 0], "nothing else was changed");
        assert_eq!(trial.measurement.propose_tokens, Some((calls + 1) * TOKENS));
        assert_eq!(trial.measurement.propose_usd.is_some(), known.priced);
    }
}

/// Where an agent lies.
fn folder_of(name: &str) -> Option<PathBuf> {
    let given = env::var_os("OVERNIGHT_AGENTS").map(|folder| Path::new(&folder).join("bin"));
    let path = env::var_os("PATH").unwrap_or_default();
    given.into_iter().chain(env::split_paths(&path)).find(|folder| folder.join(name).is_file())
}
