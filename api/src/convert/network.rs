//! Networks: what is asked for, and what there is.

use std::{collections::HashMap, fmt::Display, str::FromStr};

use bollard_stubs::models as docker;
use model::{object::Network, spec::NetworkSpec};
use serde::Serialize;

use super::{date, labels_from_docker, labels_to_docker, version};
use crate::error::ApiError;

/// The driver option under which Docker shows a network's VNI.
const VNI_OPTION: &str = "com.docker.network.driver.overlay.vxlanid_list";

/// A network as `/networks` gives it.
pub fn network(network: &Network) -> docker::NetworkInspect {
    let spec = &network.spec;
    docker::NetworkInspect {
        name: Some(spec.name.clone()),
        id: Some(network.id.to_string()),
        created: Some(date(network.meta.created_at)),
        scope: Some("swarm".to_owned()),
        driver: Some("overlay".to_owned()),
        enable_ipv4: Some(true),
        enable_ipv6: Some(spec.ipv6),
        ipam: Some(ipam(network)),
        internal: Some(spec.internal),
        attachable: Some(spec.attachable),
        ingress: Some(spec.ingress),
        config_from: Some(docker::ConfigReference {
            network: Some(String::new()),
        }),
        config_only: Some(false),
        options: Some(options(network)),
        labels: labels_to_docker(&spec.labels),
        peers: None,
        containers: Some(HashMap::new()),
        services: None,
        status: None,
    }
}

fn ipam(network: &Network) -> docker::Ipam {
    docker::Ipam {
        driver: Some("default".to_owned()),
        options: None,
        config: Some(vec![docker::IpamConfig {
            subnet: Some(network.subnet.to_string()),
            ip_range: network.spec.ip_range.map(|range| range.to_string()),
            gateway: Some(network.gateway.to_string()),
            auxiliary_addresses: None,
        }]),
    }
}

fn options(network: &Network) -> HashMap<String, String> {
    let mut options: HashMap<_, _> = network.spec.options.clone().into_iter().collect();
    options.insert(VNI_OPTION.to_owned(), network.vni.to_string());
    options
}

/// A network as it stands in a task's `NetworksAttachments`: Swarm's own form, which `bollard`
/// does not have.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct NetworkObject {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "Version")]
    version: Option<docker::ObjectVersion>,
    #[serde(rename = "CreatedAt")]
    created_at: String,
    #[serde(rename = "UpdatedAt")]
    updated_at: String,
    #[serde(rename = "Spec")]
    spec: NetworkObjectSpec,
    #[serde(rename = "DriverState")]
    driver_state: Driver,
    #[serde(rename = "IPAMOptions")]
    ipam_options: IpamOptions,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct NetworkObjectSpec {
    name: String,
    labels: Option<HashMap<String, String>>,
    driver_configuration: Driver,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    internal: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    attachable: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    ingress: bool,
    scope: &'static str,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Driver {
    name: &'static str,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    options: HashMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct IpamOptions {
    driver: Driver,
    configs: Option<Vec<docker::IpamConfig>>,
}

pub(super) fn network_object(network: &Network) -> NetworkObject {
    let spec = &network.spec;
    NetworkObject {
        id: network.id.to_string(),
        version: version(network.meta.version),
        created_at: date(network.meta.created_at),
        updated_at: date(network.meta.updated_at),
        spec: NetworkObjectSpec {
            name: spec.name.clone(),
            labels: labels_to_docker(&spec.labels),
            driver_configuration: Driver {
                name: "overlay",
                options: HashMap::new(),
            },
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: spec.ingress,
            scope: "swarm",
        },
        driver_state: Driver {
            name: "overlay",
            options: options(network),
        },
        ipam_options: IpamOptions {
            driver: Driver {
                name: "default",
                options: HashMap::new(),
            },
            configs: ipam(network).config,
        },
    }
}

/// Reads what a new network is to be.
///
/// # Errors
/// 400 for what is wrong in itself, 501 naming the field for what is not supported.
pub fn network_spec_from_docker(
    request: &docker::NetworkCreateRequest,
) -> Result<NetworkSpec, ApiError> {
    if request.name.is_empty() {
        return Err(ApiError::invalid("network name is required"));
    }
    match request.driver.as_deref() {
        None | Some("" | "overlay") => {}
        Some(driver) => {
            return Err(ApiError::unsupported(format!(
                "network driver `{driver}` (use `--driver overlay`)"
            )));
        }
    }
    match request.scope.as_deref() {
        None | Some("" | "swarm") => {}
        Some(scope) => return Err(ApiError::unsupported(format!("Scope `{scope}`"))),
    }
    refuse_unsupported(request)?;
    let config = ipam_config(request)?;
    let spec = NetworkSpec {
        name: request.name.clone(),
        labels: labels_from_docker(&request.labels),
        ipv6: false,
        internal: request.internal.unwrap_or(false),
        attachable: request.attachable.unwrap_or(false),
        ingress: request.ingress.unwrap_or(false),
        subnet: parsed("Subnet", config.subnet.as_deref())?,
        ip_range: parsed("IPRange", config.ip_range.as_deref())?,
        gateway: parsed("Gateway", config.gateway.as_deref())?,
        options: Default::default(),
    };
    if let Some(subnet) = spec.subnet
        && subnet.addr() != subnet.network()
    {
        return Err(ApiError::invalid(format!(
            "invalid subnet {subnet}: it should be {}",
            subnet.trunc()
        )));
    }
    Ok(spec)
}

