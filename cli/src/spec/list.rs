//! Lists and maps of a spec, and their `--x-add` and `--x-rm`.

use std::{collections::HashMap, fs};

use anyhow::{Context, Result};

/// `KEY=VALUE`, where no `=` means an empty value.
fn pair(text: &str) -> (String, String) {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    (key.to_owned(), value.to_owned())
}

pub fn parse_map(texts: &[String]) -> HashMap<String, String> {
    texts.iter().map(|text| pair(text)).collect()
}

/// `key=value`, or `key` alone when there is no value, in order.
pub fn sorted(map: &HashMap<String, String>) -> Vec<String> {
    let mut texts: Vec<String> = map
        .iter()
        .map(|(key, value)| match value.is_empty() {
            true => key.clone(),
            false => format!("{key}={value}"),
        })
        .collect();
    texts.sort();
    texts
}

/// Removals come first, so that one command can replace a value.
pub fn edit_map(map: &mut Option<HashMap<String, String>>, remove: &[String], add: &[String]) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let map = map.get_or_insert_default();
    for key in remove {
        map.remove(key);
    }
    map.extend(parse_map(add));
}

/// Removes and adds whole entries; one that is there already is not added again.
pub fn edit_list(list: &mut Option<Vec<String>>, remove: &[String], add: &[String]) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let list = list.get_or_insert_default();
    list.retain(|entry| !remove.contains(entry));
    for entry in add {
        if !list.contains(entry) {
            list.push(entry.clone());
        }
    }
}

/// Removes and adds entries that are known by what stands before the first `=`.
pub fn edit_by_key(list: &mut Option<Vec<String>>, remove: &[String], add: &[String]) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let list = list.get_or_insert_default();
    for entry in remove.iter().chain(add) {
        let key = pair(entry).0;
        list.retain(|other| pair(other).0 != key);
    }
    list.extend(add.iter().cloned());
}

/// Environment entries of flags and files. A name without a value takes the one it has here, and
/// is left out when it has none.
///
/// # Errors
/// A file that cannot be read.
pub fn parse_env(flags: &[String], files: &[String]) -> Result<Vec<String>> {
    let mut entries = Vec::new();
    for path in files {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read `{path}`"))?;
        let lines = text.lines().map(str::trim_start);
        entries.extend(
            lines
                .filter(|line| !line.is_empty() && !line.starts_with('#'))
                .map(str::to_owned),
        );
    }
    entries.extend_from_slice(flags);
    let complete = |entry: String| {
        if entry.contains('=') {
            return Some(entry);
        }
        let value = std::env::var(&entry).ok()?;
        Some(format!("{entry}={value}"))
    };
    Ok(entries.into_iter().filter_map(complete).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn map_edits_replace_and_remove() {
        let mut map = Some(parse_map(&strings(&["a=1", "b=2=3", "c"])));
        edit_map(&mut map, &strings(&["a", "nope"]), &strings(&["c=4"]));
        assert_eq!(sorted(&map.unwrap()), ["b=2=3", "c=4"]);
        let mut none = None;
        edit_map(&mut none, &[], &[]);
        assert_eq!(none, None, "an edit that says nothing writes nothing");
    }

    #[test]
    fn list_edits_keep_order_and_add_once() {
        let mut list = Some(strings(&["x", "y"]));
        edit_list(&mut list, &strings(&["x"]), &strings(&["y", "z"]));
        assert_eq!(list.unwrap(), ["y", "z"]);
    }

    #[test]
    fn env_edits_go_by_name() {
        let mut env = Some(strings(&["A=1", "B=2", "AB=3"]));
        edit_by_key(&mut env, &strings(&["B"]), &strings(&["A=9"]));
        assert_eq!(env.unwrap(), ["AB=3", "A=9"]);
    }

    #[test]
    fn env_files_come_before_flags_and_bare_names_are_looked_up() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "# comment\n\n A=1\nSWARMNET_SURELY_NOT_SET\n").unwrap();
        let path = file.path().to_str().unwrap().to_owned();
        let env = parse_env(&strings(&["B=2", "PATH"]), &[path]).unwrap();
        let path = format!("PATH={}", std::env::var("PATH").unwrap());
        assert_eq!(env, ["A=1", "B=2", path.as_str()]);
        assert!(parse_env(&[], &strings(&["/no/such/file"])).is_err());
    }
}
