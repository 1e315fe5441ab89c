//! Opening the file: who may, whether it is whole, and whether we can read it.

use std::{
    any::Any,
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{OnceLock, RwLock},
};

use redb::{
    Builder, Database, DatabaseError, Durability, StorageBackend, TableError, backends::FileBackend,
};

use vault::{DataKey, KeyFile, UnlockKey};

use super::{Disk, DiskError, FILE, LOG, META, snapshot::SNAPSHOT};
use crate::StoreError;

/// What is in the file and how it is encoded. Raise it when an older version could not read it.
const FORMAT: u32 = 2;
/// Under this name in `META`, as four bytes in little endian order, in every format to come.
const FORMAT_KEY: &str = "format";

/// redb's default is 1 GiB. The state is in memory; of the log only the end is read.
pub(super) const CACHE_BYTES: usize = 16 << 20;

impl Disk {
    /// Opens or makes the file in the directory `dir`, which is made if need be. The data key beside
    /// it is opened with `unlock`, if it is sealed.
    ///
    /// # Errors
    /// When another process has it, it is locked, damaged or of a newer format.
    pub(crate) fn open(dir: &Path, unlock: Option<&UnlockKey>) -> Result<Self, StoreError> {
        make_private_dir(dir)?;
        let (path, key) = (dir.join(FILE), KeyFile::new(dir));
        if path.exists() {
            let vault = key.read(unlock)?;
            let file = open_private_file(&path)?;
            return Self::open_on(path.clone(), vault, lock(&path, file)?);
        }
        // One that is there was made by a start that got no further.
        let vault = match key.exists() {
            true => key.read(unlock)?,
            false => key.make()?,
        };
        Self::make(dir, path, vault)
    }

    /// Makes the file under another name, and gives it its own once it is whole: a power failure
    /// before that leaves nothing that looks like a damaged store.
    fn make(dir: &Path, path: PathBuf, vault: DataKey) -> Result<Self, StoreError> {
        let unfinished = path.with_extension("new");
        let file = open_private_file(&unfinished)?;
        let contents = file.try_clone().map_err(io_error("open", &unfinished))?;
        let backend = lock(&unfinished, file)?;
        // Whoever else makes it holds the lock until it has its name.
        if path.exists() {
            return Err(StoreError::Taken { path });
        }
        let cleared = contents.set_len(0);
        cleared.map_err(io_error("clear", &unfinished))?;
        let disk = Self::open_on(path, vault, backend)?;
        fs::rename(&unfinished, &disk.path).map_err(io_error("rename", &unfinished))?;
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(io_error("sync the directory", dir))?;
        Ok(disk)
    }

    /// Opens what is in `backend`; `path` is for messages.
    pub(crate) fn open_on(
        path: PathBuf,
        vault: DataKey,
        backend: impl StorageBackend,
    ) -> Result<Self, StoreError> {
        let database = unpanicked(&path, || open_database(&path, backend))?;
        let disk = Self {
            path,
            vault,
            database: RwLock::new(Some(database)),
            failure: OnceLock::new(),
        };
        unpanicked(&disk.path, || disk.check_format())?;
        Ok(disk)
    }

    pub(crate) fn seal_key(&self, unlock: Option<&UnlockKey>) -> Result<bool, StoreError> {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        Ok(KeyFile::new(dir).keep(&self.vault, unlock)?)
    }

    pub(crate) fn data_key(&self) -> &DataKey {
        &self.vault
    }

    fn check_format(&self) -> Result<(), StoreError> {
        let found = self.format().map_err(|error| self.failure(&error))?;
        match found.as_deref().map(<[u8; 4]>::try_from) {
            None => self.initialize().map_err(|error| self.failure(&error)),
            Some(Ok(bytes)) => match u32::from_le_bytes(bytes) {
                FORMAT => Ok(()),
                found if found > FORMAT => Err(StoreError::NewerFormat {
                    path: self.path.clone(),
                    found,
                    known: FORMAT,
                }),
                found => Err(damaged(&self.path, format!("it has format {found}"))),
            },
            Some(Err(_)) => Err(damaged(&self.path, "its format is no number".to_owned())),
        }
    }

    fn format(&self) -> Result<Option<Vec<u8>>, DiskError> {
        self.read(|tx| match tx.open_table(META) {
            Err(TableError::TableDoesNotExist(_)) => Ok(None),
            table => Ok(table?.get(FORMAT_KEY)?.map(|found| found.value().to_vec())),
        })
    }

    fn initialize(&self) -> Result<(), DiskError> {
        self.write(Durability::Immediate, |tx| {
            tx.open_table(LOG)?;
            tx.open_table(SNAPSHOT)?;
            let format = FORMAT.to_le_bytes();
            tx.open_table(META)?.insert(FORMAT_KEY, format.as_slice())?;
            Ok(())
        })
    }

    /// For what is read later: the error with the file's name.
    pub(crate) fn failure(&self, error: &DiskError) -> StoreError {
        damaged(&self.path, error.to_string())
    }
}

fn make_private_dir(dir: &Path) -> Result<(), StoreError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(io_error("make the directory", dir))?;
    fs::set_permissions(dir, Permissions::from_mode(0o700))
        .map_err(io_error("set the permissions of", dir))
}

fn open_private_file(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io_error("open", path))?;
    file.set_permissions(Permissions::from_mode(0o600))
        .map_err(io_error("set the permissions of", path))?;
    Ok(file)
}

fn io_error(what: &'static str, path: &Path) -> impl Fn(io::Error) -> StoreError {
    move |source| StoreError::Io {
        what,
        path: path.to_owned(),
        source,
    }
}

/// Takes the lock that the file's user holds.
fn lock(path: &Path, file: File) -> Result<FileBackend, StoreError> {
    FileBackend::new(file).map_err(|error| open_error(path, error))
}

fn open_database(path: &Path, backend: impl StorageBackend) -> Result<Database, StoreError> {
    let opened = Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .and_then(|mut database| {
            if !database.check_integrity()? {
                tracing::warn!(store.path = %path.display(), "store file repaired");
            }
            Ok(database)
        });
    opened.map_err(|error| open_error(path, error))
}

fn open_error(path: &Path, error: DatabaseError) -> StoreError {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => StoreError::Taken { path },
        DatabaseError::Storage(redb::StorageError::Io(source))
            if !matches!(source.kind(), InvalidData | UnexpectedEof) =>
        {
            let what = "read";
            StoreError::Io { what, path, source }
        }
        error => damaged(&path, error.to_string()),
    }
}

/// redb panics on some kinds of damage.
fn unpanicked<T>(path: &Path, f: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(f))
        .unwrap_or_else(|panic| Err(damaged(path, panic_message(&*panic))))
}

fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("reading it panicked").to_owned()
}

fn damaged(path: &Path, reason: String) -> StoreError {
    StoreError::Damaged {
        path: path.to_owned(),
        reason,
    }
}
