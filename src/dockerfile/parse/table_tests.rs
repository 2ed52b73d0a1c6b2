//! The parser against the table and the builds whose truth is BuildKit's.

use serde_json::{Map, Value, json};

use super::*;
use crate::dockerfile::ast::{CommandLine, Copy, KeyValue, Mount, Run};
use crate::dockerfile::mount::size_bytes;
use crate::graph::{Network, Security};

pub(super) fn table() -> Value {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/parse.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn every_file_of_the_table_is_read_as_in_buildkit() {
    let table = table();
    let rows = table["rows"].as_array().unwrap();
    assert!(rows.len() > 400, "the table is whole");
    let mut wrong = Vec::new();
    for row in rows {
        let text = row["dockerfile"].as_str().unwrap();
        let (found, expected) = match read_file(text) {
            Ok(file) => (shown(&file), expected_file(row)),
            Err(error) => (shown_error(&error), expected_error(row)),
        };
        if found != expected {
            wrong.push(format!("{text:?}\n  found    {found}\n  expected {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn expected_file(row: &Value) -> Value {
    let mut instructions = row["instructions"].clone();
    for instruction in instructions.as_array_mut().into_iter().flatten() {
        let fields = instruction.as_object_mut().unwrap();
        if fields["instruction"] == "ONBUILD" || fields["instruction"] == "FROM" {
            continue;
        }
        // No arguments are null where BuildKit has no list.
        for key in ["args", "sources"] {
            if fields.get(key).is_some_and(Value::is_null) {
                fields.insert(key.to_owned(), json!([]));
            }
        }
        for heredoc in
            fields.get_mut("heredocs").and_then(Value::as_array_mut).into_iter().flatten()
        {
            // Here a body that the builder uses itself has lost its tabs already.
            if heredoc["chomp"] == true {
                let body = heredoc["data"].as_str().unwrap().replace("\n\t", "\n");
                heredoc["data"] = body.trim_start_matches('\t').into();
            }
        }
    }
    json!({
        "escape": row["escape"].as_str().unwrap_or("\\"),
        "warnings": row.get("warnings").cloned().unwrap_or(json!([])),
        "instructions": instructions,
    })
}

fn expected_error(row: &Value) -> Value {
    let mut line = row["line"].as_u64();
    let message = row["error"].as_str().unwrap_or("no error");
    // BuildKit counts the lines before a bad directive; the line itself is of more use.
    if message.contains("parser directive") || message.contains("escape token") {
        line = line.map(|line| line + 1);
    }
    json!({ "error": message, "line": line })
}

fn shown_error(error: &DockerfileError) -> Value {
    let line = error.location.as_ref().map_or(0, |location| location.lines.0);
    json!({ "error": error.message, "line": line })
}

fn shown(file: &Dockerfile) -> Value {
    let mut instructions: Vec<Value> = file.global_args.iter().map(shown_instruction).collect();
    let mut texts: Vec<&Instruction> = file.global_args.iter().collect();
    for stage in &file.stages {
        let mut from = shown_instruction(&stage.from);
        from["base"] = stage.base.clone().into();
        for (key, value) in [("name", &stage.name), ("platform", &stage.platform)] {
            if let Some(value) = value {
                from[key] = value.clone().into();
            }
        }
        instructions.push(from);
        texts.push(&stage.from);
        instructions.extend(stage.instructions.iter().map(shown_instruction));
        texts.extend(&stage.instructions);
    }
    let empty = file.warnings.iter().filter(|w| w.rule == "NoEmptyContinuation");
    let warnings: Vec<String> = empty
        .map(|warning| {
            let line = warning.location.lines.1;
            let whole = texts.iter().find(|text| text.location.lines.1 == line).unwrap();
            format!("Empty continuation line found in: {}", whole.original)
        })
        .collect();
    json!({
        "escape": file.directives.escape.to_string(),
        "warnings": warnings,
        "instructions": instructions,
    })
}

fn shown_instruction(instruction: &Instruction) -> Value {
    let mut fields = shown_kind(&instruction.kind);
    if let Kind::Run(Run { heredoc_only: true, command, heredocs, .. }) = &instruction.kind {
        assert_eq!(*command, CommandLine::Shell(heredocs[0].content.clone()));
        // The table has the words of the line, not the body.
        let typed = arguments::split_command(&instruction.original).rest;
        fields.insert("args".to_owned(), json!([typed]));
    }
    fields.insert("instruction".to_owned(), instruction.keyword.to_uppercase().into());
    let (first, last) = instruction.location.lines;
    fields.insert("lines".to_owned(), json!([first, last]));
    Value::Object(fields)
}

fn shown_kind(kind: &Kind) -> Map<String, Value> {
    let value = match kind {
        Kind::From => json!({}),
        Kind::Arg(entries) => json!({ "args": entries }),
        Kind::Env(pairs) | Kind::Label(pairs) => {
            let pair = |pair: &KeyValue| json!([pair.key, pair.value]);
            json!({ "pairs": pairs.iter().map(pair).collect::<Vec<_>>() })
        }
        Kind::Maintainer(text)
        | Kind::Workdir(text)
        | Kind::User(text)
        | Kind::StopSignal(text) => {
            json!({ "text": text })
        }
        Kind::Shell(words) | Kind::Expose(words) | Kind::Volume(words) => json!({ "args": words }),
        Kind::Cmd(command) | Kind::Entrypoint(command) => shown_command(command),
        Kind::Healthcheck(health) => json!({ "health": health }),
        Kind::Run(run) => shown_run(run),
        Kind::Copy(copy) | Kind::Add(copy) => shown_copy(copy),
        Kind::OnBuild { trigger, heredocs } => {
            let bodies = heredocs.iter().map(|body| format!("\n{}{}", body.content, body.name));
            json!({ "text": trigger.clone() + &bodies.collect::<String>() })
        }
    };
    value.as_object().unwrap().clone()
}

fn shown_command(command: &CommandLine) -> Value {
    match command {
        CommandLine::Exec(words) => json!({ "args": words, "shell": false }),
        CommandLine::Shell(text) if text.is_empty() => json!({ "args": [], "shell": true }),
        CommandLine::Shell(text) => json!({ "args": [text], "shell": true }),
    }
}

fn shown_run(run: &Run) -> Value {
    let mut value = shown_command(&run.command);
    let bodies: Vec<Value> = run
        .heredocs
        .iter()
        .map(|b| json!({ "chomp": b.chomp, "data": b.content, "name": b.name }))
        .collect();
    if !bodies.is_empty() {
        value["heredocs"] = bodies.into();
    }
    let mut flags: Vec<&str> = run
        .flags
        .iter()
        .map(|flag| flag.trim_start_matches("--").split('=').next().unwrap())
        .collect();
    flags.dedup();
    if !flags.is_empty() {
        value["flags"] = json!(flags);
    }
    if !run.mounts.is_empty() {
        value["mounts"] = run.mounts.iter().map(shown_mount).collect();
    }
    match run.network {
        Network::Default => {}
        Network::None => value["network"] = "none".into(),
        Network::Host => value["network"] = "host".into(),
    }
    if run.security == Security::Insecure {
        value["security"] = "insecure".into();
    }
    value
}

fn shown_mount(mount: &Mount) -> Value {
    let mut value = json!({ "type": mount.kind });
    for (key, text) in [
        ("target", &mount.target),
        ("source", &mount.source),
        ("from", &mount.from),
        ("id", &mount.id),
        ("env", &mount.env),
        ("sharing", &mount.sharing),
    ] {
        if let Some(text) = text {
            value[key] = text.clone().into();
        }
    }
    for (key, text, radix) in
        [("mode", &mount.mode, 8), ("uid", &mount.uid, 10), ("gid", &mount.gid, 10)]
    {
        if let Some(text) = text {
            value[key] = u32::from_str_radix(text, radix).unwrap().into();
        }
    }
    if let Some(size) = &mount.size {
        value["size"] = size_bytes(size).unwrap().into();
    }
    let writable = matches!(mount.kind.as_str(), "cache" | "tmpfs");
    if mount.read_only.unwrap_or(!writable) {
        value["readonly"] = true.into();
    }
    if mount.required {
        value["required"] = true.into();
    }
    value
}

fn shown_copy(copy: &Copy) -> Value {
    let mut value = json!({ "sources": copy.sources, "dest": copy.destination });
    for (key, text) in [
        ("from", &copy.from),
        ("chown", &copy.chown),
        ("chmod", &copy.chmod),
        ("checksum", &copy.checksum),
    ] {
        if let Some(text) = text {
            value[key] = text.clone().into();
        }
    }
    for (key, set) in [("link", copy.link), ("parents", copy.parents)] {
        if set {
            value[key] = true.into();
        }
    }
    for (key, set) in [("keepGitDir", copy.keep_git_dir), ("unpack", copy.unpack)] {
        if let Some(set) = set {
            value[key] = set.into();
        }
    }
    if !copy.exclude.is_empty() {
        value["exclude"] = json!(copy.exclude);
    }
    let bodies: Vec<Value> = copy
        .heredocs
        .iter()
        .map(|b| json!({ "data": b.content, "expand": b.expand, "name": b.name }))
        .collect();
    if !bodies.is_empty() {
        value["heredocs"] = bodies.into();
    }
    value
}

pub(super) fn cases() -> Vec<(String, Value)> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus/cases");
    let mut cases: Vec<(String, Value)> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            let case = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
            (path.file_name().unwrap().to_string_lossy().into_owned(), case)
        })
        .collect();
    cases.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(cases.len() > 600, "the corpus is whole");
    cases
}

#[test]
fn every_build_of_the_corpus_parses_or_fails_as_in_buildkit() {
    let mut wrong = Vec::new();
    let mut failed = 0;
    for (name, case) in cases() {
        let expected = case["expect"]["error"].as_str();
        match (parse(case["dockerfile"].as_str().unwrap()), expected) {
            (Ok(_), Some(error)) if error.contains("parse error on line") => {
                wrong.push(format!("{name}: parsed, not {error}"));
            }
            (Ok(_), _) => {}
            (Err(error), Some(expected)) if error.message == expected => failed += 1,
            // A check reports what it found before the error, and nothing else.
            (Err(_), None) if case["call"] == "lint" => failed += 1,
            (Err(error), expected) => wrong.push(format!("{name}: {error}, not {expected:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(failed > 60, "{failed} cases fail in the parser");
}
