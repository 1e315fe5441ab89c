//! The file that a data key is kept in: plain, or sealed by an unlock key.

use std::{
    fs::{self, File},
    io::{self, ErrorKind, Write},
    path::{Path, PathBuf},
};

use pem::Pem;
use tempfile::NamedTempFile;

use crate::{DataKey, UnlockKey};

const PLAIN: &str = "SWARMNET DATA KEY";
const SEALED: &str = "SWARMNET SEALED DATA KEY";

/// Why a data key is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    #[error("cannot {what} `{}`: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("`{}` is damaged; restore it from a backup", .0.display())]
    Damaged(PathBuf),
    #[error("`{}` is missing, without which nothing beside it can be read; restore it from a \
        backup", .0.display())]
    Missing(PathBuf),
    /// It is sealed, and no unlock key was given.
    #[error("`{}` is locked", .0.display())]
    Locked(PathBuf),
    #[error("invalid key provided for unlocking: it does not open `{}`", .0.display())]
    WrongKey(PathBuf),
}

/// A data key's place on disk. Its mode is 0600.
#[derive(Debug, Clone)]
pub struct KeyFile {
    path: PathBuf,
}

impl KeyFile {
    /// In a manager's directory.
    pub fn new(dir: &Path) -> Self {
        Self {
            path: dir.join("data.key"),
        }
    }

    pub fn exists(&self) -> bool {
        self.path.exists()
    }

    /// Makes a data key and keeps it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn make(&self) -> Result<DataKey, KeyFileError> {
        let key = DataKey::generate();
        self.keep(&key, None)?;
        Ok(key)
    }

    /// The data key, opened with `unlock` when it is sealed.
    ///
    /// # Errors
    /// No file, a damaged one, a sealed one without the key that opens it.
    pub fn read(&self, unlock: Option<&UnlockKey>) -> Result<DataKey, KeyFileError> {
        let text = fs::read(&self.path).map_err(|source| match source.kind() {
            ErrorKind::NotFound => KeyFileError::Missing(self.path.clone()),
            _ => self.io("read")(source),
        })?;
        let damaged = || KeyFileError::Damaged(self.path.clone());
        let block = pem::parse(text).map_err(|_| damaged())?;
        match (block.tag(), unlock) {
            (PLAIN, _) => DataKey::from_bytes(block.contents()).ok_or_else(damaged),
            (SEALED, None) => Err(KeyFileError::Locked(self.path.clone())),
            (SEALED, Some(unlock)) => unlock
                .open(block.contents())
                .ok_or_else(|| KeyFileError::WrongKey(self.path.clone())),
            _ => Err(damaged()),
        }
    }

    /// Keeps a data key, sealed by `unlock` if there is one, in place of what was kept. `false` when
    /// it was kept so already: then the file, which all else depends on, is not touched.
    ///
    /// # Errors
    /// When it cannot be written; what was kept stays.
    pub fn keep(&self, key: &DataKey, unlock: Option<&UnlockKey>) -> Result<bool, KeyFileError> {
        if self.keeps(key, unlock) {
            return Ok(false);
        }
        let block = match unlock {
            Some(unlock) => Pem::new(SEALED, unlock.seal(key)),
            None => Pem::new(PLAIN, key.bytes()),
        };
        self.write(pem::encode(&block).as_bytes())
            .map_err(self.io("write"))?;
        Ok(true)
    }

    fn keeps(&self, key: &DataKey, unlock: Option<&UnlockKey>) -> bool {
        let Some(block) = fs::read(&self.path)
            .ok()
            .and_then(|text| pem::parse(text).ok())
        else {
            return false;
        };
        match (block.tag(), unlock) {
            (PLAIN, None) => block.contents() == key.bytes(),
            (SEALED, Some(unlock)) => unlock
                .open(block.contents())
                .is_some_and(|kept| kept.bytes() == key.bytes()),
            _ => false,
        }
    }

    fn write(&self, content: &[u8]) -> io::Result<()> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        // Made with mode 0600.
        let mut file = NamedTempFile::new_in(dir)?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        File::open(dir)?.sync_all()
    }

    fn io(&self, what: &'static str) -> impl Fn(io::Error) -> KeyFileError {
        let path = self.path.clone();
        move |source| KeyFileError::Io {
            what,
            path: path.clone(),
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

    #[test]
    fn key_is_kept_plain_then_sealed_then_plain_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        assert!(matches!(file.read(None), Err(KeyFileError::Missing(_))));
        let key = file.make().unwrap();
        let sealed = key.seal(b"here", b"something");
        let opens = |key: DataKey| key.open(b"here", &sealed).is_some();
        assert!(opens(file.read(None).unwrap()));

        let unlock = UnlockKey::generate();
        file.keep(&key, Some(&unlock)).unwrap();
        let text = fs::read_to_string(dir.path().join("data.key")).unwrap();
        let plain = pem::encode(&Pem::new(PLAIN, key.bytes()));
        assert!(!text.contains(plain.lines().nth(1).unwrap()));
        assert!(matches!(file.read(None), Err(KeyFileError::Locked(_))));
        let wrong = file.read(Some(&UnlockKey::generate())).unwrap_err();
        assert!(wrong.to_string().contains("invalid key"), "{wrong}");
        assert!(opens(file.read(Some(&unlock)).unwrap()));

        file.keep(&key, None).unwrap();
        assert!(opens(file.read(None).unwrap()));
        let mode = fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// A write that does not have to be is one that cannot go wrong.
    #[test]
    fn file_is_written_only_for_another_key_or_another_seal() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        let key = file.make().unwrap();
        let (one, other) = (UnlockKey::generate(), UnlockKey::generate());
        for unlock in [Some(&one), Some(&other), None] {
            assert!(file.keep(&key, unlock).unwrap(), "{unlock:?}");
            let inode = || fs::metadata(&file.path).unwrap().ino();
            let written = inode();
            assert!(!file.keep(&key, unlock).unwrap(), "{unlock:?}");
            assert_eq!(inode(), written);
        }
        assert!(file.keep(&DataKey::generate(), None).unwrap());
        fs::write(&file.path, "damaged").unwrap();
        assert!(file.keep(&key, None).unwrap());
        assert_eq!(file.read(None).unwrap().bytes(), key.bytes());
    }

    #[test]
    fn damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = KeyFile::new(dir.path());
        for text in [
            "",
            "text",
            &pem::encode(&Pem::new(PLAIN, b"short".to_vec())),
        ] {
            fs::write(&file.path, text).unwrap();
            let err = file.read(None).unwrap_err();
            assert!(matches!(err, KeyFileError::Damaged(_)), "{err}");
        }
    }
}
