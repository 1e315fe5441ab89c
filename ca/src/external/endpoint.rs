//! The URL of an authority.

use std::{fmt, str::FromStr};

use hyper::Uri;
use rustls::pki_types::ServerName;

const HTTPS_PORT: u16 = 443;

/// `https://HOST[:PORT][/PATH]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    uri: Uri,
    /// As its certificate names it.
    server: ServerName<'static>,
}

/// No such URL.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no URL of an external CA: want https://HOST[:PORT]/PATH")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(text: &str) -> Result<Self, EndpointError> {
        let wrong = || EndpointError(text.to_owned());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().ok_or_else(wrong)?;
        let named = uri.host().map_or(0, str::len);
        // What follows the host is a port, and what precedes it would be a password.
        let is_right = named == authority.as_str().len() || uri.port_u16().is_some();
        let is_plain = uri.scheme_str() == Some("https") && !authority.as_str().contains('@');
        let host = host(&uri).filter(|_| is_plain && is_right);
        let host = host.ok_or_else(wrong)?;
        let server = ServerName::try_from(host.to_owned()).map_err(|_| wrong())?;
        Ok(Self { uri, server })
    }
}

/// An IPv6 address without its brackets.
fn host(uri: &Uri) -> Option<&str> {
    let host = uri.host()?;
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'));
    Some(bare.unwrap_or(host))
}

impl Endpoint {
    pub(super) fn server(&self) -> ServerName<'static> {
        self.server.clone()
    }

    pub(super) fn addr(&self) -> (&str, u16) {
        let host = host(&self.uri).expect("it was checked before");
        (host, self.uri.port_u16().unwrap_or(HTTPS_PORT))
    }

    /// For the `Host` field.
    pub(super) fn authority(&self) -> &str {
        self.uri
            .authority()
            .expect("it was checked before")
            .as_str()
    }

    pub(super) fn path(&self) -> &str {
        self.uri.path_and_query().map_or("/", |path| path.as_str())
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.uri.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_says_whom_to_ask_for_and_where() {
        for (text, addr, authority, path) in [
            (
                "https://ca.example/sign",
                ("ca.example", 443),
                "ca.example",
                "/sign",
            ),
            ("https://ca.example", ("ca.example", 443), "ca.example", "/"),
            (
                "https://192.0.2.1:8888/a?b=c",
                ("192.0.2.1", 8888),
                "192.0.2.1:8888",
                "/a?b=c",
            ),
            (
                "https://[2001:db8::1]:1/",
                ("2001:db8::1", 1),
                "[2001:db8::1]:1",
                "/",
            ),
        ] {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.addr(), addr);
            assert_eq!((endpoint.authority(), endpoint.path()), (authority, path));
        }
    }

    #[test]
    fn what_is_no_https_url_is_refused() {
        for text in [
            "",
            "ca.example",
            "http://ca.example/sign",
            "https:///sign",
            "https://ca.example:99999/sign",
            "https://user:secret@ca.example/",
            "https://ca example/",
            "https://-/",
        ] {
            let refused = text.parse::<Endpoint>().unwrap_err().to_string();
            assert!(refused.contains("want https://"), "{refused}");
        }
    }
}
