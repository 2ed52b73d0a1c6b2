//! `RUN --mount`: fields expanded, defaults filled in, and made ops.

use std::cell::RefCell;

use crate::dockerfile::ast::{Instruction, Mount, Run};
use crate::dockerfile::mount;
use crate::dockerfile::quote::quoted;
use crate::graph::{MountKind, MountOp, OpId, Sharing};

use super::dispatch::{Work, cleaned};
use super::stages::Command;
use crate::dockerfile::lower::{Build, Failure};

const CACHE_NAMESPACE_ARG: &str = "BUILDKIT_CACHE_MOUNT_NS";

impl Build<'_> {
    /// The mounts of a `RUN`, in order.
    pub(super) fn mounts(
        &mut self,
        index: usize,
        work: &Work,
        command: &Command,
        run: &Run,
    ) -> Result<Vec<MountOp>, Failure> {
        let texts = run.flags.iter().filter_map(|flag| flag.strip_prefix("--mount="));
        let mut mounts = Vec::new();
        for text in texts {
            mounts.push(self.expanded(work, &command.instruction, text)?);
        }
        let mut ops = Vec::new();
        let mut agents = 0;
        for (mount, source) in mounts.into_iter().zip(&command.sources) {
            let from = self.mount_source(index, &mount, *source)?;
            let op = match mount.kind.as_str() {
                "secret" => secret(work, mount),
                "ssh" => {
                    agents += 1;
                    ssh(work, mount, agents - 1)?
                }
                _ => self.files(work, mount, from)?,
            };
            ops.push(op);
        }
        Ok(ops)
    }

    /// A mount with its fields expanded; what is undefined is told even when it fails.
    fn expanded(&mut self, work: &Work, at: &Instruction, text: &str) -> Result<Mount, Failure> {
        let escape = self.dockerfile.directives.escape;
        let words = RefCell::new(Vec::new());
        let mount = mount::read(text, &|value| {
            let word = work.env.word(value, escape);
            let text = word.text.clone();
            words.borrow_mut().push(word);
            text
        });
        for word in words.into_inner() {
            self.report.undefined(at, &word, &work.env, &work.args);
        }
        mount.map_err(Failure::new)
    }

    fn mount_source(
        &self,
        index: usize,
        mount: &Mount,
        source: Option<usize>,
    ) -> Result<Option<OpId>, Failure> {
        let Some(source) = source else { return Ok(None) };
        match self.states[source].done {
            Some(done) if source != index => Ok(Some(done)),
            _ => Err(Failure::new(format!(
                "cannot mount from stage {} to {}, stage needs to be defined before current command",
                quoted(text(&mount.from)),
                quoted(text(&mount.target)),
            ))
            .help("move the stage that has the files above this one")),
        }
    }

    /// `bind`, `cache` and `tmpfs`.
    fn files(
        &mut self,
        work: &Work,
        fields: Mount,
        from: Option<OpId>,
    ) -> Result<MountOp, Failure> {
        let target = below(work, text(&fields.target));
        if target == "/" {
            let failure = Failure::new("invalid mount target \"/\"");
            return Err(failure.help("say where to mount: target=/path"));
        }
        let writable = matches!(fields.kind.as_str(), "cache" | "tmpfs");
        let read_only = fields.read_only.unwrap_or(!writable);
        let source = cleaned(text(&fields.source));
        let kind = match fields.kind.as_str() {
            "tmpfs" => MountKind::Tmpfs { size: fields.size.as_deref().and_then(bytes) },
            "cache" => MountKind::Cache {
                id: fields.id.clone().unwrap_or_else(|| go_clean(text(&fields.target))),
                namespace: self.options.args.get(CACHE_NAMESPACE_ARG).cloned().unwrap_or_default(),
                from,
                source,
                sharing: match fields.sharing.as_deref() {
                    Some("private") => Sharing::Private,
                    Some("locked") => Sharing::Locked,
                    _ => Sharing::Shared,
                },
                mode: number(fields.mode.as_deref(), 8, MountKind::CACHE_MODE),
                uid: number(fields.uid.as_deref(), 10, 0),
                gid: number(fields.gid.as_deref(), 10, 0),
            },
            _ => MountKind::Bind { from: from.unwrap_or_else(|| self.context_op(None)), source },
        };
        Ok(MountOp { target, kind, read_only })
    }
}

