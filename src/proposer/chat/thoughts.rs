//! What a model thinks before it answers, and drafts there, is no part of its answer.
//!
//! Local servers pass it on between marks that differ by model family, some without the mark that opens it
//! (the prompt's template has that), some several times in an answer.

/// Marks that open and close a thought. Of DeepSeek, Qwen and many others; of prompts in XML; Magistral; Kimi;
/// Command A; OpenThinker; Seed; MedGemma.
const MARKS: [(&str, &str); 12] = [
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<scratchpad>", "</scratchpad>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<seed:think>", "</seed:think>"),
    ("<unused94>", "<unused95>"),
];

/// What gpt-oss begins its answer with, after its other channels.
const FINAL_CHANNEL: &str = "<|channel|>final<|message|>";

/// The answer alone. Empty where a thought never ends.
///
/// Inside a code block a mark is text, unless a line has nothing else: a source may speak of marks.
pub(super) fn without_thoughts(text: &str) -> String {
    let text = text.rsplit_once(FINAL_CHANNEL).map_or(text, |(_, answer)| answer);
    let mut answer = String::new();
    // The mark that would end the thought, and the fence of the code block that is open.
    let mut thought: Option<&str> = None;
    let mut fence = 0;
    for line in text.split_inclusive('\n') {
        let mut rest = line;
        loop {
            if let Some(end) = thought {
                let Some((_, behind)) = split_at(rest, end) else { break };
                (thought, rest) = (None, behind);
            }
            let alone = MARKS.iter().any(|mark| rest.trim() == mark.0 || rest.trim() == mark.1);
            if fence > 0 && !alone {
                answer.push_str(rest);
                break;
            }
            let opens = |mark: &&(&str, &str)| starts_with(rest.trim_start(), mark.0);
            if let Some(&(start, end)) = MARKS.iter().find(opens) {
                (thought, fence) = (Some(end), 0);
                rest = &rest.trim_start()[start.len()..];
                continue;
            }
            // An end without a beginning: all before it was a thought.
            if let Some((_, behind)) = MARKS.iter().find_map(|mark| split_at(rest, mark.1)) {
                answer.clear();
                (rest, fence) = (behind, 0);
                continue;
            }
            answer.push_str(rest);
            break;
        }
        if thought.is_none() {
            let ticks = line.len() - line.trim_start_matches('`').len();
            let is_bare = line[ticks..].trim().is_empty();
            fence = match fence {
                0 if ticks >= 3 => ticks,
                open if open > 0 && ticks >= open && is_bare => 0,
                open => open,
            };
        }
    }
    answer.trim().to_owned()
}

fn starts_with(text: &str, mark: &str) -> bool {
    text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark))
}

/// What stands before and behind the first mark in a line, in either case of letters.
fn split_at<'a>(line: &'a str, mark: &str) -> Option<(&'a str, &'a str)> {
    let at = line.char_indices().map(|(at, _)| at).find(|&at| starts_with(&line[at..], mark))?;
    Some((&line[..at], &line[at + mark.len()..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_no_part_of_an_answer() {
        let draft = "Perhaps\n<<<<<<< SEARCH\na\n=======\nb\n>>>>>>> REPLACE\n```\nc\n```\nNo.";
        for (start, end) in MARKS {
            for text in [
                format!("{start}\n{draft}\n{end}\n\nthe answer\n"),
                format!("{draft}\n{end}\nthe answer"),
                format!("{start}well{end}{start}{draft}{end}the answer"),
                format!("{start}well{end}\n{start}\n{draft}\n{end}\nthe answer"),
                format!("the answer\n{start}\n{draft}\n{end}"),
                format!("{}\n{draft}\n{}the answer", start.to_lowercase(), end.to_uppercase()),
                format!("```\nunfinished\n{end}\nthe answer"),
            ] {
                assert_eq!(without_thoughts(&text), "the answer", "{text}");
            }
            assert_eq!(without_thoughts(&format!("{start}\n{draft}")), "");
        }
        let channels = "<|channel|>analysis<|message|>a draft<|end|><|channel|>final<|message|>so";
        assert_eq!(without_thoughts(channels), "so");
    }

    #[test]
    fn a_source_may_speak_of_marks() {
        let answer = "DESCRIPTION: cut thoughts\n\n```rust\nlet end = \"</think>\";\n\
                      let start = \"<think>\"; // [THINK]\n```";
        assert_eq!(without_thoughts(answer), answer);
        let thought = format!("<think>\nhm\n</think>\n{answer}");
        assert_eq!(without_thoughts(&thought), answer);
    }
}
