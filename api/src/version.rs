//! Version negotiation: `/v1.47/services` is `/services`, asked for by a client of that version.

use std::{fmt, str::FromStr};

use axum::{
    extract::Request,
    http::{HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse, Response},
};

use crate::error::ApiError;

/// A version of the Docker Engine API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// Always 1 so far.
    pub major: u16,
    /// Counted up with each release.
    pub minor: u16,
}

/// The newest version whose swarm semantics are honoured; later ones added nothing to swarm mode
/// but fields that a client of 1.47 does not send.
pub const MAX: ApiVersion = ApiVersion {
    major: 1,
    minor: 47,
};

/// The oldest version that is answered.
pub const MIN: ApiVersion = ApiVersion {
    major: 1,
    minor: 24,
};

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for ApiVersion {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once('.').ok_or(())?;
        Ok(Self {
            major: major.parse().map_err(|_| ())?,
            minor: minor.parse().map_err(|_| ())?,
        })
    }
}

/// Splits `/v1.47/services` into the version and `/services`. `None` when the path names no
/// version.
pub(crate) fn split(path: &str) -> Option<(ApiVersion, &str)> {
    let rest = path.strip_prefix("/v")?;
    let end = rest.find('/').unwrap_or(rest.len());
    let version = rest[..end].parse().ok()?;
    Some((version, &rest[end..]))
}

fn check(version: ApiVersion) -> Result<(), ApiError> {
    if version > MAX {
        return Err(ApiError::invalid(format!(
            "client version {version} is too new. Maximum supported API version is {MAX}"
        )));
    }
    if version < MIN {
        return Err(ApiError::invalid(format!(
            "client version {version} is too old. Minimum supported API version is {MIN}, \
             please upgrade your client to a newer version"
        )));
    }
    Ok(())
}

/// Middleware around all routes: strips the version from the path and stamps every response,
/// errors too, with the headers that clients negotiate by.
pub(crate) async fn negotiate(mut request: Request, next: Next) -> Response {
    let mut response = match strip(&mut request) {
        Ok(()) => next.run(request).await,
        Err(err) => err.into_response(),
    };
    let headers = response.headers_mut();
    let version = HeaderValue::try_from(MAX.to_string()).expect("digits and a dot");
    headers.insert("Api-Version", version);
    headers.insert("Ostype", HeaderValue::from_static("linux"));
    headers.insert("Docker-Experimental", HeaderValue::from_static("false"));
    headers.insert(
        header::SERVER,
        HeaderValue::from_static(concat!("swarmnet/", env!("CARGO_PKG_VERSION"), " (linux)")),
    );
    response
}

fn strip(request: &mut Request) -> Result<(), ApiError> {
    let Some((version, rest)) = split(request.uri().path()) else {
        return Ok(());
    };
    check(version)?;
    let path = match request.uri().query() {
        Some(query) => format!("{rest}?{query}"),
        None => rest.to_owned(),
    };
    *request.uri_mut() = Uri::try_from(path).map_err(|_| page_not_found())?;
    Ok(())
}

/// The answer for a route that does not exist.
pub(crate) fn page_not_found() -> ApiError {
    ApiError::new(StatusCode::NOT_FOUND, "page not found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_split_from_the_path() {
        let v = |minor| ApiVersion { major: 1, minor };
        assert_eq!(split("/v1.41/services"), Some((v(41), "/services")));
        assert_eq!(split("/v1.24/networks/a/b"), Some((v(24), "/networks/a/b")));
        assert_eq!(split("/version"), None);
        assert_eq!(split("/volumes"), None);
        assert_eq!(split("/v1.x/services"), None);
    }

    #[test]
    fn bounds_are_inclusive_and_the_errors_name_them() {
        let v = |minor| ApiVersion { major: 1, minor };
        assert_eq!(check(v(24)), Ok(()));
        assert_eq!(check(v(47)), Ok(()));
        assert_eq!(
            check(v(99)).unwrap_err().message,
            "client version 1.99 is too new. Maximum supported API version is 1.47"
        );
        assert!(
            check(v(10)).unwrap_err().message.starts_with(
                "client version 1.10 is too old. Minimum supported API version is 1.24"
            )
        );
    }
}
