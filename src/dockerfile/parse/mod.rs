//! Text → [`Dockerfile`].
//!
//! The whole file is read for its form first (`lines`, `heredoc`, [`instruction::Node`]), then every instruction for
//! what it says, then mounts: errors come in that order, as in BuildKit. Nothing is expanded here.

mod arguments;
mod copy;
mod duration;
mod flags;
mod heredoc;
mod instruction;
mod lines;
mod run;
mod syntax;

use super::DockerfileError;
use super::ast::{Dockerfile, Heredoc, Instruction, Kind, Location, Stage};
use super::lint::{self, Warning};
use super::mount;

use instruction::{Arguments, From, Node, Read};
use lines::{Logical, Misshapen, Reader};

pub(super) use lines::continues;
pub use syntax::{Syntax, detect_syntax};

/// Longest Dockerfile, in bytes.
pub const DOCKERFILE_BYTES_MAX: usize = 16 << 20;

/// Most instructions in a Dockerfile; each costs memory and, at run time, an op.
pub const INSTRUCTIONS_MAX: usize = 100_000;

/// Most mistakes told besides the first.
const OTHERS_MAX: usize = 9;

/// Parses a Dockerfile; nothing is expanded.
///
/// Warnings are not filtered, [`lint::CheckOptions::keep`] does that; those of an error are, by the file's directives.
///
/// # Errors
///
/// When the text is not a Dockerfile; the message is BuildKit's.
pub fn parse(text: &str) -> Result<Dockerfile, DockerfileError> {
    if text.is_empty() {
        return Err(failure("the Dockerfile cannot be empty".to_owned(), None, Vec::new()));
    }
    let dockerfile = read_file(text).map_err(|mut error| {
        // Nobody else can ask what the file says of checks, as there is no file.
        let directives = Reader::new(text).all_directives();
        let options = lint::CheckOptions::of(&directives).unwrap_or_default();
        error.warnings.retain(|warning| options.applies(warning.rule, None));
        error
    })?;
    if dockerfile.stages.is_empty() {
        let message = "dockerfile contains no stages to build".to_owned();
        let mut error = failure(message, None, dockerfile.warnings);
        error.help = Some("add a FROM line: an image to start from, or `scratch`".to_owned());
        return Err(error);
    }
    Ok(dockerfile)
}

/// Parses one `ONBUILD` trigger; its escape character is always `\`.
///
/// `text` is the trigger with or without the bodies of its heredocs; those of `heredocs` are added.
///
/// # Errors
///
/// When the trigger is no instruction, or none that may be triggered; the message is BuildKit's.
pub fn parse_trigger(text: &str, heredocs: &[Heredoc]) -> Result<Instruction, DockerfileError> {
    let mut whole = text.to_owned();
    for heredoc in heredocs {
        whole.push('\n');
        whole.push_str(&heredoc.content);
        whole.push_str(&heredoc.name);
    }
    check_size(&whole, "trigger")?;
    let mut reader = Reader::new(&whole);
    reader.close_directives();
    let (nodes, _) = read_nodes(&mut reader)?;
    let refused = |message, location| failure(message, Some(location), Vec::new());
    let mut nodes = nodes.into_iter();
    let Some((node, logical)) = nodes.next() else {
        return Err(failure("the trigger is empty".to_owned(), None, Vec::new()));
    };
    if let Some((_, extra)) = nodes.next() {
        return Err(refused("a trigger is one instruction".to_owned(), extra.location));
    }
    instruction::check_trigger(&node.keyword)
        .map_err(|message| refused(message, logical.location.clone()))?;
    let mut file = Assembly::default();
    let mut instruction = file.interpreted(node, logical)?.0;
    read_mounts(&mut instruction, &[])?;
    Ok(instruction)
}

