//! The node's key and certificate, and the roots that it trusts, as its disk keeps them: below
//! `certificates/` (mode 0700), `node.pem` and `root.pem` (mode 0600). The private key of a manager
//! is sealed with its data key: with it one could do all that managers may.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use ca::{NodeCertificate, NodeKey, Roots};
use pem::Pem;
use vault::{DataKey, KeyFileError};

use super::private;

const SEALED: &str = "SWARMNET SEALED PRIVATE KEY";
/// What the seal is bound to.
const PLACE: &[u8] = b"node's private key";

/// Where they are.
#[derive(Debug, Clone)]
pub struct Certificates {
    dir: PathBuf,
}

impl Certificates {
    pub fn new(state_dir: &Path) -> Self {
        Self {
            dir: state_dir.join("certificates"),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn node(&self) -> PathBuf {
        self.dir.join("node.pem")
    }

    fn root(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// Key and certificate are one file, so that they are replaced together. The roots go first:
    /// when they change, the certificate before fits the new ones, too.
    ///
    /// # Errors
    /// Names the path.
    pub fn save(&self, certificate: &NodeCertificate, vault: Option<&DataKey>) -> Result<()> {
        private::make_dir(&self.dir)?;
        private::write(&self.root(), certificate.roots().pem().as_bytes())?;
        let key = certificate.key().to_pem();
        let key = match vault {
            Some(vault) => pem::encode(&Pem::new(SEALED, vault.seal(PLACE, key.as_bytes()))),
            None => key,
        };
        let node = key + certificate.chain_pem();
        private::write(&self.node(), node.as_bytes())
    }

    /// `vault` is asked for when the key is sealed.
    ///
    /// # Errors
    /// Names the file that is missing or damaged; what `vault` says.
    pub fn load(
        &self,
        vault: impl FnOnce() -> Result<DataKey, KeyFileError>,
    ) -> Result<NodeCertificate> {
        let roots = self.read(&self.root())?;
        let roots = Roots::from_pem(&roots).with_context(|| damaged(&self.root()))?;
        let node = self.read(&self.node())?;
        let (key, chain) = split(&node).with_context(|| damaged(&self.node()))?;
        let key = match unsealed(key, vault)? {
            Some(key) => key,
            None => anyhow::bail!("{}", damaged(&self.node())),
        };
        let load = || NodeCertificate::new(NodeKey::from_pem(&key)?, chain, roots);
        load().with_context(|| damaged(&self.node()))
    }

    fn read(&self, path: &Path) -> Result<String> {
        let bytes = private::read(path)?;
        let bytes = bytes.with_context(|| {
            format!(
                "{} is missing: restore it from a backup, or forget this node's membership with \
                 `swarmnet leave --force` and join again",
                path.display()
            )
        })?;
        String::from_utf8(bytes).with_context(|| damaged(path))
    }
}

/// The key and what follows it.
fn split(node_pem: &str) -> Option<(&str, &str)> {
    const END: &str = "PRIVATE KEY-----";
    let begin = node_pem.find(END)? + END.len();
    let end = begin + node_pem[begin..].find(END)? + END.len();
    Some(node_pem.split_at(end))
}

/// The key in PEM; `None` when it is not what was sealed.
fn unsealed(
    key: &str,
    vault: impl FnOnce() -> Result<DataKey, KeyFileError>,
) -> Result<Option<String>, KeyFileError> {
    let Some(sealed) = pem::parse(key).ok().filter(|block| block.tag() == SEALED) else {
        return Ok(Some(key.to_owned()));
    };
    let plain = vault()?.open(PLACE, sealed.contents());
    Ok(plain.and_then(|plain| String::from_utf8(plain).ok()))
}

fn damaged(path: &Path) -> String {
    format!("{} is damaged", path.display())
}

#[cfg(test)]
pub(super) mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use jiff::{SignedDuration, Timestamp};
    use model::{ClusterId, NodeId, spec::NodeRole};

    use super::*;

    pub fn certificate() -> NodeCertificate {
        let now = Timestamp::now();
        let root = ca::new_root(now).unwrap();
        let key = NodeKey::generate().unwrap();
        let request = ca::Request::from_pem(&key.request().unwrap()).unwrap();
        let subject = ca::Subject {
            node: NodeId::generate(),
            cluster: ClusterId::generate(),
            role: NodeRole::Worker,
        };
        let day = SignedDuration::from_hours(24);
        let authority = ca::Authority::new(&root).unwrap();
        let chain = authority.issue(&request, subject, now, day).unwrap();
        NodeCertificate::new(key, &chain, Roots::from_pem(&root.certificate_pem).unwrap()).unwrap()
    }

    fn no_vault() -> Result<DataKey, KeyFileError> {
        panic!("nothing is sealed")
    }

    #[test]
    fn certificate_reads_back_and_only_the_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(dir.path());
        let err = certificates.load(no_vault).unwrap_err().to_string();
        assert!(err.contains("root.pem is missing"), "{err}");
        let saved = certificate();
        certificates.save(&saved, None).unwrap();
        let read = certificates.load(no_vault).unwrap();
        assert_eq!(read.identity(), saved.identity());
        assert_eq!(read.roots(), saved.roots());
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&certificates.dir), 0o700);
        assert_eq!(mode(&certificates.node()), 0o600);
        assert_eq!(mode(&certificates.root()), 0o600);
    }

    #[test]
    fn damaged_files_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(dir.path());
        certificates.save(&certificate(), None).unwrap();
        for path in [certificates.node(), certificates.root()] {
            let whole = fs::read_to_string(&path).unwrap();
            fs::write(&path, &whole[..whole.len() / 2]).unwrap();
            let err = certificates.load(no_vault).unwrap_err().to_string();
            assert!(err.contains(&path.display().to_string()), "{err}");
            fs::write(&path, whole).unwrap();
        }
        // One's key with another's certificate.
        let (ours, theirs) = (certificate(), certificate());
        certificates.save(&ours, None).unwrap();
        let mixed = theirs.key().to_pem() + ours.chain_pem();
        fs::write(certificates.node(), mixed).unwrap();
        let err = format!("{:#}", certificates.load(no_vault).unwrap_err());
        assert!(err.contains("it is for another key"), "{err}");
    }

    #[test]
    fn a_sealed_key_opens_with_the_data_key_only() {
        let dir = tempfile::tempdir().unwrap();
        let certificates = Certificates::new(dir.path());
        let (saved, vault) = (certificate(), DataKey::generate());
        certificates.save(&saved, Some(&vault)).unwrap();
        let text = fs::read_to_string(certificates.node()).unwrap();
        let key = saved.key().to_pem();
        assert!(!text.contains(key.lines().nth(1).unwrap()));
        let read = certificates.load(|| Ok(vault)).unwrap();
        assert_eq!(read.key().to_pem(), key);
        let err = certificates.load(|| Ok(DataKey::generate())).unwrap_err();
        assert!(err.to_string().contains("node.pem is damaged"), "{err}");
        let locked = || Err(KeyFileError::Locked(dir.path().to_owned()));
        let err = certificates.load(locked).unwrap_err();
        assert!(err.downcast_ref::<KeyFileError>().is_some(), "{err}");
    }
}
