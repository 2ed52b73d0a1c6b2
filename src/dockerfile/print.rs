//! [`Dockerfile`] → text that parses to the same.
//!
//! Logical lines are printed as they were read, one a line; blank lines, comments inside of continuations and the
//! shape of continuations are not kept. Values in the typed parts are not looked at: `original` is the truth.

use super::ast::{Dockerfile, Heredoc, Instruction, Kind, Run};
use super::parse::{announced, continues};

/// Longest line written; what is longer is continued, as readers refuse lines of 64 KiB.
const LINE_BYTES_MAX: usize = 60_000;

/// Writes a Dockerfile; parsing the result gives the same values at other places.
#[must_use]
pub fn print(dockerfile: &Dockerfile) -> String {
    let mut out = String::new();
    let directives = &dockerfile.directives;
    if let Some(syntax) = &directives.syntax {
        push_comment(&mut out, &format!("syntax={syntax}"));
    }
    if directives.escape != '\\' {
        push_comment(&mut out, &format!("escape={}", directives.escape));
    }
    if let Some((check, _)) = &directives.check {
        push_comment(&mut out, &format!("check={check}"));
    }
    // Whatever comes first must not be taken for one more directive.
    push_line(&mut out, "");
    for arg in &dockerfile.global_args {
        push_instruction(&mut out, arg, directives.escape);
    }
    for stage in &dockerfile.stages {
        push_line(&mut out, "");
        push_instruction(&mut out, &stage.from, directives.escape);
        for instruction in &stage.instructions {
            push_instruction(&mut out, instruction, directives.escape);
        }
    }
    out
}

fn push_line(out: &mut String, line: &str) {
    out.push_str(line);
    out.push('\n');
}

/// A comment, with a blank after its sign unless that could make it too long.
fn push_comment(out: &mut String, text: &str) {
    out.push_str(if text.len() < LINE_BYTES_MAX { "# " } else { "#" });
    push_line(out, text);
}

/// A logical line, continued where it has to be.
fn push_logical(out: &mut String, text: &str, escape: char) {
    let mut rest = text;
    if rest.starts_with(char::is_whitespace) {
        // Blanks at the start of a line go, those after a continuation stay.
        push_line(out, &escape.to_string());
    }
    while rest.len() > LINE_BYTES_MAX
        && let Some((piece, after)) = cut(rest, escape)
    {
        out.push_str(piece);
        push_line(out, &escape.to_string());
        rest = after;
    }
    out.push_str(rest);
    if continues(rest, escape) {
        // Only the last line of a file can look like this: its continuation has nothing after it.
        out.push(escape);
    }
    push_line(out, "");
}

/// Cuts where neither an escape ends the first part nor a blank or `#` starts the second one.
fn cut(text: &str, escape: char) -> Option<(&str, &str)> {
    (LINE_BYTES_MAX / 2..=LINE_BYTES_MAX).rev().find_map(|end| {
        let (piece, after) = text.split_at_checked(end)?;
        let bad = piece.ends_with(escape) || after.starts_with('#');
        (!bad && !after.starts_with(char::is_whitespace)).then_some((piece, after))
    })
}

fn push_instruction(out: &mut String, instruction: &Instruction, escape: char) {
    for comment in &instruction.comments {
        push_comment(out, comment);
    }
    push_logical(out, &instruction.original, escape);
    if let Kind::Run(Run { heredocs, .. }) | Kind::OnBuild { heredocs, .. } = &instruction.kind {
        for heredoc in heredocs {
            push_body(out, heredoc);
        }
    }
    if let Kind::Copy(copy) | Kind::Add(copy) = &instruction.kind {
        // What the line announces has a body, whether it became a source or not.
        for announced in announced(&instruction.original, escape) {
            let taken = copy.heredocs.iter().rev().find(|body| body.name == announced.name);
            push_body(out, taken.unwrap_or(&announced));
        }
    }
}

fn push_body(out: &mut String, heredoc: &Heredoc) {
    out.push_str(&heredoc.content);
    push_line(out, &heredoc.name);
}