/// Reads a file that may be empty or have no stages.
fn read_file(text: &str) -> Result<Dockerfile, DockerfileError> {
    check_size(text, "Dockerfile")?;
    let mut reader = Reader::new(text);
    let (nodes, warnings) = read_nodes(&mut reader)?;
    if nodes.is_empty() {
        let lines = (reader.number(), reader.number());
        let location = (reader.number() > 0).then_some(Location { span: 0..0, lines });
        return Err(failure("file with no instructions".to_owned(), location, warnings));
    }
    if let Some(misshapen) = reader.too_long() {
        return Err(malformed(misshapen, warnings));
    }
    let mut file = Assembly { warnings, ..Assembly::default() };
    let mut nodes = nodes.into_iter();
    while let Some((node, logical)) = nodes.next() {
        file.add(node, logical).map_err(|error| with_others(error, nodes.by_ref()))?;
    }
    file.warnings.extend(lint::whole_file(&file.stages));
    file.warnings.sort_by_key(|warning| warning.location.lines.0);
    let mut dockerfile = Dockerfile {
        directives: reader.directives,
        global_args: file.global_args,
        stages: file.stages,
        warnings: file.warnings,
    };
    for instruction in dockerfile.stages.iter_mut().flat_map(|stage| &mut stage.instructions) {
        read_mounts(instruction, &dockerfile.warnings)?;
    }
    Ok(dockerfile)
}

fn check_size(text: &str, what: &str) -> Result<(), DockerfileError> {
    let length = text.len();
    if length <= DOCKERFILE_BYTES_MAX {
        return Ok(());
    }
    let message =
        format!("the {what} has {length} bytes, and at most {DOCKERFILE_BYTES_MAX} are read");
    Err(failure(message, None, Vec::new()))
}

type Nodes = Vec<(Node, Logical)>;

/// Reads the form of every line.
fn read_nodes(reader: &mut Reader<'_>) -> Result<(Nodes, Vec<Warning>), DockerfileError> {
    let mut nodes: Nodes = Vec::new();
    let mut warnings = Vec::new();
    loop {
        let logical = match reader.logical() {
            Ok(Some(logical)) => logical,
            Ok(None) => return Ok((nodes, warnings)),
            Err(misshapen) => return Err(malformed(misshapen, warnings)),
        };
        let (node, logical) = match read_node(reader, logical, &mut warnings) {
            Ok(read) => read,
            Err(misshapen) => return Err(malformed(misshapen, warnings)),
        };
        if nodes.len() == INSTRUCTIONS_MAX {
            let message = format!("the Dockerfile has more than {INSTRUCTIONS_MAX} instructions");
            return Err(failure(message, Some(logical.location), warnings));
        }
        nodes.push((node, logical));
    }
}

/// The heredocs whose bodies follow `line`, without these bodies.
pub(super) fn announced(line: &str, escape: char) -> Vec<Heredoc> {
    let takes = Node::new(line, escape).is_ok_and(|node| node.takes_heredocs());
    if takes { heredoc::announced(line).unwrap_or_default() } else { Vec::new() }
}

fn read_node(
    reader: &mut Reader<'_>,
    mut logical: Logical,
    warnings: &mut Vec<Warning>,
) -> Result<(Node, Logical), Misshapen> {
    if logical.gaps {
        warnings.push(lint::empty_continuation(&logical.location));
    }
    let refused = |message, location: &Location| Misshapen {
        message,
        location: location.clone(),
        help: None,
    };
    let mut node = Node::new(&logical.text, reader.directives.escape)
        .map_err(|message| refused(message, &logical.location))?;
    if !(logical.text.contains("<<") && node.takes_heredocs()) {
        return Ok((node, logical));
    }
    let announced = heredoc::announced(&logical.text)
        .map_err(|error| refused(error.to_string(), &logical.location))?;
    for mut body in announced {
        let terminated = heredoc::read_body(&mut body, reader);
        logical.location.span = reader.span_from(logical.location.span.start);
        logical.location.lines.1 = reader.number();
        if !terminated {
            let name = body.name.as_str();
            let help = format!("end it with a line that says {name} and nothing else");
            let misshapen = refused("unterminated heredoc".to_owned(), &logical.location);
            return Err(Misshapen { help: Some(help), ..misshapen });
        }
        node.heredocs.push(body);
    }
    Ok((node, logical))
}

