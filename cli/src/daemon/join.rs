//! Joining and leaving over gRPC. The root certificate is checked against the token.

use std::{
    net::{SocketAddr, SocketAddrV4},
    time::Duration,
};

use api::{ApiError, Remote};
use hyper::StatusCode;
use model::{
    rpc::{JoinRequest, JoinResponse, LeaveRequest, MembershipClient},
    token::JoinToken,
};
use sha2::{Digest, Sha256};
use tonic::{Code, Status};
use tracing::warn;

const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// Asks each manager in turn to take this node in; gives the one that did.
///
/// # Errors
/// A token that is none or for another cluster, a refusal, or no manager in reach.
pub async fn join(
    remotes: &[Remote],
    request: &JoinRequest,
) -> Result<(SocketAddrV4, JoinResponse), ApiError> {
    // As Docker answers: a bad token is no fault of the request's form.
    let token: JoinToken = request
        .token
        .parse()
        .map_err(|err: model::token::ParseTokenError| ApiError::internal(err.to_string()))?;
    let mut failure = ApiError::invalid("no manager to join was named");
    for remote in remotes {
        match ask(remote, request).await {
            Ok((addr, response)) => {
                check_root(&token, addr, &response).await?;
                return Ok((addr, response));
            }
            Err(Failed::Unreachable(err)) => failure = err,
            Err(Failed::Refused(err)) => return Err(err),
        }
    }
    Err(failure)
}

/// Tells the managers that this node is gone.
///
/// # Errors
/// In words, when none could be told.
pub async fn leave(managers: &[SocketAddrV4], request: &LeaveRequest) -> Result<(), String> {
    let mut failure = "no manager is known".to_owned();
    for addr in managers {
        let told = async {
            let channel = net::dial(*addr).await.map_err(|err| err.to_string())?;
            MembershipClient::new(channel)
                .leave(request.clone())
                .await
                .map_err(|status| status.message().to_owned())
        };
        match tokio::time::timeout(CALL_TIMEOUT, told).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(err)) => failure = err,
            Err(_) => failure = format!("manager {addr} does not answer"),
        }
    }
    Err(failure)
}

enum Failed {
    /// Another manager may do.
    Unreachable(ApiError),
    /// So would the others.
    Refused(ApiError),
}

async fn ask(
    remote: &Remote,
    request: &JoinRequest,
) -> Result<(SocketAddrV4, JoinResponse), Failed> {
    let addr = look_up(remote).await.map_err(Failed::Unreachable)?;
    let failed = |text: String| Failed::Unreachable(ApiError::unavailable(text));
    let channel = net::dial(addr)
        .await
        .map_err(|err| failed(err.to_string()))?;
    let mut client = MembershipClient::new(channel);
    match tokio::time::timeout(CALL_TIMEOUT, client.join(request.clone())).await {
        Err(_) => Err(failed(format!("manager {addr} does not answer"))),
        Ok(Err(status)) if status.code() == Code::Unavailable => Err(failed(format!(
            "manager {addr} cannot take this node in: {}",
            status.message()
        ))),
        Ok(Err(status)) => Err(Failed::Refused(refusal(&status))),
        Ok(Ok(response)) => Ok((addr, response.into_inner())),
    }
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

fn refusal(status: &Status) -> ApiError {
    let message = status.message();
    match status.code() {
        Code::Unimplemented => ApiError::new(StatusCode::NOT_IMPLEMENTED, message),
        _ => ApiError::internal(message),
    }
}

/// Leaves again what turns out to be another cluster than the token's.
async fn check_root(
    token: &JoinToken,
    addr: SocketAddrV4,
    response: &JoinResponse,
) -> Result<(), ApiError> {
    if is_root_of(token, &response.root_certificate_pem) {
        return Ok(());
    }
    let request = LeaveRequest {
        node: response.node,
        secret: response.secret.clone(),
    };
    if let Err(err) = leave(&[addr], &request).await {
        warn!(manager.addr = %addr, "cannot leave a cluster with another root: {err}");
    }
    Err(ApiError::internal(format!(
        "manager {addr} shows another root certificate than the token was made for: it may be an \
         impostor; compare the token with `swarmnet join-token worker` on a manager that you trust"
    )))
}

fn is_root_of(token: &JoinToken, pem: &str) -> bool {
    pem::parse(pem).is_ok_and(|root| token.is_for_root(&Sha256::digest(root.contents()).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_is_checked_by_the_digest_of_its_der() {
        let root = pem::encode(&pem::Pem::new("CERTIFICATE", b"der bytes".to_vec()));
        let token = JoinToken::generate(&Sha256::digest(b"der bytes").into());
        assert!(is_root_of(&token, &root));
        let other = JoinToken::generate(&Sha256::digest(b"other bytes").into());
        assert!(!is_root_of(&other, &root));
        assert!(!is_root_of(&token, "no certificate"));
    }

    fn request(token: &str) -> JoinRequest {
        JoinRequest {
            token: token.to_owned(),
            description: Default::default(),
            advertise_addr: None,
            data_path_addr: None,
            availability: Default::default(),
        }
    }

    #[tokio::test]
    async fn bad_token_is_refused_before_anyone_is_asked() {
        let err = join(&[], &request("SWMTKN-1-x-y")).await.unwrap_err();
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
        let err = join(&[remote], &request(&token)).await.unwrap_err();
        assert!(err.message.contains(&format!("127.0.0.1:{port}")), "{err}");
        assert!(err.message.contains("refused"), "{err}");
    }
}
