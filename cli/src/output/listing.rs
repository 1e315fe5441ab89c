//! Listings: a table, JSON lines, a template, or ids alone.

use std::io::Write;

use clap::Args;
use serde::Serialize;
use tabwriter::TabWriter;

use super::Format;

/// Docker's columns are at least 10 wide, 3 of them space.
const MIN_WIDTH: usize = 7;
const PADDING: usize = 3;

/// One line of a listing. Serialized, it is what `--format json` prints.
pub trait Row: Serialize {
    const HEADERS: &'static [&'static str];

    /// A cell for each header.
    fn cells(&self) -> Vec<String>;

    /// What `--quiet` prints.
    fn id(&self) -> &str;
}

/// How a listing is printed.
#[derive(Debug, Clone, Args)]
pub struct Listing {
    /// table, json, or a Go template of fields such as '{{.Name}}'
    #[arg(long, value_name = "FORMAT", default_value = "table")]
    pub format: Format,
    /// Only display IDs
    #[arg(short, long)]
    pub quiet: bool,
}

impl Listing {
    /// # Errors
    /// A template that names an unknown field.
    pub fn print<R: Row>(&self, rows: &[R]) -> anyhow::Result<()> {
        let text = if self.quiet && self.format == Format::Table {
            rows.iter().map(|row| format!("{}\n", row.id())).collect()
        } else {
            render(&self.format, rows)?
        };
        std::io::stdout().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// The whole listing as text.
///
/// # Errors
/// A template that names an unknown field.
pub fn render<R: Row>(format: &Format, rows: &[R]) -> anyhow::Result<String> {
    match format {
        Format::Table => Ok(table(R::HEADERS, rows.iter().map(Row::cells))),
        Format::Json => lines(rows, |row| Ok(serde_json::to_string(row)?)),
        Format::Template(template) => lines(rows, |row| template.fill(&serde_json::to_value(row)?)),
    }
}

fn lines<R>(rows: &[R], line: impl Fn(&R) -> anyhow::Result<String>) -> anyhow::Result<String> {
    rows.iter().map(|row| Ok(line(row)? + "\n")).collect()
}

/// Headers and rows in columns.
pub fn table(headers: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut out = TabWriter::new(Vec::new())
        .minwidth(MIN_WIDTH)
        .padding(PADDING);
    let header = std::iter::once(headers.join("\t"));
    for line in header.chain(rows.map(|cells| cells.join("\t"))) {
        writeln!(out, "{line}").expect("memory takes all writes");
    }
    let bytes = out.into_inner().expect("memory takes all writes");
    String::from_utf8(bytes).expect("cells are text")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Pet {
        #[serde(rename = "Name")]
        name: &'static str,
        #[serde(rename = "Sound")]
        sound: &'static str,
    }

    impl Row for Pet {
        const HEADERS: &'static [&'static str] = &["NAME", "SOUND"];

        fn cells(&self) -> Vec<String> {
            vec![self.name.into(), self.sound.into()]
        }

        fn id(&self) -> &str {
            self.name
        }
    }

    const PETS: [Pet; 2] = [
        Pet {
            name: "cat",
            sound: "meow",
        },
        Pet {
            name: "rattlesnake",
            sound: "",
        },
    ];

    #[test]
    fn columns_are_as_wide_as_docker_makes_them() {
        assert_eq!(
            render(&Format::Table, &PETS).unwrap(),
            "NAME          SOUND\ncat           meow\nrattlesnake   \n"
        );
        assert_eq!(
            render(&Format::Table, &PETS[..1]).unwrap(),
            "NAME      SOUND\ncat       meow\n"
        );
        assert_eq!(
            render::<Pet>(&Format::Table, &[]).unwrap(),
            "NAME      SOUND\n"
        );
    }

    #[test]
    fn json_is_one_object_a_line() {
        assert_eq!(
            render(&Format::Json, &PETS).unwrap(),
            "{\"Name\":\"cat\",\"Sound\":\"meow\"}\n{\"Name\":\"rattlesnake\",\"Sound\":\"\"}\n"
        );
        assert_eq!(render::<Pet>(&Format::Json, &[]).unwrap(), "");
    }

    #[test]
    fn template_is_filled_in_for_each_row() {
        let format = "{{.Name}}: {{json .Sound}}".parse().unwrap();
        assert_eq!(
            render(&format, &PETS).unwrap(),
            "cat: \"meow\"\nrattlesnake: \"\"\n"
        );
    }
}
