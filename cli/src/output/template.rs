//! The part of Go's templates that command lines need: fields, and fields as JSON.

use std::str::FromStr;

use anyhow::{Result, bail};
use serde_json::Value;

/// Text with `{{.Path.To.Field}}` and `{{json .Path}}` in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Field { path: Vec<String>, json: bool },
}

impl Template {
    /// # Errors
    /// A field that the object does not have.
    pub fn fill(&self, object: &Value) -> Result<String> {
        self.0.iter().map(|part| part.fill(object)).collect()
    }
}

impl Part {
    fn fill(&self, object: &Value) -> Result<String> {
        let (path, json) = match self {
            Self::Text(text) => return Ok(text.clone()),
            Self::Field { path, json } => (path, json),
        };
        let mut value = object;
        for field in path {
            value = match value.get(field) {
                Some(value) => value,
                None => bail!("template: there is no field `.{}`", path.join(".")),
            };
        }
        Ok(match value {
            Value::String(text) if !json => text.clone(),
            Value::Null if !json => "<nil>".to_owned(),
            value => value.to_string(),
        })
    }
}

impl FromStr for Template {
    type Err = anyhow::Error;

    /// # Errors
    /// Names the action that is not one of the two.
    fn from_str(text: &str) -> Result<Self> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((action, after)) = after.split_once("}}") else {
                bail!("template: an action in `{text}` is not closed with }}}}");
            };
            parts.push(Part::Text(unescape(before)));
            parts.push(field(action)?);
            rest = after;
        }
        parts.push(Part::Text(unescape(rest)));
        Ok(Self(parts))
    }
}

fn field(action: &str) -> Result<Part> {
    let words: Vec<&str> = action.split_whitespace().collect();
    let (json, path) = match words[..] {
        [path] => (false, path),
        ["json", path] => (true, path),
        _ => (false, ""),
    };
    match path.strip_prefix('.') {
        Some(path) => Ok(Part::Field {
            path: path
                .split('.')
                .filter(|field| !field.is_empty())
                .map(str::to_owned)
                .collect(),
            json,
        }),
        None => bail!(
            "template: `{{{{{action}}}}}` is not supported: want a field such as {{{{.ID}}}} or {{{{json .Spec}}}}"
        ),
    }
}

/// `\t` and `\n` typed in a shell.
fn unescape(text: &str) -> String {
    text.replace("\\t", "\t").replace("\\n", "\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fill(template: &str) -> Result<String> {
        let object = json!({"ID": "x", "Spec": {"Replicas": 3, "On": true, "Names": ["a"]}});
        template.parse::<Template>()?.fill(&object)
    }

    #[test]
    fn fields_are_filled_in() {
        assert_eq!(fill("{{.ID}}\\t{{ .Spec.Replicas }}!").unwrap(), "x\t3!");
        assert_eq!(fill("{{json .ID}} {{.Spec.On}}").unwrap(), "\"x\" true");
        assert_eq!(fill("{{json .Spec.Names}}").unwrap(), "[\"a\"]");
        assert_eq!(fill("plain").unwrap(), "plain");
    }

    #[test]
    fn what_is_not_supported_is_refused() {
        for template in [
            "{{.Nope}}",
            "{{.ID",
            "{{range .Spec}}",
            "{{.ID | upper}}",
            "{{}}",
        ] {
            assert!(fill(template).is_err(), "{template}");
        }
    }
}
