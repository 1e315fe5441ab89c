//! What commands print: listings, objects, and templates over either.

mod inspect;
mod listing;
mod template;

#[cfg(test)]
pub use self::listing::render;
pub use self::{
    inspect::{Inspected, print_objects},
    listing::{Listing, Row, table},
    template::Template,
};

/// `--format`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// As `docker` lays it out.
    Table,
    /// One JSON object a line.
    Json,
    /// A Go template, as far as [`Template`] goes, filled in for each object.
    Template(Template),
}

impl std::str::FromStr for Format {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Ok(match text {
            "" | "table" => Self::Table,
            "json" | "{{json .}}" | "{{ json . }}" => Self::Json,
            _ => Self::Template(text.parse()?),
        })
    }
}

/// The first 12 characters of an id, as listings show it.
pub fn short_id(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// At most `width` characters, the last one an ellipsis when some are missing.
pub fn ellipsis(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width - 1).collect();
    kept + "…"
}

/// An image reference without its digest.
pub fn image_name(image: &str) -> &str {
    image.split('@').next().unwrap_or(image)
}

/// The API's lower-case words with a capital: `Running`.
pub fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars).collect(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shortened_by_characters() {
        assert_eq!(short_id("abcdefghijklmnop"), "abcdefghijkl");
        assert_eq!(short_id("abc"), "abc");
        assert_eq!(ellipsis("größer", 6), "größer");
        assert_eq!(ellipsis("größer!", 6), "größe…");
    }

    #[test]
    fn digest_is_not_shown() {
        assert_eq!(image_name("nginx:1.12@sha256:00"), "nginx:1.12");
        assert_eq!(image_name("host"), "host");
    }
}
