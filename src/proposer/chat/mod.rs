//! Chat: asks a language model for the next source, over HTTP.

mod edits;
mod http;
mod key;
mod options;
mod prompt;
mod thoughts;
mod transcript;
mod wire;

#[cfg(test)]
mod tests;

pub use options::{ChatOptions, Price, Protocol};

use super::{Brief, Fault, Proposal, ProposeError, Proposer, Usage};
use crate::text::{head, line};
use crate::{error::Result, source::in_the_form_of};
use http::Client;
use transcript::Transcript;
use wire::{Answer, End, Message, Role, Tokens};

/// Asks a language model for the next source: one that speaks OpenAI's Chat Completions, in the
/// cloud or on this machine, or Anthropic's Messages.
///
/// The model answers with edits or with a whole file. Edits that do not fit the source go back to
/// it; none is skipped. The key comes from `OPENAI_API_KEY` or `ANTHROPIC_API_KEY`, goes to the
/// server, and nowhere else. What was said stands in the trial's `propose.log`.
#[derive(Debug)]
pub struct Chat {
    name: String,
    options: ChatOptions,
    client: Client,
    /// The one that led to the last proposal.
    conversation: Option<Conversation>,
    usage: Usage,
}

/// What was said about one trial.
#[derive(Debug)]
struct Conversation {
    trial: usize,
    system: String,
    messages: Vec<Message>,
    transcript: Transcript,
    /// The source that the next answer changes.
    source: String,
    /// Stands where the next answer says nothing better.
    description: String,
}

/// Why a conversation led to nothing.
enum Trouble {
    /// The server could not be asked.
    Unasked(ProposeError),
    /// It was, and its model had no useful answer.
    Unanswered(String),
}

/// The longest answer that the model is shown again: a whole file, and some words about it.
const ANSWER_BYTES: usize = prompt::SOURCE_BYTES + (64 << 10);

/// A conversation that has grown longer is begun anew.
const CONVERSATION_BYTES: usize = 1 << 20;

impl Chat {
    /// Prepares to ask; the key and, where the options name none, the server come from the
    /// environment.
    ///
    /// # Errors
    /// The environment lacks the key, or a URL is none.
    pub fn new(options: ChatOptions) -> Result<Self> {
        Self::in_environment(options, |name| std::env::var(name).ok())
    }

    fn in_environment(
        options: ChatOptions,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let client = Client::new(options.endpoint(variable)?, &options);
        Ok(Self {
            name: format!("chat:{}", options.model),
            options,
            client,
            conversation: None,
            usage: Usage::default(),
        })
    }

    /// A conversation about a source of which the model knows nothing yet.
    fn conversation(&self, brief: &Brief<'_>, source: &str) -> Result<Conversation, ProposeError> {
        if source.len() > prompt::SOURCE_BYTES {
            return Err(ProposeError::Unable(format!(
                "{} has more than the {} KiB that a model is shown; split it, or let an agent edit it",
                brief.edited,
                prompt::SOURCE_BYTES >> 10
            )));
        }
        let key = self.client.endpoint().key.clone();
        let mut conversation = Conversation {
            trial: brief.trial,
            system: prompt::system(brief),
            messages: Vec::new(),
            transcript: Transcript::new(brief.folder_of(brief.trial), key),
            source: source.to_owned(),
            description: "not described".to_owned(),
        };
        conversation.transcript.add("system", &conversation.system);
        conversation.say(Role::User, &prompt::opening(brief, source));
        Ok(conversation)
    }

    /// Asks until an answer is of use.
    fn settle(
        &mut self,
        brief: &Brief<'_>,
        mut conversation: Conversation,
    ) -> Result<Proposal, Trouble> {
        let rounds = self.options.rounds.max(1);
        let mut complaint = String::new();
        for _ in 0..rounds {
            if !complaint.is_empty() {
                conversation.say(Role::User, &format!("{complaint}\n\n{}", prompt::AGAIN));
            }
            let answer = self.ask(brief, &conversation).map_err(|error| {
                conversation.transcript.add("no answer", &error.to_string());
                Trouble::Unasked(error)
            })?;
            if let Some(place) = answer.elsewhere {
                // To ask again would be paid for again, and end as this did.
                return Err(Trouble::Unanswered(format!(
                    "the model's answer is empty, and what it wrote stands in `{place}`: it came to no end \
                     of its thoughts, or the server takes the answer for one"
                )));
            }
            conversation.say(Role::Assistant, &head(&answer.text, ANSWER_BYTES));
            complaint = match answer.end {
                End::Refused(why) => {
                    let why = line(&why, 300);
                    return Err(Trouble::Unanswered(format!("the model refuses: {why}")));
                }
                End::CutOff => prompt::CUT_OFF.to_owned(),
                End::Complete => match edits::apply(&answer.text, &conversation.source) {
                    Ok(edited) => {
                        conversation.description =
                            edited.description.unwrap_or(conversation.description);
                        conversation.source = in_the_form_of(brief.source, &edited.source);
                        let proposal =
                            Proposal::new(&conversation.source, &conversation.description);
                        self.conversation = Some(conversation);
                        return Ok(proposal);
                    }
                    Err(complaint) => complaint,
                },
            };
        }
        Err(Trouble::Unanswered(format!(
            "none of the model's {rounds} answers was of use, the last for this: {}",
            line(&complaint, 300)
        )))
    }

