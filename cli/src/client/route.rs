//! Paths and queries of the API.

use std::fmt::Display;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a path segment keeps: names of objects pass unchanged, `/` does not.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');

/// A path of percent-encoded segments with its query.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    text: String,
    has_query: bool,
}

impl Route {
    /// `path` is a constant of the API, without the first `/`.
    pub fn new(path: &str) -> Self {
        Self {
            text: format!("/{path}"),
            has_query: false,
        }
    }

    /// One more path segment, of whatever a user typed. Comes before the query.
    pub fn segment(mut self, segment: &str) -> Self {
        debug_assert!(!self.has_query, "the path ends where the query begins");
        self.text.push('/');
        self.text.extend(utf8_percent_encode(segment, SEGMENT));
        self
    }

    pub fn query(mut self, key: &str, value: impl Display) -> Self {
        self.text.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        let mut pair = form_urlencoded::Serializer::new(String::new());
        self.text
            .push_str(&pair.append_pair(key, &value.to_string()).finish());
        self
    }

    /// The query only when it is asked for.
    pub fn flag(self, key: &str, wanted: bool) -> Self {
        if wanted { self.query(key, "1") } else { self }
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typed_names_cannot_leave_their_segment() {
        let route = Route::new("services")
            .segment("a/../b?c d")
            .segment("update");
        assert_eq!(route.as_str(), "/services/a%2F..%2Fb%3Fc%20d/update");
    }

    #[test]
    fn queries_are_joined_and_encoded() {
        let route = Route::new("x")
            .query("version", 5)
            .flag("no", false)
            .query("f", "{\"a\"}");
        assert_eq!(route.as_str(), "/x?version=5&f=%7B%22a%22%7D");
    }
}
