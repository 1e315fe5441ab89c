//! Joining and leaving over gRPC. Who joins learns the root of the cluster's certificates from the
//! first manager that answers, whoever that is; believes it if it has the digest that the token
//! names; and hands the token only to a manager that this root vouches for. Its private key stays
//! with it.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use api::{ApiError, Remote};
use ca::{BACKDATE, CaError, Connector, NodeCertificate, NodeKey, NodeTls, Roots};
use jiff::Timestamp;
use model::{
    rpc::{
        AuthorityClient, JoinRequest, JoinResponse, LeaveRequest, MembershipClient, RootRequest,
        leader_named,
    },
    token::JoinToken,
};
use tokio::time::Instant;
use tonic::{Code, Response, Status, transport::Channel};

/// For a manager to take a node in.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);
/// For the managers to let a node go: the group goes on without its manager, and then all nodes hear
/// of it, for which they have five seconds.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(10);
/// For managers to have a leader.
const ELECTION_WAIT: Duration = Duration::from_secs(5);
/// Between attempts.
const RETRY: Duration = Duration::from_millis(200);

/// A node that was taken in.
#[derive(Debug)]
pub struct Joined {
    /// Who took it in.
    pub manager: SocketAddrV4,
    pub response: JoinResponse,
    pub certificate: NodeCertificate,
}

/// Asks each manager in turn to take this node in, with `key`, for which `request` asks to be
/// certified.
///
/// # Errors
/// A token that is none or for another cluster, a refusal, or no manager in reach.
pub async fn join(
    remotes: &[Remote],
    request: &JoinRequest,
    key: NodeKey,
) -> Result<Joined, ApiError> {
    // As Docker answers: a bad token is no fault of the request's form.
    let token: JoinToken = request
        .token
        .parse()
        .map_err(|err: model::token::ParseTokenError| ApiError::internal(err.to_string()))?;
    let mut failure = ApiError::invalid("no manager to join was named");
    for remote in remotes {
        match ask(remote, &token, request).await {
            Ok((manager, response)) => {
                let certificate = certificate(manager, &response, key)?;
                return Ok(Joined {
                    manager,
                    response,
                    certificate,
                });
            }
            Err(Failed::Unreachable(err)) => failure = err,
            Err(Failed::Refused(err)) => return Err(err),
        }
    }
    Err(failure)
}

/// What the manager made of the key.
fn certificate(
    manager: SocketAddrV4,
    response: &JoinResponse,
    key: NodeKey,
) -> Result<NodeCertificate, ApiError> {
    let certified = &response.certified;
    let make = || -> Result<_, CaError> {
        let roots = Roots::from_pem(&certified.roots_pem)?;
        NodeCertificate::new(key, &certified.chain_pem, roots)
    };
    let certificate = make().map_err(|err| {
        ApiError::internal(format!("manager {manager} gave a wrong certificate: {err}"))
    })?;
    check_clock(manager, &certificate, Timestamp::now())?;
    Ok(certificate)
}

/// A fresh certificate that is not valid here shows that one of the clocks is wrong.
fn check_clock(
    manager: SocketAddrV4,
    certificate: &NodeCertificate,
    now: Timestamp,
) -> Result<(), ApiError> {
    let identity = certificate.identity();
    if identity.issued_at - BACKDATE <= now && now <= identity.not_after {
        return Ok(());
    }
    Err(ApiError::internal(format!(
        "the clock of this node says {now}, that of manager {manager} {}: certificates do not \
         work so far apart; set the clock that is wrong, and join again",
        identity.issued_at
    )))
}

/// Tells the managers that this node is gone.
///
/// # Errors
/// In words, when none took it, after [`LEAVE_TIMEOUT`] at most.
pub async fn leave(managers: &[SocketAddrV4], tls: &NodeTls) -> Result<(), String> {
    let connector = Connector::member(tls);
    let mut failure = "no manager is known".to_owned();
    let telling = async {
        for addr in managers {
            let told = at_leader(&connector, *addr, |mut client: Client| async move {
                client.leave(LeaveRequest {}).await
            });
            match told.await {
                Ok(_) => return Ok(()),
                Err(Refusal::Unreachable(err)) => failure = err,
                // So would the others.
                Err(Refusal::Refused(status)) => return Err(because(&status)),
            }
        }
        Err(failure)
    };
    let told = tokio::time::timeout(LEAVE_TIMEOUT, telling).await;
    told.unwrap_or_else(|_| Err(format!("they do not answer within {LEAVE_TIMEOUT:?}")))
}

fn because(status: &Status) -> String {
    net::refused_certificate(status).unwrap_or_else(|| status.message().to_owned())
}

type Client = MembershipClient<Channel>;

/// Why the leader did not do it.
enum Refusal {
    /// Another manager may know it.
    Unreachable(String),
    Refused(Status),
}

