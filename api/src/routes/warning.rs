//! The `Warning` field of RFC 7234 section 5.5. `swarmnet` shows its text.

use axum::http::HeaderValue;

/// Section 5.5.1: the answer may be stale.
pub(super) const STALE: u16 = 110;
/// Section 5.5.6: any other warning.
pub(super) const MISCELLANEOUS: u16 = 199;

/// `None` for a text that no field can have, such as one of several lines.
pub(super) fn field(code: u16, text: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("{code} swarmnet \"{text}\"")).ok()
}
