//! `RUN --mount`: the value of the flag → [`Mount`], with or without expansion of its fields.
//!
//! Defaults and targets are not filled in: they depend on where the instruction stands.

use super::ast::Mount;
use super::quote::quoted;
use super::suggest::with_suggestion;

const KINDS: &[&str] = &["bind", "cache", "secret", "ssh", "tmpfs"];
const SHARING: &[&str] = &["locked", "private", "shared"];
const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// How the value of a field becomes what is meant.
pub type Expand<'a> = &'a dyn Fn(&str) -> Result<String, String>;

/// Reads one `--mount` value; `expand` is called on the value of every field.
///
/// What the parser does not know until variables have values (`ro=$X`, `type=$KIND`) is known here: lowering
/// calls this with its environment on the `--mount` words of [`super::ast::Run::flags`].
///
/// # Errors
///
/// When the value is no CSV record, has unknown or ill-formed fields, or fields that its type does not take;
/// messages are BuildKit's.
pub fn read(value: &str, expand: Expand<'_>) -> Result<Mount, String> {
    let mut mount = Mount { kind: "bind".to_owned(), ..Mount::default() };
    for field in csv_record(value)? {
        let Some((key, value)) = field.split_once('=') else {
            valueless(&mut mount, &field)?;
            continue;
        };
        let key = key.to_lowercase();
        let value = expand(value)?;
        keyed(&mut mount, &key, value, &field)?;
    }
    check_kind(&mount)?;
    Ok(mount)
}

/// What can be said of a `--mount` value while nothing is expanded: the parser's part.
///
/// # Errors
///
/// When the value is no CSV record, or `from` has a variable.
pub(super) fn check_form(value: &str) -> Result<(), String> {
    for field in csv_record(value)? {
        let Some((key, value)) = field.split_once('=') else { continue };
        let variable = value.split_once('$').is_some_and(|(_, after)| !after.is_empty());
        if key.eq_ignore_ascii_case("from") && variable {
            return Err(format!(
                "'{}' doesn't support variable expansion, define alias stage instead",
                key.to_lowercase()
            ));
        }
    }
    Ok(())
}

/// As [`read`] with nothing expanded, leaving out what only expansion can tell.
pub(super) fn read_unexpanded(value: &str) -> Result<Mount, String> {
    let whole = read(value, &|value| Ok(value.to_owned()));
    if whole.is_ok() || !value.contains('$') {
        return whole;
    }
    let mut mount = Mount { kind: "bind".to_owned(), ..Mount::default() };
    for field in csv_record(value)? {
        match field.split_once('=') {
            None => drop(valueless(&mut mount, &field)),
            Some((key, value)) => {
                drop(keyed(&mut mount, &key.to_lowercase(), value.to_owned(), &field));
            }
        }
    }
    Ok(mount)
}

/// Whether `type` stands behind another key, which was read as one of a bind mount.
pub(super) fn type_comes_late(value: &str) -> bool {
    let fields = csv_record(value).unwrap_or_default();
    let is_type = |field: &String| {
        field.split_once('=').is_some_and(|(key, _)| key.eq_ignore_ascii_case("type"))
    };
    fields.iter().skip(1).any(is_type) && !fields.first().is_some_and(is_type)
}

fn valueless(mount: &mut Mount, field: &str) -> Result<(), String> {
    match field.to_lowercase().as_str() {
        "readonly" | "ro" => mount.read_only = Some(true),
        "readwrite" | "rw" => mount.read_only = Some(false),
        "required" if takes_required(mount) => mount.required = true,
        "required" => return Err(unexpected_for(mount, "required")),
        _ => return Err(format!("invalid field '{field}' must be a key=value pair")),
    }
    Ok(())
}

