//! `COPY` and `ADD`.

use std::collections::HashMap;

use crate::dockerfile::ast::{Copy, Heredoc};

use super::DOCKERFILE_BYTES_MAX;
use super::flags::{Flags, Takes};
use super::heredoc::{heredoc_of, without_tabs};
use super::instruction::Node;

const SHARED: [(&str, Takes); 4] = [
    ("chown", Takes::Text),
    ("chmod", Takes::Text),
    ("link", Takes::Truth),
    ("exclude", Takes::Texts),
];

pub(super) fn copy(node: Node) -> Result<Copy, String> {
    let own = [("from", Takes::Text), ("parents", Takes::Truth)];
    let (mut copy, flags) = read(node, "COPY", &own)?;
    copy.from = flags.text("from");
    copy.parents = flags.truth("parents").unwrap_or(false);
    Ok(copy)
}

pub(super) fn add(node: Node) -> Result<Copy, String> {
    let own = [("checksum", Takes::Text), ("keep-git-dir", Takes::Truth), ("unpack", Takes::Truth)];
    let (mut copy, flags) = read(node, "ADD", &own)?;
    copy.checksum = flags.text("checksum");
    copy.keep_git_dir = flags.truth("keep-git-dir");
    copy.unpack = flags.truth("unpack");
    Ok(copy)
}

fn read(node: Node, keyword: &str, own: &[(&'static str, Takes)]) -> Result<(Copy, Flags), String> {
    let mut arguments = node.arguments.into_words();
    if arguments.len() < 2 {
        return Err(format!(
            "{keyword} requires at least two arguments, but only one was provided. \
             Destination could not be determined"
        ));
    }
    let flags = Flags::read(&node.flags, &[&SHARED, own].concat())?;
    let destination = arguments.pop().unwrap_or_default();
    if announced(&destination).is_some() {
        return Err(format!("{keyword} cannot accept a heredoc as a destination"));
    }
    // Of two bodies with one name, the last one counts; in JSON form there is none.
    let bodies: HashMap<&str, &Heredoc> =
        node.heredocs.iter().map(|body| (body.name.as_str(), body)).collect();
    let mut sources = Vec::new();
    let mut heredocs = Vec::new();
    let mut heredoc_bytes = 0;
    for argument in arguments {
        match announced(&argument) {
            None => sources.push(argument),
            Some(mut heredoc) => {
                let body = bodies.get(heredoc.name.as_str());
                heredoc.content = body.map(|body| without_tabs(body)).unwrap_or_default();
                heredoc_bytes += heredoc.content.len();
                if heredoc_bytes > DOCKERFILE_BYTES_MAX {
                    // One body under one name may be asked for many times.
                    return Err(format!(
                        "{keyword} has more than {DOCKERFILE_BYTES_MAX} bytes of heredocs"
                    ));
                }
                heredocs.push(heredoc);
            }
        }
    }
    let copy = Copy {
        sources,
        heredocs,
        destination,
        from: None,
        chown: flags.text("chown"),
        chmod: flags.text("chmod"),
        link: flags.truth("link").unwrap_or(false),
        parents: false,
        exclude: flags.texts("exclude"),
        checksum: None,
        keep_git_dir: None,
        unpack: None,
    };
    Ok((copy, flags))
}

/// A word that is no well-formed heredoc is a path.
fn announced(word: &str) -> Option<Heredoc> {
    heredoc_of(word).ok().flatten()
}
