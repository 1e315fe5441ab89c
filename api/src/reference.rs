//! From what a user types (an id, a name, or the beginning of an id) to the object meant.

use crate::error::ApiError;

/// The one of `all` that `reference` means: an exact id before a name, a name before the
/// beginning of an id.
///
/// `id` and `name` give an item's; `kind` goes into the errors.
///
/// # Errors
/// 404 when nothing matches, 400 naming the reference when several do.
pub(crate) fn find<T>(
    kind: &str,
    reference: &str,
    all: impl IntoIterator<Item = T>,
    id: impl Fn(&T) -> String,
    name: impl Fn(&T) -> String,
) -> Result<T, ApiError> {
    let mut named = Vec::new();
    let mut begun = Vec::new();
    for item in all {
        let id = id(&item);
        if id == reference {
            return Ok(item);
        }
        if name(&item) == reference {
            named.push(item);
        } else if !reference.is_empty() && id.starts_with(reference) {
            begun.push(item);
        }
    }
    let mut matches = if named.is_empty() { begun } else { named };
    match matches.len() {
        0 => Err(ApiError::not_found(kind, reference)),
        1 => Ok(matches.remove(0)),
        count => Err(ApiError::invalid(format!(
            "{kind} {reference} is ambiguous ({count} matches found)"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(&str, &str); 4] = [
        ("abc1", "web"),
        ("abc2", "db"),
        ("web1", "x"),
        ("q", "abc2"),
    ];

    fn look(reference: &str) -> Result<(&'static str, &'static str), ApiError> {
        find(
            "service",
            reference,
            ALL,
            |item| item.0.into(),
            |item| item.1.into(),
        )
    }

    #[test]
    fn id_then_name_then_prefix() {
        assert_eq!(look("abc2"), Ok(ALL[1]));
        assert_eq!(look("web"), Ok(ALL[0]));
        assert_eq!(look("abc1"), Ok(ALL[0]));
        assert_eq!(look("we"), Ok(ALL[2]));
    }

    #[test]
    fn an_ambiguous_prefix_is_named() {
        let err = look("abc").unwrap_err();
        assert_eq!(err.message, "service abc is ambiguous (2 matches found)");
        assert_eq!(err.status, 400);
    }

    #[test]
    fn nothing_and_the_empty_reference_are_not_found() {
        assert_eq!(look("zz").unwrap_err().message, "service zz not found");
        assert_eq!(look("").unwrap_err().status, 404);
    }
}
