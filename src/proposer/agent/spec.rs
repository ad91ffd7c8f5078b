//! Which agent, and how it is called.

use super::report::Dialect;
use crate::error::{Error, Result};
use std::{fmt, str::FromStr};

/// A command line that runs a coding agent once, without a terminal.
///
/// On a command line it stands behind `command:`, in one of three forms.
///
/// - `claude`, `codex`, `gemini`, `opencode`, `aider` or `pi`: that agent, called as it should be.
/// - `claude -- --model opus`: the same, with arguments of yours added.
/// - Anything else: words as a shell would split them, in which `{file}` is the file to edit,
///   `{folder}` the folder it lies in, `{prompt}` the task, and `{prompt_file}` a file with it. A
///   command with neither of the last two reads the task from its standard input. It runs in the
///   folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentSpec {
    text: String,
    pub(super) name: String,
    pub(super) words: Vec<String>,
    pub(super) environment: &'static [(&'static str, &'static str)],
    pub(super) dialect: Dialect,
}

/// An agent that is known by name.
struct Preset {
    name: &'static str,
    words: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
    dialect: Dialect,
}

/// Every one edits files without asking, and starts no other program where it can be told not to.
const PRESETS: &[Preset] = &[
    Preset {
        name: "claude",
        words: &[
            "claude",
            "-p",
            "--output-format",
            "json",
            "--permission-mode",
            "acceptEdits",
            "--tools",
            "Read,Edit,Write,Glob,Grep",
            "--strict-mcp-config",
            "--no-session-persistence",
            // Without a name, a model is asked for one.
            "--name",
            "overnight",
        ],
        environment: &[],
        dialect: Dialect::Claude,
    },
    Preset {
        name: "codex",
        words: &[
            "codex",
            "exec",
            "--json",
            "--sandbox",
            "workspace-write",
            "--skip-git-repo-check",
            "--ephemeral",
            "--cd",
            "{folder}",
            "-",
        ],
        environment: &[],
        dialect: Dialect::Codex,
    },
    Preset {
        name: "gemini",
        words: &["gemini", "--output-format", "json", "--approval-mode", "auto_edit"],
        // It edits nothing in a folder that nobody has said to trust.
        environment: &[("GEMINI_CLI_TRUST_WORKSPACE", "true")],
        dialect: Dialect::Gemini,
    },
    Preset {
        name: "opencode",
        words: &[
            "opencode",
            "run",
            "--format",
            "json",
            "--auto",
            // Without a title, a model is asked for one.
            "--title",
            "overnight",
            "--dir",
            "{folder}",
            "{prompt}",
        ],
        // What is not denied, `--auto` allows.
        environment: &[(
            "OPENCODE_PERMISSION",
            r#"{"bash":"deny","task":"deny","webfetch":"deny","external_directory":"deny"}"#,
        )],
        dialect: Dialect::Opencode,
    },
    Preset {
        name: "aider",
        words: &[
            "aider",
            "--message-file",
            "{prompt_file}",
            "--yes-always",
            "--no-git",
            "--no-pretty",
            "--no-stream",
            "--no-check-update",
            "--no-show-release-notes",
            "--no-detect-urls",
            "--no-suggest-shell-commands",
            "--no-show-model-warnings",
            "--no-analytics",
            "--read",
            "program.md",
            "--read",
            "HISTORY.md",
            "{file}",
        ],
        // It breaks its lines at the width of a terminal, and `--yes-always` has it open the pages
        // that its errors name.
        environment: &[("COLUMNS", "1000"), ("BROWSER", "true")],
        dialect: Dialect::Aider,
    },
    Preset {
        name: "pi",
        words: &["pi", "-p", "--mode", "json", "--no-session", "--tools", "read,edit,write"],
        environment: &[],
        dialect: Dialect::Pi,
    },
];

impl AgentSpec {
    /// The names that stand for a whole command line.
    pub fn presets() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|preset| preset.name)
    }
}

impl FromStr for AgentSpec {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = |problem: &str| Error::ProposerSpec {
            text: format!("command:{text}"),
            problem: problem.to_owned(),
        };
        let words = shlex::split(text).ok_or_else(|| refuse("a quotation mark is missing"))?;
        let Some(first) = words.first() else {
            return Err(refuse("there is no command; try command:claude"));
        };
        let preset = PRESETS.iter().find(|preset| preset.name == first);
        // Whoever gives arguments of their own without the dashes wants these and no others.
        let added = match words.get(1).map(String::as_str) {
            None => Some(&[][..]),
            Some("--") => Some(&words[2..]),
            Some(_) => None,
        };
        let environment = preset.map_or(&[][..], |preset| preset.environment);
        let spec = |name: &str, words, dialect| {
            Ok(Self { text: text.to_owned(), name: name.to_owned(), words, environment, dialect })
        };
        match (preset, added) {
            (Some(preset), Some(added)) => {
                let mut words: Vec<String> = preset.words.iter().map(|&w| w.to_owned()).collect();
                // Before what stands at the end for the task.
                let is_task = |word: &String| *word == "-" || *word == "{prompt}";
                let at = words.len() - usize::from(words.last().is_some_and(is_task));
                words.splice(at..at, added.iter().cloned());
                spec(preset.name, words, preset.dialect)
            }
            _ => {
                let program = std::path::Path::new(first).file_stem().unwrap_or_default();
                let dialect = preset.map_or(Dialect::Plain, |preset| preset.dialect);
                spec(&program.to_string_lossy(), words.clone(), dialect)
            }
        }
    }
}

impl fmt::Display for AgentSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_take_arguments_and_templates_are_left_alone() {
        let spec: AgentSpec = "codex -- --model 'a b'".parse().unwrap();
        assert_eq!(spec.name, "codex");
        assert_eq!(spec.words[spec.words.len() - 3..], ["--model", "a b", "-"]);

        let spec: AgentSpec = "claude -p --model x".parse().unwrap();
        assert_eq!(spec.words, ["claude", "-p", "--model", "x"]);
        assert_eq!(spec.dialect, Dialect::Claude);

        let spec: AgentSpec = "/opt/bin/mine.sh {file}".parse().unwrap();
        assert_eq!((spec.name.as_str(), spec.dialect), ("mine", Dialect::Plain));
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for text in ["", "  ", "claude 'unfinished"] {
            assert!(text.parse::<AgentSpec>().is_err(), "{text:?} was taken");
        }
    }
}
