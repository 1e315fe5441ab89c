//! Finding the program and becoming it, with Docker's words when that fails.

use std::{
    convert::Infallible,
    ffi::{CString, NulError},
    fs,
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    unistd::{AccessFlags, access, execve},
};

use super::{
    environment,
    sys::{CODE_SETUP, Failure, c_path},
};

const CODE_NOT_EXECUTABLE: i32 = 126;
const CODE_NOT_FOUND: i32 = 127;

/// Becomes the program.
pub(super) fn exec(args: &[String], env: &[String]) -> Result<Infallible, Failure> {
    let name = args.first().map_or("", String::as_str);
    let program = find(name, env)?;
    let zero =
        |_: NulError| Failure::new(CODE_SETUP, format!("exec: {name:?}: argument with a NUL"));
    let c_strings = |list: &[String]| {
        let list = list.iter().map(|text| CString::new(text.as_str()));
        list.collect::<Result<Vec<_>, _>>().map_err(zero)
    };
    let path = c_path(&program).map_err(|err| Failure::new(CODE_SETUP, err.to_string()))?;
    execve(&path, &c_strings(args)?, &c_strings(env)?).map_err(|errno| {
        let code = if errno == Errno::ENOENT {
            CODE_NOT_FOUND
        } else {
            CODE_NOT_EXECUTABLE
        };
        Failure::new(
            code,
            format!("exec {}: {}", program.display(), sentence(errno)),
        )
    })
}

/// The path of a program: as given when it has a slash, else from `PATH`.
fn find(name: &str, env: &[String]) -> Result<PathBuf, Failure> {
    if name.contains('/') {
        return check(Path::new(name))
            .map(|()| PathBuf::from(name))
            .map_err(|errno| match errno {
                Errno::ENOENT | Errno::ENOTDIR => Failure::new(
                    CODE_NOT_FOUND,
                    format!("exec: {name:?}: stat {name}: {}", sentence(errno)),
                ),
                _ => Failure::new(
                    CODE_NOT_EXECUTABLE,
                    format!("exec: {name:?}: {}", sentence(errno)),
                ),
            });
    }
    let dirs = environment::get(env, "PATH").unwrap_or_default().split(':');
    let mut candidates =
        dirs.map(|dir| Path::new(if dir.is_empty() { "." } else { dir }).join(name));
    let found = candidates.find(|path| !name.is_empty() && check(path).is_ok());
    found.ok_or_else(|| {
        let message = format!("exec: {name:?}: executable file not found in $PATH");
        Failure::new(CODE_NOT_FOUND, message)
    })
}

/// Whether a path is a file that we may execute.
fn check(path: &Path) -> Result<(), Errno> {
    let meta =
        fs::metadata(path).map_err(|err| Errno::from_raw(err.raw_os_error().unwrap_or(0)))?;
    if meta.is_dir() {
        return Err(Errno::EISDIR);
    }
    access(path, AccessFlags::X_OK)
}

/// The errno as Go, and so Docker, writes it.
fn sentence(errno: Errno) -> String {
    errno.desc().to_lowercase()
}
