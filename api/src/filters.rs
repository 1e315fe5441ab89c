//! The `filters` query parameter: `{"key":{"value":true}}` as the `docker` command writes it, or
//! `{"key":["value"]}` as older SDKs do.

use std::collections::BTreeMap;

use model::spec::Labels;
use serde::Deserialize;

use crate::error::ApiError;

/// Keys and the values wanted; several values of a key are alternatives, except for labels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    Map(BTreeMap<String, bool>),
    List(Vec<String>),
}

impl Filters {
    /// Reads the parameter; absent or empty is no filter. `allowed` are the keys that the list
    /// knows.
    ///
    /// # Errors
    /// 400 when the text is not JSON of one of the two shapes, or a key is not in `allowed`.
    pub fn parse(text: Option<&str>, allowed: &[&str]) -> Result<Self, ApiError> {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            return Ok(Self::default());
        };
        let raw: Option<BTreeMap<String, Values>> = serde_json::from_str(text)
            .map_err(|err| ApiError::invalid(format!("invalid filter: {err}")))?;
        let filters: BTreeMap<_, _> = raw
            .unwrap_or_default()
            .into_iter()
            .map(|(key, values)| (key, values.into_list()))
            .collect();
        match filters.keys().find(|key| !allowed.contains(&key.as_str())) {
            Some(key) => Err(ApiError::invalid(format!("Invalid filter '{key}'"))),
            None => Ok(Self(filters)),
        }
    }

    /// The values of a key; empty when there is no such filter.
    pub fn values(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether no value is wanted for `key`, or `test` holds for one of them.
    pub fn any(&self, key: &str, test: impl FnMut(&str) -> bool) -> bool {
        let values = self.values(key);
        values.is_empty() || values.iter().map(String::as_str).any(test)
    }

    /// Whether `text` begins with a value of `key`.
    pub fn prefix(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| text.starts_with(value))
    }

    /// Whether `text` contains a value of `key`, as network filters match.
    pub fn contains(&self, key: &str, text: &str) -> bool {
        self.any(key, |value| text.contains(value))
    }

    /// Whether `labels` has every `name` and `name=value` asked for under `key`.
    pub fn labels(&self, key: &str, labels: &Labels) -> bool {
        self.values(key)
            .iter()
            .all(|want| match want.split_once('=') {
                Some((name, value)) => labels.get(name).is_some_and(|have| have == value),
                None => labels.contains_key(want),
            })
    }
}

impl Values {
    fn into_list(self) -> Vec<String> {
        match self {
            Self::List(list) => list,
            Self::Map(map) => map
                .into_iter()
                .filter_map(|(value, on)| on.then_some(value))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_shapes_read_alike() {
        let map = Filters::parse(Some(r#"{"name":{"web":true,"db":true}}"#), &["name"]).unwrap();
        let list = Filters::parse(Some(r#"{"name":["db","web"]}"#), &["name"]).unwrap();
        assert_eq!(map, list);
        assert!(map.prefix("name", "web2"));
        assert!(!map.prefix("name", "cache"));
    }

    #[test]
    fn nothing_is_no_filter() {
        for text in [None, Some(""), Some("{}"), Some("null")] {
            let filters = Filters::parse(text, &[]).unwrap();
            assert!(filters.prefix("name", "anything"));
        }
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let err = Filters::parse(Some(r#"{"bogus":["x"]}"#), &["name"]).unwrap_err();
        assert_eq!(err.message, "Invalid filter 'bogus'");
        assert_eq!(err.status, 400);
    }

    #[test]
    fn text_of_another_shape_is_refused() {
        for text in ["[]", "{\"a\":1}", "nonsense", "{\"a\":[1]}"] {
            assert_eq!(Filters::parse(Some(text), &["a"]).unwrap_err().status, 400);
        }
    }

    #[test]
    fn every_label_must_match() {
        let filters =
            Filters::parse(Some(r#"{"label":{"a=1":true,"b":true}}"#), &["label"]).unwrap();
        let labels = |pairs: &[(&str, &str)]| {
            pairs
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
                .collect()
        };
        assert!(filters.labels("label", &labels(&[("a", "1"), ("b", "x")])));
        assert!(!filters.labels("label", &labels(&[("a", "2"), ("b", "x")])));
        assert!(!filters.labels("label", &labels(&[("a", "1")])));
    }

    #[test]
    fn a_value_switched_off_is_not_wanted() {
        let filters = Filters::parse(Some(r#"{"name":{"web":false}}"#), &["name"]).unwrap();
        assert!(filters.prefix("name", "db"));
    }
}
