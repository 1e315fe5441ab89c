//! The real `cfssl serve` as an external CA, on a host of a lab.

use std::{
    fs::{self, File},
    net::SocketAddrV4,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};
use lab::{Host, free_port, wait_for};
use serde_json::{Value, json};
use signer::PATH;

/// A root made by `cfssl genkey -initca`, and its key, in files of a directory.
pub struct Cfssl {
    dir: PathBuf,
}

/// A `cfssl serve` that runs until it is dropped.
pub struct Serving {
    child: Child,
    addr: SocketAddrV4,
}

impl Cfssl {
    /// With a key of this algorithm and size, and docs/security.md's profile.
    ///
    /// # Errors
    /// What `cfssl` said, or that it is not installed.
    pub fn new(dir: &Path, algorithm: &str, size: u16) -> Result<Self> {
        let dir = dir.to_owned();
        fs::create_dir_all(&dir)?;
        let cfssl = Self { dir };
        let profile = json!({"signing": {"default": {
            "usages": ["signing", "digital signature", "server auth", "client auth"],
            "expiry": "720h",
            "backdate": "1h",
        }}});
        fs::write(cfssl.file("config.json"), profile.to_string())?;
        let root = json!({
            "CN": "corporate-ca",
            "names": [{"O": "Example"}],
            "key": {"algo": algorithm, "size": size},
        });
        cfssl.make("root", &["genkey", "-initca"], &root)?;
        Ok(cfssl)
    }

    /// The root's certificate.
    pub fn root(&self) -> PathBuf {
        self.file("root.pem")
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the certificate and the key that a command of cfssl makes.
    fn make(&self, name: &str, command: &[&str], request: &Value) -> Result<()> {
        let file = self.file(&format!("{name}.json"));
        fs::write(&file, request.to_string())?;
        let mut cfssl = Command::new("cfssl");
        let made = cfssl.current_dir(&self.dir).args(command).arg(&file);
        let made = made.output().context(
            "cfssl is missing: run `cargo xtask test`, or install Debian's golang-cfssl",
        )?;
        let said = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "cfssl {command:?}: {said}");
        let made: Value = serde_json::from_slice(&made.stdout)?;
        for (key, suffix) in [("cert", ".pem"), ("key", "-key.pem")] {
            let pem = made[key].as_str().context("cfssl says what it made")?;
            fs::write(self.file(&format!("{name}{suffix}")), pem)?;
        }
        Ok(())
    }

    /// Signs on this host, at this address of it, with these further flags of `cfssl serve`.
    ///
    /// # Errors
    /// What `cfssl` said.
    pub fn serve(&self, host: &Host, addr: std::net::Ipv4Addr, flags: &[&str]) -> Result<Serving> {
        let server =
            json!({"CN": "signer", "hosts": [addr], "key": {"algo": "ecdsa", "size": 256}});
        let by_root = ["gencert", "-ca", "root.pem", "-ca-key", "root-key.pem"];
        self.make(
            "server",
            &[&by_root[..], &["-config", "config.json"]].concat(),
            &server,
        )?;
        let addr = SocketAddrV4::new(addr, free_port());
        let log = self.file(&format!("serve-{}.log", addr.port()));
        let mut command = host.command("cfssl")?;
        command
            .current_dir(&self.dir)
            .args(["serve", "-ca", "root.pem", "-ca-key", "root-key.pem"])
            .args(["-config", "config.json"])
            .args(["-tls-cert", "server.pem", "-tls-key", "server-key.pem"])
            .args(["-address", &addr.ip().to_string()])
            .args(["-port", &addr.port().to_string()])
            .args(flags)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let child = command.spawn().context("cfssl is missing")?;
        let mut serving = Serving { child, addr };
        wait_for("cfssl to listen", || {
            let said = fs::read_to_string(&log)?;
            if let Some(status) = serving.child.try_wait()? {
                bail!("cfssl ended with {status}: {said}");
            }
            Ok(said.contains("Now listening").then_some(()))
        })?;
        Ok(serving)
    }
}

impl Serving {
    /// Where to send requests.
    pub fn url(&self) -> String {
        format!("https://{}{PATH}", self.addr)
    }

    /// The value of `--external-ca`, with this root.
    pub fn flag(&self, root: Option<&Path>) -> String {
        let root = root.map_or_else(String::new, |root| format!(",cacert={}", root.display()));
        format!("protocol=cfssl,url={}{root}", self.url())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
