//! `--external-ca`: who signs in place of the managers.

use bollard_stubs::models::{
    SwarmSpecCaConfigExternalCas, SwarmSpecCaConfigExternalCasProtocolEnum as Protocol,
};

/// Reads Docker's `protocol=cfssl,url=URL[,cacert=FILE]`, and the file.
///
/// # Errors
/// In words.
pub fn external_ca(text: &str) -> Result<SwarmSpecCaConfigExternalCas, String> {
    let mut read = SwarmSpecCaConfigExternalCas::default();
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| format!("want KEY=VALUE instead of `{field}`"))?;
        let once = match key.trim().to_lowercase().as_str() {
            "protocol" if value == "cfssl" => read.protocol.replace(Protocol::CFSSL).is_none(),
            "protocol" => return Err(format!("protocol `{value}` is not spoken: want cfssl")),
            "url" => read.url.replace(value.to_owned()).is_none(),
            "cacert" => read.ca_cert.replace(root(value)?).is_none(),
            key => {
                return Err(format!(
                    "unknown key `{key}`: want protocol, url and cacert"
                ));
            }
        };
        if !once {
            return Err(format!("`{key}` is given twice"));
        }
    }
    match (read.protocol, &read.url) {
        (None, _) => Err("the protocol is missing: add protocol=cfssl".to_owned()),
        (_, None) => Err("the URL is missing: add url=https://HOST:PORT/PATH".to_owned()),
        _ => Ok(read),
    }
}

fn root(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|err| format!("cannot read `{path}`: {err}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flag_is_dockers_and_the_root_is_read_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("root.pem");
        std::fs::write(&file, "-----BEGIN").unwrap();
        let flag = format!(
            "Protocol=cfssl,url=https://ca.example/a,cacert={}",
            file.display()
        );
        let read = external_ca(&flag).unwrap();
        assert_eq!(read.url.as_deref(), Some("https://ca.example/a"));
        assert_eq!(read.ca_cert.as_deref(), Some("-----BEGIN"));
        assert_eq!(external_ca("protocol=cfssl,url=u").unwrap().ca_cert, None);
    }

    #[test]
    fn what_is_wrong_with_a_flag_is_named() {
        for (flag, why) in [
            ("https://ca.example", "want KEY=VALUE"),
            ("protocol=vault,url=u", "want cfssl"),
            ("protocol=cfssl", "add url="),
            ("url=u", "add protocol=cfssl"),
            ("protocol=cfssl,url=u,url=v", "given twice"),
            (
                "protocol=cfssl,url=u,cacert=/none/root.pem",
                "/none/root.pem",
            ),
            ("protocol=cfssl,url=u,label=x", "unknown key `label`"),
        ] {
            let refused = external_ca(flag).unwrap_err();
            assert!(refused.contains(why), "{flag}: {refused}");
        }
    }
}
