//! README.md, executed: what it shows is what a reader sees.

use std::{fs, path::Path};

use crate::support::{Done, ROOT, User};

/// A fenced block: its language and its text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let (mut found, mut open) = (Vec::new(), None::<(String, String)>);
    for line in text.lines() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(language), None) => open = Some((language.to_owned(), String::new())),
            (Some(_), Some(block)) => found.push(block),
            (None, Some((language, body))) => open = Some((language, format!("{body}{line}\n"))),
            (None, None) => {}
        }
    }
    found
}

/// Commands of a session, each with the output that the page shows.
fn commands(session: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    for line in session.lines() {
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => found.push((command.to_owned(), String::new())),
            (None, Some((_, output))) => output.push_str(&format!("{line}\n")),
            (None, None) => panic!("a session begins with a command: {line}"),
        }
    }
    found
}

/// What a machine lacks is no part of the page.
fn is_shown(line: &str) -> bool {
    !line.starts_with("note: ")
}

/// A line that does not say how long ago: that is how busy the machine was between two commands.
fn without_age(line: &str) -> String {
    let Some((before, after)) = line.split_once(" ago") else { return line.to_owned() };
    let in_words = ["Less than a second", "About a minute"];
    let in_words = in_words.iter().find_map(|age| before.strip_suffix(age));
    // A number and its unit.
    let before = in_words.or_else(|| before.rsplitn(3, ' ').nth(2)).unwrap();
    format!("{} now{after}", before.trim_end())
}

/// Output with what differs from run to run taken out: times, ages, and the order of what happens at once.
fn comparable(output: &str) -> Vec<String> {
    let mut lines: Vec<String> = output
        .lines()
        .filter(|line| is_shown(line))
        .map(|line| {
            let words = line.split_whitespace().map(|word| match word.parse::<f64>() {
                Ok(_) if word.contains('.') => "0.0",
                _ => word,
            });
            without_age(&words.collect::<Vec<_>>().join(" "))
        })
        .collect();
    lines.sort();
    lines
}

/// Types a command in a network of its own: the embedded registry's port is free there, whatever others run.
fn typed_alone(user: &User, command: &str) -> Done {
    let script = format!("ip link set lo up; exec 2>&1; {command}");
    let mut alone = user.command("unshare");
    Done::of(alone.args(["--net", "bash", "-euo", "pipefail", "-c", &script]))
}

/// Blocks marked `kdl` become idpbuilder.kdl; blocks marked `console` are typed, line by line, in one folder. With
/// UPDATE_README set, what they print is written into the page instead of being compared with it.
#[test]
fn the_readme_shows_what_happens() {
    let user = User::new();
    let path = Path::new(ROOT).join("README.md");
    let mut page = fs::read_to_string(&path).unwrap();
    let is_update = std::env::var_os("UPDATE_README").is_some();
    let mut typed = 0;
    for (language, body) in blocks(&page.clone()) {
        match language.as_str() {
            "kdl" => user.write("idpbuilder.kdl", &body),
            "console" => {
                let mut session = String::new();
                for (command, shown) in commands(&body) {
                    let done = typed_alone(&user, &command);
                    let is_same = comparable(&done.out) == comparable(&shown);
                    assert!(is_same || is_update, "$ {command}\n{done}\n--- README.md\n{shown}");
                    let now: String = done
                        .out
                        .lines()
                        .filter(|line| is_shown(line))
                        .map(|line| format!("{line}\n"))
                        .collect();
                    session
                        .push_str(&format!("$ {command}\n{}", if is_same { &shown } else { &now }));
                    typed += 1;
                }
                page = page.replace(&body, &session);
            }
            _ => {}
        }
    }
    assert!(typed >= 4, "the page has a session to try");
    if is_update {
        fs::write(path, page).unwrap();
    }
}