fn keyed(mount: &mut Mount, key: &str, value: String, field: &str) -> Result<(), String> {
    match key {
        "type" => mount.kind = one_of(&value, KINDS, "unsupported mount type")?,
        "from" => mount.from = given(value),
        "source" | "src" => mount.source = given(value),
        "target" | "dst" | "destination" => mount.target = given(value),
        "readonly" | "ro" => mount.read_only = Some(truth(key, &value)?),
        "readwrite" | "rw" => mount.read_only = Some(!truth(key, &value)?),
        "required" if takes_required(mount) => mount.required = truth(key, &value)?,
        "size" if mount.kind == "tmpfs" => {
            size_bytes(&value).ok_or_else(|| format!("invalid value for size: {value}"))?;
            mount.size = given(value);
        }
        "required" | "size" => return Err(unexpected_for(mount, key)),
        "id" => mount.id = given(value),
        "sharing" => mount.sharing = Some(one_of(&value, SHARING, "unsupported sharing value")?),
        "mode" => mount.mode = Some(number(key, value, 8)?),
        "uid" => mount.uid = Some(number(key, value, 10)?),
        "gid" => mount.gid = Some(number(key, value, 10)?),
        "env" => mount.env = given(value),
        _ => {
            let message = format!("unexpected key '{key}' in '{field}'");
            return Err(with_suggestion(message, key, KEYS));
        }
    }
    Ok(())
}

fn check_kind(mount: &Mount) -> Result<(), String> {
    let kind = mount.kind.as_str();
    if matches!(kind, "bind" | "tmpfs") {
        let owned = [("mode", &mount.mode), ("uid", &mount.uid), ("gid", &mount.gid)];
        if let Some((key, _)) = owned.into_iter().find(|(_, value)| value.is_some()) {
            return Err(format!("{key} not allowed for \"{kind}\" type mounts"));
        }
    }
    if kind == "secret" {
        let reason = if mount.from.is_some() {
            "secret mount should not have a from"
        } else if mount.sharing.is_some() {
            "secret mount should not define sharing"
        } else if mount.source.is_none() && mount.target.is_none() && mount.id.is_none() {
            "invalid secret mount. one of source, target required"
        } else if mount.source.is_some() && mount.id.is_some() {
            "both source and id can't be set"
        } else {
            return Ok(());
        };
        return Err(reason.to_owned());
    }
    if mount.sharing.is_some() && kind != "cache" {
        return Err(format!("invalid cache sharing set for {kind} mount"));
    }
    Ok(())
}

fn takes_required(mount: &Mount) -> bool {
    matches!(mount.kind.as_str(), "secret" | "ssh")
}

fn unexpected_for(mount: &Mount, key: &str) -> String {
    format!("unexpected key '{key}' for mount type '{}'", mount.kind)
}

fn given(value: String) -> Option<String> {
    Some(value).filter(|value| !value.is_empty())
}

fn one_of(value: &str, options: &[&str], refusal: &str) -> Result<String, String> {
    let lower = value.to_lowercase();
    if options.contains(&lower.as_str()) {
        return Ok(lower);
    }
    Err(with_suggestion(format!("{refusal} {}", quoted(value)), value, options))
}

fn truth(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
        _ => Err(format!("invalid value for {key}: {value}")),
    }
}

fn number(key: &str, value: String, radix: u32) -> Result<String, String> {
    let valid = value.chars().all(|letter| letter.is_digit(radix))
        && u32::from_str_radix(&value, radix).is_ok();
    if valid { Ok(value) } else { Err(format!("invalid value {value} for {key}")) }
}

/// Bytes in a size such as `10m`, `1.5g` or `64 KiB`; units are powers of 1024.
#[must_use]
pub fn size_bytes(text: &str) -> Option<u64> {
    let is_number = |letter: char| letter.is_ascii_digit() || letter == '.' || letter == ' ';
    let end = text.rfind(is_number)? + 1;
    let (amount, unit) = text.split_at(end);
    let amount = amount.strip_suffix(' ').unwrap_or(amount);
    let plain = amount.chars().all(|letter| letter.is_ascii_digit() || letter == '.');
    let amount: f64 = if plain { amount.parse().ok()? } else { return None };
    let unit = unit.to_lowercase();
    let power = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" if unit.len() < 2 => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return None,
    };
    let bytes = amount * 1024_f64.powi(power);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "never negative; fractions of a byte go, as in Go, and what is too large is the largest"
    )]
    let whole = bytes as u64;
    Some(whole)
}

