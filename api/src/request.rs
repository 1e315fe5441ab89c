//! Reading a request: its query and its JSON body.

use std::collections::HashMap;

use axum::{
    RequestPartsExt,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Query, Request},
    http::request::Parts,
};
use bollard_stubs::models as docker;
use model::Version;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use crate::{error::ApiError, filters::Filters, folding::Folding, lossless};

/// The query of a request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Params(HashMap<String, String>);

impl Params {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A switch as Docker reads it: set to anything but the words for "no".
    pub(crate) fn flag(&self, name: &str) -> bool {
        let value = self
            .get(name)
            .unwrap_or_default()
            .trim()
            .to_ascii_lowercase();
        !matches!(value.as_str(), "" | "0" | "no" | "false" | "none")
    }

    /// The `filters` parameter.
    pub(crate) fn filters(&self, allowed: &[&str]) -> Result<Filters, ApiError> {
        Filters::parse(self.get("filters"), allowed)
    }

    /// The version of the object that an update was made from. `kind` goes into the error, which
    /// is worded as Go words it.
    pub(crate) fn version(&self, kind: &str) -> Result<Version, ApiError> {
        let text = self.get("version").unwrap_or_default();
        text.parse().map(Version).map_err(|_| {
            ApiError::invalid(format!(
                "invalid {kind} version '{text}': strconv.ParseUint: parsing {text:?}: invalid syntax"
            ))
        })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Params {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        parts
            .extract::<Query<HashMap<String, String>>>()
            .await
            .map(|Query(params)| Self(params))
            .map_err(|err| ApiError::invalid(err.body_text()))
    }
}

/// A JSON body of which every field that is set is understood.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

/// What can be read by [`Body`].
pub(crate) trait Input: DeserializeOwned + Serialize {
    /// Fields of the request that mean nothing any more, or mean what we do anyway.
    const HARMLESS: &'static [&'static str] = &[];

    /// Words that are checked before the types are, for Docker's sentence: where they stand, which
    /// there are, and the error for another.
    const WORDS: &'static [Words] = &[];
}

/// A place in the body where one of some words must stand, if anything does.
pub(crate) struct Words {
    pointer: &'static str,
    known: &'static [&'static str],
    error: fn(&str) -> String,
}

impl<S: Send + Sync, T: Input> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|err| ApiError::invalid(err.body_text()))?;
        read(&bytes).map(Self)
    }
}

pub(crate) fn read<T: Input>(bytes: &[u8]) -> Result<T, ApiError> {
    if bytes.is_empty() {
        return Err(ApiError::invalid(
            "invalid JSON: got EOF while reading request body",
        ));
    }
    let invalid = |err: serde_json::Error| ApiError::invalid(format!("invalid JSON: {err}"));
    let mut value: Value = serde_json::from_slice(bytes).map_err(invalid)?;
    if let Value::Object(fields) = &mut value {
        fields.retain(|key, _| !T::HARMLESS.contains(&key.as_str()));
    }
    for words in T::WORDS {
        let word = value.pointer(words.pointer).and_then(Value::as_str);
        if let Some(word) = word.filter(|word| !word.is_empty() && !words.known.contains(word)) {
            return Err(ApiError::invalid((words.error)(word)));
        }
    }
    let read = T::deserialize(Folding(value.clone())).map_err(invalid)?;
    let kept = serde_json::to_value(&read).map_err(invalid)?;
    match lossless::first_lost(&value, &kept) {
        Some(path) => Err(ApiError::unsupported(path)),
        None => Ok(read),
    }
}

impl Input for docker::ServiceSpec {
    const WORDS: &'static [Words] = &[
        Words {
            pointer: "/UpdateConfig/FailureAction",
            known: &["pause", "continue", "rollback"],
            error: |word| format!("unrecognized update failure action {word}"),
        },
        Words {
            pointer: "/RollbackConfig/FailureAction",
            known: &["pause", "continue"],
            error: |word| format!("unrecognized rollback failure action {word}"),
        },
        Words {
            pointer: "/UpdateConfig/Order",
            known: &["stop-first", "start-first"],
            error: |word| format!("unrecognized update order {word}"),
        },
        Words {
            pointer: "/RollbackConfig/Order",
            known: &["stop-first", "start-first"],
            error: |word| format!("unrecognized rollback order {word}"),
        },
        Words {
            pointer: "/EndpointSpec/Mode",
            known: &["vip", "dnsrr"],
            error: |word| format!("invalid resolution mode: {word:?}"),
        },
        Words {
            pointer: "/TaskTemplate/RestartPolicy/Condition",
            known: &["none", "on-failure", "any"],
            error: |word| format!("invalid RestartCondition: {word:?}"),
        },
    ];
}

impl Input for docker::NodeSpec {
    const WORDS: &'static [Words] = &[
        Words {
            pointer: "/Role",
            known: &["worker", "manager"],
            error: |word| format!("invalid Role: {word:?}"),
        },
        Words {
            pointer: "/Availability",
            known: &["active", "pause", "drain"],
            error: |word| format!("invalid Availability: {word:?}"),
        },
    ];
}