/// A file as far as it was understood.
#[derive(Default)]
struct Assembly {
    global_args: Vec<Instruction>,
    stages: Vec<Stage>,
    warnings: Vec<Warning>,
}

impl Assembly {
    fn add(&mut self, node: Node, logical: Logical) -> Result<(), DockerfileError> {
        let words =
            if let Arguments::Words(words) = &node.arguments { words.as_slice() } else { &[] };
        self.warnings.extend(lint::of_words(&node.keyword, words, &logical.location));
        let (instruction, from) = self.interpreted(node, logical)?;
        let stage_name = from.as_ref().and_then(|from| from.name.as_deref());
        self.warnings.extend(lint::of_definition(&instruction, stage_name));
        if let Some(from) = from {
            self.stages.push(Stage {
                base: from.base,
                name: from.name.as_ref().map(|name| name.to_lowercase()),
                name_typed: from.name,
                platform: from.platform,
                from: instruction,
                instructions: Vec::new(),
            });
            return Ok(());
        }
        match (self.stages.last_mut(), &instruction.kind) {
            (Some(stage), _) => stage.instructions.push(instruction),
            (None, Kind::Arg(_)) => self.global_args.push(instruction),
            (None, _) => {
                let message = "no build stage in current context".to_owned();
                let warnings = std::mem::take(&mut self.warnings);
                let mut error = failure(message, Some(instruction.location), warnings);
                error.help = Some("only ARG may stand before the first FROM".to_owned());
                return Err(error);
            }
        }
        Ok(())
    }

    fn interpreted(
        &mut self,
        node: Node,
        logical: Logical,
    ) -> Result<(Instruction, Option<From>), DockerfileError> {
        let keyword = node.keyword.clone();
        let (kind, from) = match instruction::read(node, &logical.text) {
            Ok(Read::Kind(kind)) => (kind, None),
            Ok(Read::From(from)) => (Kind::From, Some(from)),
            Err(reason) => {
                let warnings = std::mem::take(&mut self.warnings);
                return Err(misread(reason, logical.location, warnings));
            }
        };
        let Logical { text: original, location, comments, .. } = logical;
        Ok((Instruction { keyword, kind, original, location, comments }, from))
    }
}

/// A line that has no form.
fn malformed(misshapen: Misshapen, warnings: Vec<Warning>) -> DockerfileError {
    let Misshapen { message, location, help } = misshapen;
    let mut error = failure(message, Some(location), warnings);
    error.help = help;
    error
}

/// An instruction that says nothing.
fn misread(reason: String, location: Location, warnings: Vec<Warning>) -> DockerfileError {
    let line = location.lines.0;
    let message = format!("dockerfile parse error on line {line}: {reason}");
    let mut error = failure(message, Some(location), warnings);
    error.label = Some(reason);
    error
}

/// `error`, with the instructions below it that say nothing either.
fn with_others(
    mut error: DockerfileError,
    below: impl Iterator<Item = (Node, Logical)>,
) -> DockerfileError {
    let misread_ones = below.filter_map(|(node, logical)| {
        let reason = instruction::read(node, &logical.text).err()?;
        Some(misread(reason, logical.location, Vec::new()))
    });
    error.others = misread_ones.take(OTHERS_MAX).collect();
    error
}

fn read_mounts(instruction: &mut Instruction, warnings: &[Warning]) -> Result<(), DockerfileError> {
    let Kind::Run(run) = &mut instruction.kind else { return Ok(()) };
    let mut late = run.flags.iter().filter_map(|flag| flag.strip_prefix("--mount="));
    let help = late
        .any(mount::type_comes_late)
        .then(|| "write `type=` first: keys before it are a bind mount's".to_owned());
    run::read_mounts(run).map_err(|message| {
        let location = instruction.location.clone();
        malformed(Misshapen { message, location, help }, warnings.to_vec())
    })
}

fn failure(message: String, location: Option<Location>, warnings: Vec<Warning>) -> DockerfileError {
    DockerfileError { message, location, label: None, help: None, warnings, others: Vec::new() }
}

#[cfg(test)]
mod table_tests;
#[cfg(test)]
mod tests;
