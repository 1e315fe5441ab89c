//! Who this node is, as its disk keeps it.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
};

use agent::Credentials;
use anyhow::{Context, Result};
use model::rpc::MANAGER_PORT;
use serde::{Deserialize, Serialize};

use super::private;

/// A node's membership in its cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    pub credentials: Credentials,
    /// On managers only.
    pub manager: Option<ManagerAddrs>,
    /// Where a manager of this node would listen, if the user said so when it joined.
    #[serde(default)]
    pub listen: Option<SocketAddr>,
}

/// Where this node's manager is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerAddrs {
    pub listen: SocketAddr,
    /// As the other nodes know it.
    pub advertised: SocketAddrV4,
}

/// Where a manager that listens at `listen` is reached without leaving its node.
pub fn near(listen: SocketAddr) -> SocketAddrV4 {
    let addr = match listen.ip() {
        IpAddr::V4(addr) if !addr.is_unspecified() => addr,
        _ => Ipv4Addr::LOCALHOST,
    };
    SocketAddrV4::new(addr, listen.port())
}

impl Member {
    /// Where a manager of this node is to be, should it get one.
    pub fn manager_addrs(&self) -> ManagerAddrs {
        let everywhere = SocketAddr::from(([0, 0, 0, 0], MANAGER_PORT));
        let listen = self.listen.unwrap_or(everywhere);
        ManagerAddrs {
            listen,
            advertised: SocketAddrV4::new(self.credentials.addr, listen.port()),
        }
    }

    /// Is a worker from now on, of `managers`, but for the one that it was itself. Should it become one
    /// again, that is where it was.
    pub fn end_manager(&mut self, mut managers: Vec<SocketAddrV4>) {
        let Some(ended) = self.manager.take() else {
            return;
        };
        managers.retain(|addr| *addr != near(ended.listen) && *addr != ended.advertised);
        self.credentials.managers = managers;
        self.listen = Some(ended.listen);
    }

    fn path(state_dir: &Path) -> PathBuf {
        state_dir.join("member.json")
    }

    /// `None` when the node is in no cluster.
    ///
    /// # Errors
    /// A file that cannot be read or is not ours.
    pub fn load(state_dir: &Path) -> Result<Option<Self>> {
        let path = Self::path(state_dir);
        let Some(bytes) = private::read(&path)? else {
            return Ok(None);
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is damaged", path.display()))
    }

    /// # Errors
    /// Names the path.
    pub fn save(&self, state_dir: &Path) -> Result<()> {
        private::write(&Self::path(state_dir), &serde_json::to_vec_pretty(self)?)
    }

    /// # Errors
    /// Names the path. That there is no file is none.
    pub fn forget(state_dir: &Path) -> Result<()> {
        let path = Self::path(state_dir);
        match fs::remove_file(&path) {
            Err(err) if err.kind() != ErrorKind::NotFound => {
                Err(err).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn member() -> Member {
        let addr = SocketAddrV4::new([192, 0, 2, 1].into(), 2377);
        Member {
            credentials: Credentials {
                node: model::NodeId::generate(),
                cluster: model::ClusterId::generate(),
                addr: *addr.ip(),
                vtep: *addr.ip(),
                managers: vec![addr],
            },
            manager: Some(ManagerAddrs {
                listen: "0.0.0.0:2377".parse().unwrap(),
                advertised: addr,
            }),
            listen: None,
        }
    }

    #[test]
    fn member_reads_back_and_only_the_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Member::load(dir.path()).unwrap(), None);
        let member = member();
        member.save(dir.path()).unwrap();
        assert_eq!(Member::load(dir.path()).unwrap(), Some(member));
        let mode = fs::metadata(Member::path(dir.path()))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        Member::forget(dir.path()).unwrap();
        Member::forget(dir.path()).unwrap();
        assert_eq!(Member::load(dir.path()).unwrap(), None);
    }

    #[test]
    fn former_manager_knows_the_others_alone() {
        let mut member = member();
        let addrs = member.manager.unwrap();
        let other: SocketAddrV4 = "192.0.2.2:2377".parse().unwrap();
        let listen: SocketAddr = "0.0.0.0:99".parse().unwrap();
        member.manager = Some(ManagerAddrs { listen, ..addrs });
        let own = "127.0.0.1:99".parse().unwrap();
        member.end_manager(vec![addrs.advertised, other, own]);
        assert_eq!(member.manager, None);
        assert_eq!(member.credentials.managers, [other]);
        assert_eq!(member.manager_addrs().listen, listen);
    }

    #[test]
    fn damaged_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(Member::path(dir.path()), "{").unwrap();
        let err = Member::load(dir.path()).unwrap_err().to_string();
        assert!(err.contains("member.json"), "{err}");
    }
}
