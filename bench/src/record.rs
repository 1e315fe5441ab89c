//! `docs/bench.json`: for each part, the figures of the last run that measured it to its end, with
//! the machine and the build they are of.

use std::{
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use crate::{machine, part::Part, report::Report};

pub struct Record {
    path: PathBuf,
    /// What is said of each part of this run beside its figures.
    of_run: Map<String, Value>,
}

impl Record {
    /// That of the repository at `root`.
    ///
    /// # Errors
    /// When git does not tell what is measured.
    pub fn of_repository(root: &Path) -> Result<Self> {
        let of_run = json!({
            "build": build(root)?,
            "machine": machine::describe(),
        });
        Ok(Self {
            path: root.join("docs/bench.json"),
            of_run: of_run.as_object().cloned().unwrap_or_default(),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts a part's figures in place of its former ones, and leaves those of all other parts.
    ///
    /// # Errors
    /// When the file holds something else, which then stays as it is, or cannot be written.
    pub fn put(&self, part: Part, report: &Report) -> Result<()> {
        let path = self.path.display();
        let mut parts = self
            .read()
            .with_context(|| format!("{path} is no record of parts; move it away"))?;
        let mut entry = report.json();
        entry.extend(self.of_run.clone());
        parts.insert(part.to_string(), Value::Object(entry));
        let text = serde_json::to_string_pretty(&parts)? + "\n";
        let new = self.path.with_extension("json.new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &self.path))
            .with_context(|| format!("cannot write {path}"))
    }

    fn read(&self) -> Result<Map<String, Value>> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Map::new()),
            text => text?,
        };
        let parts: Map<String, Value> = serde_json::from_str(&text)?;
        let stranger = parts.keys().find(|name| Part::named(name).is_none());
        ensure!(
            stranger.is_none(),
            "there is no part `{}`",
            stranger.map_or("", String::as_str)
        );
        Ok(parts)
    }
}

/// The commit, with a mark when files differ from it. The record itself always may.
fn build(root: &Path) -> Result<String> {
    let commit = git(root, &["describe", "--always", "--abbrev=12"])?;
    let changed = ["status", "--porcelain", "--untracked-files=no", "--"];
    let changed = git(root, &[&changed[..], &[".", ":!docs/bench.json"]].concat())?;
    let mark = if changed.is_empty() { "" } else { "-dirty" };
    Ok(commit + mark)
}

fn git(root: &Path, args: &[&str]) -> Result<String> {
    let output = Command::new("git")
        .arg("-C")
        .arg(root)
        .args(args)
        .output()
        .context("cannot run git, which tells what is measured")?;
    ensure!(
        output.status.success(),
        "git {}: {}",
        args[0],
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Figure;

    fn record(dir: &Path) -> Record {
        Record {
            path: dir.join("bench.json"),
            of_run: Map::from_iter([("build".to_owned(), json!("abc"))]),
        }
    }

    fn report(ours: f64) -> Report {
        let mut report = Report::default();
        report.add(Figure::new("title", "figure", ours));
        report
    }

    #[test]
    fn part_is_replaced_and_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path());
        record.put(Part::Change, &report(1.0)).unwrap();
        record.put(Part::Mesh, &report(2.0)).unwrap();
        record.put(Part::Change, &report(3.0)).unwrap();
        let parts = record.read().unwrap();
        let ours = |part: &str| parts[part]["figures"][0]["ours"].as_f64();
        assert_eq!(
            (ours("change"), ours("mesh"), parts.len()),
            (Some(3.0), Some(2.0), 2)
        );
        assert_eq!(parts["mesh"]["build"], "abc");
    }

    #[test]
    fn what_is_no_record_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let record = record(dir.path());
        for other in ["[1]", "{\"figures\": []}", "{\"mesh\": "] {
            fs::write(record.path(), other).unwrap();
            let error = record.put(Part::Mesh, &report(1.0)).unwrap_err();
            assert!(error.to_string().contains("bench.json"), "{error}");
            assert_eq!(fs::read_to_string(record.path()).unwrap(), other);
        }
    }
}