    /// Asks once, and counts what it costs.
    fn ask(
        &mut self,
        brief: &Brief<'_>,
        conversation: &Conversation,
    ) -> Result<Answer, ProposeError> {
        let (endpoint, messages) = (self.client.endpoint(), &conversation.messages);
        let request = wire::request(endpoint, &self.options, &conversation.system, messages);
        let response = self.client.post(&request, brief.stop)?;
        let endpoint = self.client.endpoint();
        let answer = wire::answer(endpoint.protocol, &response).ok_or_else(|| {
            let url = &endpoint.url;
            ProposeError::Failed(format!(
                "{url} answers in another form than {:?}",
                endpoint.protocol
            ))
        })?;
        self.usage += Usage {
            usd: answer.usd.or_else(|| Some(answer.tokens?.usd(self.options.price?))),
            tokens: answer.tokens.map(Tokens::all),
        };
        // What the model writes ends up in sources, in the ledger and in git.
        let end = match answer.end {
            End::Refused(why) => End::Refused(self.client.redact(&why)),
            end => end,
        };
        Ok(Answer { text: self.client.redact(&answer.text), end, ..answer })
    }
}

impl Conversation {
    /// Adds something that was said. Who speaks twice in a row says it in one message: servers
    /// want roles to alternate, and messages to hold something.
    fn say(&mut self, role: Role, text: &str) {
        let heading = match role {
            Role::User => "to the model",
            Role::Assistant => "from the model",
        };
        self.transcript.add(heading, text);
        match self.messages.last_mut() {
            _ if text.is_empty() => {}
            Some(last) if last.role == role => last.text += &format!("\n\n{text}"),
            _ => self.messages.push(Message { role, text: text.to_owned() }),
        }
    }

    /// Whether it led to this proposal and can go on from there.
    fn led_to(&self, trial: usize, proposal: &Proposal) -> bool {
        let bytes: usize = self.messages.iter().map(|message| message.text.len()).sum();
        self.trial == trial && self.source == proposal.source && bytes < CONVERSATION_BYTES
    }
}

impl Proposer for Chat {
    fn name(&self) -> &str {
        &self.name
    }

    fn propose(&mut self, brief: &Brief<'_>) -> Result<Proposal, ProposeError> {
        let conversation = self.conversation(brief, brief.source)?;
        self.settle(brief, conversation).map_err(|trouble| match trouble {
            Trouble::Unasked(error) => error,
            Trouble::Unanswered(why) => ProposeError::Failed(why),
        })
    }

    /// Goes on with the conversation that led to the proposal. A model that knows no way out lets
    /// the trial stand.
    fn repair(
        &mut self,
        brief: &Brief<'_>,
        proposal: &Proposal,
        fault: &Fault,
    ) -> Result<Option<Proposal>, ProposeError> {
        let mut conversation = match self.conversation.take() {
            Some(conversation) if conversation.led_to(brief.trial, proposal) => conversation,
            _ => self.conversation(brief, &proposal.source)?,
        };
        conversation.description.clone_from(&proposal.description);
        conversation.say(Role::User, &prompt::fault(brief, fault));
        match self.settle(brief, conversation) {
            Ok(proposal) => Ok(Some(proposal)),
            Err(Trouble::Unanswered(_)) => Ok(None),
            Err(Trouble::Unasked(error)) => Err(error),
        }
    }

    fn take_usage(&mut self) -> Usage {
        std::mem::take(&mut self.usage)
    }

    fn thinks(&self) -> bool {
        true
    }
}
