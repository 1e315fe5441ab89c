//! What the fuzz target `certificate` looks at.

use pem::Pem;

use crate::{Identity, Request, Roots, certificates, external::answer};

/// Certificates and requests for them: as PEM, and as the DER in it; answers of an external CA.
pub fn check(data: &[u8]) {
    let _ = answer::read(data);
    if let Ok(pem) = str::from_utf8(data) {
        text(pem);
    }
    for tag in ["CERTIFICATE", "CERTIFICATE REQUEST"] {
        text(&pem::encode(&Pem::new(tag, data)));
    }
}

fn text(pem: &str) {
    if let Ok(roots) = Roots::from_pem(pem) {
        let again = Roots::from_pem(roots.pem()).expect("what was taken is taken again");
        assert_eq!(again.issuers(), roots.issuers());
    }
    for certificate in certificates(pem).unwrap_or_default() {
        let _ = Identity::from_der(&certificate);
    }
    let _ = Request::from_pem(pem);
}

#[cfg(test)]
#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn seeds_do_no_harm() {
    replay::seeds("certificate", check);
}
