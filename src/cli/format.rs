//! `--format`: a table, JSON, or a template in the way of docker's (`{{.Repository}}:{{.Tag}}`).

use serde_json::Value;

use super::failure::{CONFIGURATION, CliError};

/// How rows are printed.
pub(super) enum Format {
    /// Columns under a heading.
    Table,
    /// One JSON object a row.
    Json,
    /// A line a row.
    Template(Vec<Piece>),
}

/// A piece of a template.
pub(super) enum Piece {
    /// As it is.
    Text(String),
    /// A field of the row.
    Field(String),
    /// A field as JSON.
    JsonField(String),
    /// The row as JSON.
    JsonRow,
}

impl Format {
    /// Reads the flag's value; `fields` are what a row has.
    pub(super) fn parse(text: Option<&str>, fields: &[&str]) -> Result<Self, CliError> {
        match text {
            None | Some("table") => Ok(Self::Table),
            Some("json") => Ok(Self::Json),
            Some(template) => {
                let template = template.strip_prefix("table ").unwrap_or(template);
                Ok(Self::Template(pieces(template, fields)?))
            }
        }
    }

    /// One row as a line with its end; nothing for a table, which is drawn as a whole.
    pub(super) fn row(&self, row: &Value) -> String {
        match self {
            Self::Table => String::new(),
            Self::Json => format!("{row}\n"),
            Self::Template(pieces) => {
                let line: String = pieces.iter().map(|piece| show(piece, row)).collect();
                format!("{line}\n")
            }
        }
    }
}

fn show(piece: &Piece, row: &Value) -> String {
    match piece {
        Piece::Text(text) => text.clone(),
        Piece::Field(name) => {
            let value = &row[name];
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        }
        Piece::JsonField(name) => row[name].to_string(),
        Piece::JsonRow => row.to_string(),
    }
}

fn pieces(template: &str, fields: &[&str]) -> Result<Vec<Piece>, CliError> {
    let mut pieces = Vec::new();
    let mut rest = template;
    while let Some((text, after)) = rest.split_once("{{") {
        pieces.push(Piece::Text(unescape(text)));
        let (action, after) = after.split_once("}}").ok_or_else(|| {
            CliError::new(CONFIGURATION, format!("--format {template}: a `{{{{` without `}}}}`"))
        })?;
        pieces.push(action_piece(action.trim(), fields)?);
        rest = after;
    }
    pieces.push(Piece::Text(unescape(rest)));
    Ok(pieces)
}

fn action_piece(action: &str, fields: &[&str]) -> Result<Piece, CliError> {
    if action == "json ." {
        return Ok(Piece::JsonRow);
    }
    let (field, piece): (&str, fn(String) -> Piece) = match action.strip_prefix("json .") {
        Some(field) => (field, Piece::JsonField),
        None => (action.strip_prefix('.').unwrap_or_default(), Piece::Field),
    };
    if fields.contains(&field) {
        return Ok(piece(field.to_owned()));
    }
    let known = fields.iter().map(|field| format!(".{field}")).collect::<Vec<_>>().join(" ");
    Err(CliError::new(CONFIGURATION, format!("--format: `{{{{{action}}}}}` is not known here"))
        .with_help(format!("there are {known}, and `json .`")))
}

fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_fields() {
        let row = serde_json::json!({ "Repository": "demo", "Tag": "v1", "Size": 3 });
        let fields = ["Repository", "Tag", "Size"];
        for (template, line) in [
            ("{{.Repository}}:{{.Tag}}", "demo:v1\n"),
            ("{{ .Tag }}\\t{{.Size}}", "v1\t3\n"),
            ("{{json .Tag}}", "\"v1\"\n"),
            ("plain", "plain\n"),
        ] {
            let format = Format::parse(Some(template), &fields);
            assert_eq!(format.map(|format| format.row(&row)).ok().as_deref(), Some(line));
        }
        assert!(Format::parse(Some("{{.Nope}}"), &fields).is_err());
        assert!(Format::parse(Some("{{.Tag"), &fields).is_err());
    }
}