/// Options of the driver change how packets travel (`encrypted` above all, which is written with
/// an empty value), so none may be ignored.
fn refuse_unsupported(request: &docker::NetworkCreateRequest) -> Result<(), ApiError> {
    let field = if request.enable_ipv4 == Some(false) {
        Some("EnableIPv4 false".to_owned())
    } else if request.enable_ipv6 == Some(true) {
        Some("EnableIPv6".to_owned())
    } else if request.config_only == Some(true) {
        Some("ConfigOnly".to_owned())
    } else if config_from(request).is_some_and(|network| !network.is_empty()) {
        Some("ConfigFrom".to_owned())
    } else {
        let options = request.options.as_ref();
        options
            .and_then(|options| options.keys().min())
            .map(|key| format!("Options.{key}"))
    };
    field.map_or(Ok(()), |field| Err(ApiError::unsupported(field)))
}

fn config_from(request: &docker::NetworkCreateRequest) -> Option<&str> {
    request.config_from.as_ref()?.network.as_deref()
}

fn ipam_config(request: &docker::NetworkCreateRequest) -> Result<docker::IpamConfig, ApiError> {
    let Some(ipam) = &request.ipam else {
        return Ok(docker::IpamConfig::default());
    };
    match ipam.driver.as_deref() {
        None | Some("" | "default") => {}
        Some(driver) => return Err(ApiError::unsupported(format!("IPAM.Driver `{driver}`"))),
    }
    if ipam
        .options
        .as_ref()
        .is_some_and(|options| !options.is_empty())
    {
        return Err(ApiError::unsupported("IPAM.Options"));
    }
    let configs = ipam.config.as_deref().unwrap_or_default();
    if configs.len() > 1 {
        return Err(ApiError::unsupported("IPAM.Config[1]: a second subnet"));
    }
    let config = configs.first().cloned().unwrap_or_default();
    if config
        .auxiliary_addresses
        .as_ref()
        .is_some_and(|aux| !aux.is_empty())
    {
        return Err(ApiError::unsupported("IPAM.Config[0].AuxiliaryAddresses"));
    }
    if config.subnet.as_deref().is_none_or(str::is_empty)
        && (config.ip_range.is_some() || config.gateway.is_some())
    {
        return Err(ApiError::invalid(
            "IPAM.Config[0]: IPRange and Gateway need a Subnet",
        ));
    }
    Ok(config)
}

fn parsed<T: FromStr<Err: Display>>(
    field: &str,
    text: Option<&str>,
) -> Result<Option<T>, ApiError> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    if text.contains(':') {
        return Err(ApiError::unsupported(format!(
            "IPAM {field} `{text}`: IPv6"
        )));
    }
    text.parse()
        .map(Some)
        .map_err(|err| ApiError::invalid(format!("invalid {field} `{text}`: {err}")))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(json: Value) -> Result<NetworkSpec, ApiError> {
        network_spec_from_docker(&serde_json::from_value(json).unwrap())
    }

    /// As `docker network create -d overlay --subnet … --attachable` sends it.
    #[test]
    fn request_of_the_docker_command_is_read() {
        let spec = read(json!({
            "Name": "my-net", "Driver": "overlay", "Scope": "", "Internal": false,
            "Attachable": true, "Ingress": false, "ConfigOnly": false, "ConfigFrom": null,
            "EnableIPv6": false, "Options": {}, "Labels": {"a": "b"},
            "IPAM": {"Driver": "default", "Options": {},
                "Config": [{"Subnet": "10.9.0.0/24", "Gateway": "10.9.0.1"}]},
        }))
        .unwrap();
        assert_eq!(spec.subnet, Some("10.9.0.0/24".parse().unwrap()));
        assert_eq!(spec.gateway, Some("10.9.0.1".parse().unwrap()));
        assert!(spec.attachable && !spec.internal && !spec.ingress);
        assert_eq!(spec.labels["a"], "b");
    }

    #[test]
    fn the_plain_request_leaves_all_to_the_allocator() {
        let spec = read(json!({
            "Name": "n", "Driver": "overlay", "Options": {}, "Labels": {},
            "IPAM": {"Driver": "default", "Options": {}, "Config": []},
        }))
        .unwrap();
        let want = NetworkSpec {
            name: "n".into(),
            ..NetworkSpec::default()
        };
        assert_eq!(spec, want);
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (field, value, named) in [
            ("Driver", json!("bridge"), "network driver `bridge`"),
            ("Scope", json!("local"), "Scope `local`"),
            ("EnableIPv6", json!(true), "EnableIPv6"),
            ("EnableIPv4", json!(false), "EnableIPv4"),
            ("ConfigOnly", json!(true), "ConfigOnly"),
            ("ConfigFrom", json!({"Network": "x"}), "ConfigFrom"),
            ("Options", json!({"encrypted": ""}), "Options.encrypted"),
            ("IPAM", json!({"Driver": "dhcp"}), "IPAM.Driver `dhcp`"),
            (
                "IPAM",
                json!({"Config": [{"Subnet": "fd00::/64"}]}),
                "fd00::/64",
            ),
            (
                "IPAM",
                json!({"Config": [{"Subnet": "10.1.0.0/24"}, {}]}),
                "IPAM.Config[1]",
            ),
        ] {
            let err = read(json!({"Name": "n", field: value})).unwrap_err();
            assert_eq!(err.status, 501, "{field}");
            assert!(err.message.contains(named), "{}: {named}", err.message);
        }
    }

    #[test]
    fn wrong_addresses_are_refused() {
        for config in [
            json!({"Subnet": "10.0.0.0"}),
            json!({"Subnet": "10.0.0.5/24"}),
            json!({"Gateway": "10.0.0.1"}),
            json!({"Subnet": "10.0.0.0/24", "Gateway": "x"}),
        ] {
            let err = read(json!({"Name": "n", "IPAM": {"Config": [config]}})).unwrap_err();
            assert_eq!(err.status, 400);
        }
    }
}
