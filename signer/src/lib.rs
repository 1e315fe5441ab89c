//! A certificate authority for tests: signs by CFSSL's API over HTTPS, as `cfssl serve` does with
//! mutual TLS, and misbehaves on demand ([`Conduct`]). Until it has signed once it hears who has no
//! certificate, as the first manager has none; from then on managers only.

mod issue;
mod serve;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use tokio::sync::oneshot;

use issue::Authority;

/// Where it signs.
pub const PATH: &str = "/api/v1/cfssl/sign";

/// How the signer treats requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conduct {
    /// Signs what is asked for.
    #[default]
    Sign,
    /// Answers that it does not want to.
    Refuse,
    /// Certifies a key of its own.
    OtherKey,
    /// Names another node.
    OtherNode,
    /// Makes managers of workers and workers of managers.
    OtherRole,
    /// Leaves out the names that nodes are asked for by.
    NoHosts,
    /// Signs by another root.
    OtherRoot,
    /// Valid from an hour in the future.
    Early,
    /// Answers with more than anybody should read.
    Huge,
    /// Answers with what is no JSON.
    Nonsense,
    /// Never answers.
    Silent,
}

/// What was signed, and for whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    pub node: String,
    /// Its organizational unit.
    pub role: String,
    /// Common name of the certificate that the caller showed.
    pub caller: Option<String>,
}

/// Signs until it is dropped.
pub struct Signer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
}

struct Shared {
    authority: Authority,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    conduct: Conduct,
    signed: Vec<Signed>,
}

impl Shared {
    fn book(&self) -> MutexGuard<'_, Book> {
        // What is in it is whole at every moment.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Signer {
    /// With a root of its own, on a socket of whatever network namespace.
    ///
    /// # Errors
    /// A socket that is none any more.
    pub fn start(listener: TcpListener) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            authority: Authority::new(),
            book: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let server = Arc::clone(&shared);
        let serving = std::thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve::run(listener, addr, server) => {}
                    _ = stopped => {}
                }
            });
        });
        Ok(Self {
            addr,
            shared,
            stop: Some(stop),
            serving: Some(serving),
        })
    }

    /// Where to send requests.
    pub fn url(&self) -> String {
        format!("https://{}{PATH}", self.addr)
    }

    /// The root that it signs by, which also vouches for its own server.
    pub fn root_pem(&self) -> &str {
        self.shared.authority.root_pem()
    }

    /// From now on.
    pub fn conduct(&self, conduct: Conduct) {
        self.shared.book().conduct = conduct;
    }

    /// All that it signed, in order.
    pub fn signed(&self) -> Vec<Signed> {
        self.shared.book().signed.clone()
    }
}

impl Drop for Signer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(serving) = self.serving.take() {
            let _ = serving.join();
        }
    }
}