/// The fields of one CSV record, by the rules and with the messages of Go's reader.
fn csv_record(text: &str) -> Result<Vec<String>, String> {
    let failed = |column: usize, reason: &str| {
        format!("failed to parse csv mounts: parse error on line 1, column {column}: {reason}")
    };
    let mut fields = Vec::new();
    let mut rest = text;
    if rest.is_empty() {
        return Err("failed to parse csv mounts: EOF".to_owned());
    }
    loop {
        let column = text.len() - rest.len() + 1;
        let Some(inner) = rest.strip_prefix('"') else {
            let (field, after) = match rest.split_once(',') {
                Some((field, after)) => (field, Some(after)),
                None => (rest, None),
            };
            if let Some(bare) = field.find('"') {
                return Err(failed(column + bare, "bare \" in non-quoted field"));
            }
            fields.push(field.to_owned());
            match after {
                Some(after) => rest = after,
                None => return Ok(fields),
            }
            continue;
        };
        let (field, after) = quoted_field(inner).map_err(|left| {
            failed(text.len() - left + 1, "extraneous or missing \" in quoted-field")
        })?;
        fields.push(field);
        match after {
            Some(after) => rest = after,
            None => return Ok(fields),
        }
    }
}

/// A field after its opening quote, and what follows its comma; the error is how many bytes were left.
fn quoted_field(text: &str) -> Result<(String, Option<&str>), usize> {
    let mut field = String::new();
    let mut rest = text;
    while let Some((part, after)) = rest.split_once('"') {
        field.push_str(part);
        if let Some(after) = after.strip_prefix('"') {
            field.push('"');
            rest = after;
        } else if after.is_empty() {
            return Ok((field, None));
        } else if let Some(after) = after.strip_prefix(',') {
            return Ok((field, Some(after)));
        } else {
            return Err(after.len() + 1);
        }
    }
    Err(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("10m", Some(10 << 20)),
            ("1.5g", Some(1_610_612_736)),
            ("64 KiB", Some(64 << 10)),
            ("5b", Some(5)),
            ("5ib", None),
            ("5kb", Some(5 << 10)),
            ("5x", None),
            ("m", None),
            ("-1", None),
            ("1.2.3", None),
            ("", None),
        ] {
            assert_eq!(size_bytes(text), bytes, "{text}");
        }
    }

    #[test]
    fn records_are_read_as_go_does() {
        let error = |reason: &str| Err(format!("failed to parse csv mounts: {reason}"));
        for (text, expected) in [
            ("a=b,c", Ok(vec!["a=b", "c"])),
            ("\"a=b,c\",d", Ok(vec!["a=b,c", "d"])),
            ("\"a\"\"b\"", Ok(vec!["a\"b"])),
            ("a,", Ok(vec!["a", ""])),
            ("", error("EOF")),
            ("a\"b", error("parse error on line 1, column 2: bare \" in non-quoted field")),
            (
                "\"a",
                error("parse error on line 1, column 3: extraneous or missing \" in quoted-field"),
            ),
            (
                "\"a\"b",
                error("parse error on line 1, column 3: extraneous or missing \" in quoted-field"),
            ),
        ] {
            let expected = expected.map(|words| words.into_iter().map(str::to_owned).collect());
            assert_eq!(csv_record(text), expected, "{text}");
        }
    }

    #[test]
    fn fields_with_variables_are_read_when_they_have_values() {
        let text = "type=$K,target=/a,ro=$R,uid=$U";
        assert_eq!(read_unexpanded(text).unwrap().target.as_deref(), Some("/a"));
        let value = |name: &str| match name {
            "$K" => Ok("cache".to_owned()),
            "$R" => Ok("true".to_owned()),
            "$U" => Ok("7".to_owned()),
            other => Ok(other.to_owned()),
        };
        let mount = read(text, &value).unwrap();
        assert_eq!((mount.kind.as_str(), mount.read_only), ("cache", Some(true)));
        assert_eq!(mount.uid.as_deref(), Some("7"));
    }
}