impl Input for docker::NetworkCreateRequest {
    // Names are always checked.
    const HARMLESS: &'static [&'static str] = &["CheckDuplicate"];
}

impl Input for docker::SwarmSpec {}

/// `POST /swarm/init`; `bollard` leaves out two fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SwarmInit {
    #[serde(flatten)]
    pub(crate) request: docker::SwarmInitRequest,
    #[serde(rename = "Availability", default)]
    pub(crate) availability: Option<docker::NodeSpecAvailabilityEnum>,
    #[serde(rename = "AutoLockManagers", default)]
    pub(crate) auto_lock_managers: bool,
}

impl Input for SwarmInit {}

/// `POST /swarm/unlock`.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SwarmUnlock {
    #[serde(rename = "UnlockKey", default)]
    pub(crate) unlock_key: String,
}

impl Input for SwarmUnlock {}

/// `POST /swarm/join`; `bollard` leaves out the availability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct SwarmJoin {
    #[serde(flatten)]
    pub(crate) request: docker::SwarmJoinRequest,
    #[serde(rename = "Availability", default)]
    pub(crate) availability: Option<docker::NodeSpecAvailabilityEnum>,
}

impl Input for SwarmJoin {}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(pairs: &[(&str, &str)]) -> Params {
        let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        Params(pairs.iter().map(own).collect())
    }

    #[test]
    fn switches_read_as_docker_reads_them() {
        for (text, on) in [
            ("1", true),
            ("true", true),
            ("False", false),
            ("0", false),
            ("", false),
        ] {
            assert_eq!(params(&[("force", text)]).flag("force"), on, "{text}");
        }
        assert!(!params(&[]).flag("force"));
    }

    #[test]
    fn a_missing_version_is_refused_in_gos_words() {
        let err = params(&[]).version("service").unwrap_err();
        assert_eq!(
            err.message,
            "invalid service version '': strconv.ParseUint: parsing \"\": invalid syntax"
        );
        assert_eq!(params(&[("version", "7")]).version("node"), Ok(Version(7)));
    }

    #[test]
    fn bodies_that_are_not_json_of_the_type_are_refused() {
        for body in ["", "{", "[]", r#"{"Name":1}"#, r#"{"Labels":["x"]}"#] {
            let err = read::<docker::ServiceSpec>(body.as_bytes()).unwrap_err();
            assert_eq!(err.status, 400, "{body}");
            assert!(err.message.starts_with("invalid JSON"), "{}", err.message);
        }
    }

    #[test]
    fn a_field_that_nobody_knows_is_refused_unless_it_is_zero() {
        let body = br#"{"Name":"x","TaskTemplate":{"ContainerSpec":{"Gadget":{"Kind":["x"]}}}}"#;
        let err = read::<docker::ServiceSpec>(body).unwrap_err();
        assert_eq!(err.status, 501);
        assert_eq!(
            err.message,
            "TaskTemplate.ContainerSpec.Gadget.Kind is not supported by swarmnet"
        );
        assert!(read::<docker::ServiceSpec>(br#"{"Name":"x","Later":{"A":null}}"#).is_ok());
    }

    #[test]
    fn a_field_in_another_case_is_no_unknown_field() {
        let body = br#"{"name":"x","Mode":{"replicated":{"Replicas":2}}}"#;
        let spec = read::<docker::ServiceSpec>(body).unwrap();
        let replicated = spec.mode.unwrap().replicated.unwrap();
        assert_eq!(replicated.replicas, Some(2));
    }

    #[test]
    fn unknown_words_get_dockers_sentence() {
        for (body, sentence) in [
            (
                r#"{"UpdateConfig":{"FailureAction":"x"}}"#,
                "unrecognized update failure action x",
            ),
            (
                r#"{"EndpointSpec":{"Mode":"zz"}}"#,
                "invalid resolution mode: \"zz\"",
            ),
        ] {
            let err = read::<docker::ServiceSpec>(body.as_bytes()).unwrap_err();
            assert_eq!((err.status.as_u16(), err.message.as_str()), (400, sentence));
        }
        let err = read::<docker::NodeSpec>(br#"{"Role":"x"}"#).unwrap_err();
        assert_eq!(err.message, "invalid Role: \"x\"");
    }

    #[test]
    fn what_bollard_leaves_out_of_init_and_join_is_read() {
        let init: SwarmInit =
            read(br#"{"ListenAddr":"0.0.0.0:2377","Availability":"drain"}"#).unwrap();
        assert_eq!(
            init.availability,
            Some(docker::NodeSpecAvailabilityEnum::DRAIN)
        );
        let join: SwarmJoin = read(br#"{"JoinToken":"t","Availability":"pause"}"#).unwrap();
        assert_eq!(join.request.join_token.as_deref(), Some("t"));
        assert!(read::<SwarmJoin>(br#"{"JoinToken":"t","Colour":"red"}"#).is_err());
    }
}