/// Numbers were checked when the mount was read.
fn number(text: Option<&str>, radix: u32, default: u32) -> u32 {
    text.and_then(|text| u32::from_str_radix(text, radix).ok()).unwrap_or(default)
}

fn secret(work: &Work, fields: Mount) -> MountOp {
    let given = fields.source.clone().or_else(|| fields.id.clone());
    let id = given.unwrap_or_else(|| base_name(text(&fields.target)));
    let target = match &fields.target {
        None => format!("/run/secrets/{}", base_name(&id)),
        Some(typed) => below(work, typed),
    };
    let file = fields.target.is_some() || fields.env.is_none();
    let kind = MountKind::Secret {
        id,
        env: fields.env,
        file,
        required: fields.required,
        mode: number(fields.mode.as_deref(), 8, MountKind::SECRET_MODE),
        uid: number(fields.uid.as_deref(), 10, 0),
        gid: number(fields.gid.as_deref(), 10, 0),
    };
    MountOp { target, kind, read_only: fields.read_only.unwrap_or(true) }
}

fn ssh(work: &Work, fields: Mount, agent: usize) -> Result<MountOp, Failure> {
    if fields.source.is_some() {
        return Err(Failure::new("ssh does not support source"));
    }
    let target = match &fields.target {
        None => format!("/run/buildkit/ssh_agent.{agent}"),
        Some(typed) => below(work, typed),
    };
    let kind = MountKind::Ssh {
        id: fields.id.unwrap_or_default(),
        required: fields.required,
        mode: number(fields.mode.as_deref(), 8, MountKind::SSH_MODE),
        uid: number(fields.uid.as_deref(), 10, 0),
        gid: number(fields.gid.as_deref(), 10, 0),
    };
    Ok(MountOp { target, kind, read_only: fields.read_only.unwrap_or(true) })
}

/// A field that is not there is empty.
fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}

/// A relative target is below the working directory.
fn below(work: &Work, target: &str) -> String {
    if target.starts_with('/') {
        cleaned(target)
    } else {
        cleaned(&format!("{}/{target}", work.cwd()))
    }
}

fn base_name(path: &str) -> String {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
}

/// Go's `path.Clean`.
fn go_clean(path: &str) -> String {
    if path.starts_with('/') {
        return cleaned(path);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// `64m`, `1.5g`, `100`: a size in Docker's units of 1024.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_lowercase();
    let split = lower.find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let (number, unit) = lower.split_at(split.unwrap_or(lower.len()));
    let power = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        "p" | "pb" | "pib" => 5,
        _ => return None,
    };
    let scale = 1024_u64.pow(power);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let whole = whole.parse::<u64>().ok()?.checked_mul(scale)?;
    let mut part = 0_u128;
    let mut divisor = 1_u128;
    for digit in fraction.bytes().take(18) {
        part = part * 10 + u128::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        divisor *= 10;
    }
    whole.checked_add(u64::try_from(part * u128::from(scale) / divisor).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units_of_1024() {
        for (text, size) in [
            ("100", Some(100)),
            ("64m", Some(64 << 20)),
            ("64MB", Some(64 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2KiB", Some(2048)),
            ("big", None),
            ("", None),
            ("1.2.3", None),
            ("5x", None),
        ] {
            assert_eq!(bytes(text), size, "{text}");
        }
    }

    #[test]
    fn paths_are_cleaned_as_go_does() {
        for (path, clean) in [
            ("", "."),
            ("./a", "a"),
            ("a/../b", "b"),
            ("../a", "../a"),
            ("/a/../b/", "/b"),
            ("a/..", "."),
        ] {
            assert_eq!(go_clean(path), clean);
        }
    }
}