/// Calls one manager, and whom it names as the leader, while an election lasts. Gives the address of
/// the one that answered.
async fn at_leader<T, Call>(
    connector: &Connector,
    first: SocketAddrV4,
    call: impl Fn(Client) -> Call,
) -> Result<(SocketAddrV4, T), Refusal>
where
    Call: Future<Output = Result<Response<T>, Status>>,
{
    let give_up = Instant::now() + ELECTION_WAIT;
    let asked = async {
        let mut addr = first;
        loop {
            let failure = match net::dial(connector, addr).await {
                Ok(channel) => match call(Client::new(channel)).await {
                    Ok(answer) => return Ok((addr, answer.into_inner())),
                    Err(status) => match leader_named(&status) {
                        Some(leader) if leader != addr => {
                            addr = leader;
                            continue;
                        }
                        _ if status.code() == Code::Unavailable => status.message().to_owned(),
                        _ => return Err(Refusal::Refused(status)),
                    },
                },
                Err(err) if addr == first => return Err(Refusal::Unreachable(err.to_string())),
                Err(err) => err.to_string(),
            };
            if Instant::now() >= give_up {
                return Err(Refusal::Unreachable(failure));
            }
            addr = first;
            tokio::time::sleep(RETRY).await;
        }
    };
    match tokio::time::timeout(CALL_TIMEOUT, asked).await {
        Ok(outcome) => outcome,
        Err(_) => Err(Refusal::Unreachable(format!(
            "manager {first} does not answer"
        ))),
    }
}

enum Failed {
    /// Another manager may do.
    Unreachable(ApiError),
    /// So would the others.
    Refused(ApiError),
}

async fn ask(
    remote: &Remote,
    token: &JoinToken,
    request: &JoinRequest,
) -> Result<(SocketAddrV4, JoinResponse), Failed> {
    let addr = look_up(remote).await.map_err(Failed::Unreachable)?;
    let root = fetch_root(addr, token).await?;
    let connector = Connector::joiner(&root).map_err(|err| broken(&err))?;
    let asked = at_leader(&connector, addr, |mut client: Client| {
        let request = request.clone();
        async move { client.join(request).await }
    });
    asked.await.map_err(|refusal| match refusal {
        Refusal::Unreachable(text) => Failed::Unreachable(ApiError::unavailable(text)),
        Refusal::Refused(status) => Failed::Refused(ApiError::internal(status.message())),
    })
}

/// The cluster's root, when it is the one that the token was made for.
async fn fetch_root(addr: SocketAddrV4, token: &JoinToken) -> Result<Roots, Failed> {
    let connector = Connector::unverified().map_err(|err| broken(&err))?;
    let channel = net::dial(&connector, addr).await.map_err(unreachable)?;
    let mut client = AuthorityClient::new(channel);
    let response = in_time(addr, client.root(RootRequest {})).await?;
    Roots::named_by(token, &response.get_ref().certificate_pem).map_err(|_| {
        Failed::Refused(ApiError::internal(format!(
            "manager {addr} shows another root certificate than the token was made for: it may be \
             an impostor; compare the token with `swarmnet join-token worker` on a manager that \
             you trust"
        )))
    })
}

async fn in_time<T>(
    addr: SocketAddrV4,
    call: impl Future<Output = Result<T, Status>>,
) -> Result<T, Failed> {
    let failed = |text: String| Failed::Unreachable(ApiError::unavailable(text));
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Err(_) => Err(failed(format!("manager {addr} does not answer"))),
        Ok(Err(status)) if status.code() == Code::Unavailable => Err(failed(format!(
            "manager {addr} cannot take this node in: {}",
            status.message()
        ))),
        Ok(answer) => {
            answer.map_err(|status| Failed::Refused(ApiError::internal(status.message())))
        }
    }
}

fn unreachable(err: net::DialError) -> Failed {
    Failed::Unreachable(ApiError::unavailable(err.to_string()))
}

fn broken(err: &CaError) -> Failed {
    Failed::Refused(ApiError::internal(err.to_string()))
}

async fn look_up(remote: &Remote) -> Result<SocketAddrV4, ApiError> {
    let Remote { host, port } = remote;
    let found = tokio::net::lookup_host((host.as_str(), *port)).await;
    let found = found.map_err(|err| {
        ApiError::unavailable(format!(
            "cannot find the address of manager `{host}`: {err}"
        ))
    })?;
    let mut found = found.filter_map(|addr| match addr {
        SocketAddr::V4(addr) => Some(addr),
        SocketAddr::V6(_) => None,
    });
    found
        .next()
        .ok_or_else(|| ApiError::unavailable(format!("manager `{host}` has no IPv4 address")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_that_is_not_valid_yet_or_any_more_blames_the_clocks() {
        let manager = "192.0.2.1:2377".parse().unwrap();
        let certificate = super::super::certificates::tests::certificate();
        let now = certificate.identity().issued_at;
        check_clock(manager, &certificate, now).unwrap();
        for hours in [-2, 25] {
            let wrong = now + jiff::SignedDuration::from_hours(hours);
            let err = check_clock(manager, &certificate, wrong).unwrap_err();
            assert!(err.message.contains("set the clock"), "{err}");
        }
    }

    fn request(token: &str) -> JoinRequest {
        JoinRequest {
            token: token.to_owned(),
            request_pem: String::new(),
            description: Default::default(),
            advertise_addr: None,
            data_path_addr: None,
            availability: Default::default(),
        }
    }

    fn key() -> NodeKey {
        NodeKey::generate().unwrap()
    }

    #[tokio::test]
    async fn bad_token_is_refused_before_anyone_is_asked() {
        let err = join(&[], &request("SWMTKN-1-x-y"), key())
            .await
            .unwrap_err();
        assert_eq!(err, ApiError::internal("invalid join token"));
    }

    #[tokio::test]
    async fn unreachable_manager_is_named() {
        // Bound and dropped: nothing listens there.
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let token = JoinToken::generate(&[0; 32]).to_string();
        let remote = Remote {
            host: "127.0.0.1".to_owned(),
            port,
        };
        let err = join(&[remote], &request(&token), key()).await.unwrap_err();
        assert!(err.message.contains(&format!("127.0.0.1:{port}")), "{err}");
        assert!(err.message.contains("refused"), "{err}");
    }
}
