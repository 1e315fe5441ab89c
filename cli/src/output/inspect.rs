//! Whole objects, as the daemon sent them.

use anyhow::Result;
use clap::Args;
use serde_json::ser::PrettyFormatter;

use super::Format;

/// How `inspect` prints.
#[derive(Debug, Clone, Args)]
pub struct Inspected {
    /// json, or a Go template of fields such as '{{json .Endpoint.VirtualIPs}}'
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        default_value = "table",
        hide_default_value = true
    )]
    pub format: Format,
}

/// Renders objects from their JSON texts: an array, indented or (`json`) on one line, or the filled
/// template of each.
///
/// # Errors
/// A text that is not JSON, or a template that names an unknown field.
pub fn print_objects(format: &Format, texts: &[String]) -> Result<String> {
    let array = || format!("[{}]", texts.join(","));
    match format {
        Format::Table => Ok(pretty(&array())? + "\n"),
        Format::Json => Ok(compact(&array())? + "\n"),
        Format::Template(template) => texts
            .iter()
            .map(|text| Ok(template.fill(&serde_json::from_str(text)?)? + "\n"))
            .collect(),
    }
}

/// With 4 spaces, and the fields in the daemon's order.
fn pretty(text: &str) -> Result<String> {
    let mut out = Vec::new();
    let formatter = PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    transcode(text, &mut serializer)?;
    Ok(String::from_utf8(out)?)
}

fn compact(text: &str) -> Result<String> {
    let mut out = Vec::new();
    transcode(text, &mut serde_json::Serializer::new(&mut out))?;
    Ok(String::from_utf8(out)?)
}

fn transcode<F: serde_json::ser::Formatter>(
    text: &str,
    serializer: &mut serde_json::Serializer<&mut Vec<u8>, F>,
) -> Result<()> {
    let mut deserializer = serde_json::Deserializer::from_str(text);
    serde_transcode::transcode(&mut deserializer, serializer)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const OBJECTS: [&str; 2] = [r#"{"ID":"b","A":{"x":1}}"#, r#"{"ID":"a"}"#];

    fn print(format: &str) -> Result<String> {
        print_objects(&format.parse()?, &OBJECTS.map(str::to_owned))
    }

    #[test]
    fn default_is_an_indented_array_in_the_order_sent() {
        let want = "[\n    {\n        \"ID\": \"b\",\n        \"A\": {\n            \"x\": 1\n        }\n    },\n    {\n        \"ID\": \"a\"\n    }\n]\n";
        assert_eq!(print("").unwrap(), want);
        assert_eq!(print_objects(&Format::Table, &[]).unwrap(), "[]\n");
    }

    #[test]
    fn json_is_one_line_and_a_template_one_for_each() {
        assert_eq!(
            print("json").unwrap(),
            format!("[{},{}]\n", OBJECTS[0], OBJECTS[1])
        );
        assert_eq!(print("{{json .ID}}").unwrap(), "\"b\"\n\"a\"\n");
        assert!(print("{{.A}}").is_err(), "the second has no A");
    }
}
