//! The unix socket.

use std::{
    fs::{self, Permissions},
    io::{self, ErrorKind},
    os::unix::fs::{FileTypeExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use axum::Router;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The owner and its group may speak to the daemon: who may is root on this node.
const SOCKET_MODE: u32 = 0o660;

/// For requests in flight to end when the daemon stops. Event streams never end by themselves.
const DRAIN: Duration = Duration::from_secs(3);

/// Serves `router` on a unix socket at `path` until `stop` is cancelled and the requests in flight
/// have ended (3 s at most), then removes the socket file. Missing parent directories are made.
///
/// # Errors
/// When a daemon already listens there, something that is no socket is in the way, or the socket
/// cannot be made; the error names the path.
pub async fn serve(path: &Path, router: Router, stop: CancellationToken) -> io::Result<()> {
    let listener = bind(path).await.map_err(|err| name(path, &err))?;
    let _remove = RemoveOnDrop(path.to_owned());
    info!(api.socket = %path.display(), "listening");
    let drained = stop.clone();
    let serving = axum::serve(listener, router)
        .with_graceful_shutdown(async move { stop.cancelled().await })
        .into_future();
    tokio::select! {
        served = serving => served,
        () = late(drained) => {
            warn!("requests still in flight were cut off");
            Ok(())
        }
    }
}

async fn late(stop: CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(DRAIN).await;
}

async fn bind(path: &Path) -> io::Result<UnixListener> {
    clear_stale(path).await?;
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE))?;
    Ok(listener)
}

/// Removes a socket that nobody listens on any more, as a killed daemon leaves it.
async fn clear_stale(path: &Path) -> io::Result<()> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(err) if err.kind() == ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(
            ErrorKind::AlreadyExists,
            "a file that is no socket is in the way",
        ));
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(io::Error::new(
            ErrorKind::AddrInUse,
            "another daemon is listening there; stop it first, or choose another socket",
        )),
        Err(err) if err.kind() == ErrorKind::ConnectionRefused => fs::remove_file(path),
        Err(err) => Err(err),
    }
}

fn name(path: &Path, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("socket `{}`: {err}", path.display()))
}

struct RemoveOnDrop(PathBuf);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Err(err) = fs::remove_file(&self.0) {
            warn!(api.socket = %self.0.display(), %err, "cannot remove the socket");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_its_mode_is_narrow() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/docker.sock");
        drop(bind(&path).await.unwrap());
        assert!(path.exists());
        let _listener = bind(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, SOCKET_MODE);
    }

    #[tokio::test]
    async fn a_live_socket_and_a_foreign_file_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let live = dir.path().join("live.sock");
        let _listener = bind(&live).await.unwrap();
        let err = serve(&live, Router::new(), CancellationToken::new())
            .await
            .unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AddrInUse);
        assert!(err.to_string().contains("live.sock"));
        assert!(live.exists());

        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        let err = bind(&file).await.unwrap_err();
        assert_eq!(err.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[tokio::test]
    async fn the_socket_goes_when_the_server_stops() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let stop = CancellationToken::new();
        stop.cancel();
        serve(&path, Router::new(), stop).await.unwrap();
        assert!(!path.exists());
    }
}
