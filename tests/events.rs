//! The schema of progress events, held against the events themselves.

#![expect(clippy::unwrap_used, reason = "a failed read is a failed test")]

use std::{collections::BTreeSet, time::Duration};

use idpbuilder::{
    event::{Direction, Event, Outcome, Stream},
    oci::Digest,
};
use serde_json::Value;

const SCHEMA: &str = include_str!("../schema/events.json");

fn output_of(image: String) -> Event {
    let (platform, stream, text) = (None, Stream::Stderr, "x".into());
    Event::StepOutput { image, platform, step: 1, stream, text }
}

/// The event that `schema/events.json` must describe after this one; a new variant does not compile
/// until it has a place here.
fn next(event: Option<&Event>) -> Option<Event> {
    let image = || "site".to_owned();
    let digest = Digest::of(b"blob");
    let second = Duration::from_millis(1500);
    let Some(event) = event else {
        return Some(Event::Planned { images: vec![image()], steps: 4 });
    };
    Some(match event {
        Event::Planned { .. } => Event::ImageStarted { image: image() },
        Event::ImageStarted { .. } => {
            let name = "RUN make".into();
            Event::StepStarted { image: image(), platform: None, step: 1, steps: 2, name }
        }
        Event::StepStarted { .. } => output_of(image()),
        Event::StepOutput { .. } => Event::StepDone {
            image: image(),
            platform: Some("linux/arm64".into()),
            step: 1,
            steps: 2,
            name: "RUN make".into(),
            outcome: Outcome::Built,
            reason: None,
            component: None,
            duration: second,
        },
        Event::StepDone { .. } => Event::Transfer {
            image: image(),
            direction: Direction::Pull,
            digest,
            done: 1,
            total: 2,
        },
        Event::Transfer { .. } => Event::TransferSkipped {
            image: image(),
            direction: Direction::Push,
            digest,
            reason: "mounted",
        },
        Event::TransferSkipped { .. } => Event::Source {
            image: image(),
            source: "https://h/x.git#main".into(),
            identity: Some("0123".into()),
            fetch: true,
        },
        Event::Source { .. } => {
            Event::Retrying { image: image(), reason: "503".into(), attempt: 2, wait: second }
        }
        Event::Retrying { .. } => Event::ImageStored {
            image: image(),
            id: digest,
            digest,
            size: 14,
            cached: 0,
            steps: 2,
            duration: second,
        },
        Event::ImageStored { .. } => Event::Pushed {
            image: image(),
            reference: "localhost:5050/shop/site:dev".into(),
            digest,
            duration: second,
        },
        Event::Pushed { .. } => Event::ImageFailed { image: image(), reason: "no".into() },
        Event::ImageFailed { .. } => Event::ImageCancelled { image: image() },
        Event::ImageCancelled { .. } => Event::ImageSkipped { image: image(), reason: "no".into() },
        Event::ImageSkipped { .. } => Event::Warning { image: None, text: "mind".into() },
        Event::Warning { .. } => Event::Note { text: "mind".into() },
        Event::Note { .. } => Event::Finished { ok: true, duration: second },
        Event::Finished { .. } => return None,
    })
}

#[test]
fn the_schema_has_every_event_with_its_members_and_no_other() {
    let schema: Value = serde_json::from_str(SCHEMA).unwrap();
    let mut described: BTreeSet<&str> = schema["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["title"].as_str().unwrap())
        .collect();
    let mut last = None;
    while let Some(event) = next(last.as_ref()) {
        let value = serde_json::to_value(&event).unwrap();
        let name = value["event"].as_str().unwrap().to_owned();
        assert!(described.remove(name.as_str()), "{name} is not described");
        let branches = schema["oneOf"].as_array().unwrap();
        let branch = branches.iter().find(|one| one["title"] == *name).unwrap();
        for rule in branch["required"].as_array().unwrap() {
            assert!(value.get(rule.as_str().unwrap()).is_some(), "{name} has no {rule}");
        }
        for (member, value) in value.as_object().unwrap() {
            let rule = &branch["properties"][member];
            assert!(fits(&schema, rule, value), "{name}: {member} {value} is not {rule}");
        }
        last = Some(event);
    }
    assert_eq!(described, BTreeSet::new(), "described, and never told");
}

/// Whether a value is what a rule of this schema says.
fn fits(schema: &Value, rule: &Value, value: &Value) -> bool {
    if let Some(definition) = rule["$ref"].as_str() {
        return fits(schema, &schema["$defs"][definition.rsplit('/').next().unwrap()], value);
    }
    if let Some(allowed) = rule["enum"].as_array() {
        return allowed.contains(value);
    }
    if let Some(only) = rule.get("const") {
        return only == value;
    }
    let several = rule["type"].as_array().cloned();
    let types = several.unwrap_or_else(|| vec![rule["type"].clone()]);
    types.iter().any(|wanted| match wanted.as_str().unwrap_or("no rule") {
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "array" => value.as_array().unwrap().iter().all(|one| fits(schema, &rule["items"], one)),
        _ => false,
    })
}
