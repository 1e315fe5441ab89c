//! `node inspect --pretty`, laid out as Docker does.

use std::{
    collections::BTreeMap,
    fmt::{Result, Write},
};

use bollard_stubs::models::{EngineDescriptionPlugins, Node, TlsInfo};

use super::shown;
use crate::{
    spec::sorted,
    units::{go_time, show_bytes},
};

pub fn node(node: &Node) -> String {
    let mut out = String::new();
    write(&mut out, node).expect("a string takes all writes");
    out
}

fn write(out: &mut String, node: &Node) -> Result {
    let spec = node.spec.clone().unwrap_or_default();
    let status = node.status.clone().unwrap_or_default();
    let description = node.description.clone().unwrap_or_default();
    let platform = description.platform.unwrap_or_default();
    let resources = description.resources.unwrap_or_default();
    writeln!(out, "ID:\t\t\t{}", node.id.as_deref().unwrap_or_default())?;
    if let Some(name) = spec.name.filter(|name| !name.is_empty()) {
        writeln!(out, "Name:\t\t\t{name}")?;
    }
    if let Some(labels) = spec.labels.filter(|labels| !labels.is_empty()) {
        writeln!(out, "Labels:")?;
        for label in sorted(&labels) {
            writeln!(out, " - {label}")?;
        }
    }
    writeln!(
        out,
        "Hostname:              \t{}",
        description.hostname.unwrap_or_default()
    )?;
    writeln!(
        out,
        "Joined at:             \t{}",
        go_time(node.created_at.as_deref()).to_lowercase()
    )?;
    writeln!(out, "Status:\n State:\t\t\t{}", shown(status.state))?;
    if let Some(message) = status.message.filter(|message| !message.is_empty()) {
        writeln!(out, " Message:              \t{}", shown(Some(message)))?;
    }
    writeln!(out, " Availability:         \t{}", shown(spec.availability))?;
    if let Some(addr) = status.addr.filter(|addr| !addr.is_empty()) {
        writeln!(out, " Address:\t\t{addr}")?;
    }
    if let Some(manager) = &node.manager_status {
        let leader = if manager.leader == Some(true) {
            "Yes"
        } else {
            "No"
        };
        let addr = manager.addr.as_deref().unwrap_or_default();
        writeln!(out, "Manager Status:\n Address:\t\t{addr}")?;
        writeln!(out, " Raft Status:\t\t{}", shown(manager.reachability))?;
        writeln!(out, " Leader:\t\t{leader}")?;
    }
    writeln!(
        out,
        "Platform:\n Operating System:\t{}",
        platform.os.unwrap_or_default()
    )?;
    writeln!(
        out,
        " Architecture:\t\t{}",
        platform.architecture.unwrap_or_default()
    )?;
    let cpus = resources.nano_cpus.unwrap_or_default() / 1_000_000_000;
    writeln!(out, "Resources:\n CPUs:\t\t\t{cpus}")?;
    writeln!(
        out,
        " Memory:\t\t{}",
        show_bytes(resources.memory_bytes.unwrap_or_default())
    )?;
    let engine = description.engine.unwrap_or_default();
    write_plugins(out, engine.plugins.as_deref().unwrap_or_default())?;
    let version = engine.engine_version.unwrap_or_default();
    writeln!(out, "Engine Version:\t\t{version}")?;
    match description.tls_info {
        Some(tls) if tls != TlsInfo::default() => write_tls(out, &tls),
        _ => Ok(()),
    }
}

fn write_plugins(out: &mut String, plugins: &[EngineDescriptionPlugins]) -> Result {
    let mut by_type: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for plugin in plugins {
        let names = by_type.entry(plugin.typ.as_deref().unwrap_or_default());
        names.or_default().extend(plugin.name.as_deref());
    }
    if !by_type.is_empty() {
        writeln!(out, "Plugins:")?;
    }
    by_type
        .into_iter()
        .try_for_each(|(kind, names)| writeln!(out, " {kind}:\t\t{}", names.join(", ")))
}

fn write_tls(out: &mut String, tls: &TlsInfo) -> Result {
    let text = |field: &Option<String>| field.clone().unwrap_or_default();
    writeln!(out, "TLS Info:\n TrustRoot:\n{}", text(&tls.trust_root))?;
    writeln!(out, " Issuer Subject:\t{}", text(&tls.cert_issuer_subject))?;
    writeln!(
        out,
        " Issuer Public Key:\t{}",
        text(&tls.cert_issuer_public_key)
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn fields_stand_where_docker_has_them() {
        let node = serde_json::from_value(json!({
            "ID": "x", "CreatedAt": "2026-11-21T10:00:00.5Z",
            "Spec": {"Role": "manager", "Availability": "active", "Labels": {"b": "", "a": "1"}},
            "Description": {"Hostname": "n1", "Platform": {"OS": "linux", "Architecture": "x86_64"},
                "Resources": {"NanoCPUs": 2_000_000_000_i64, "MemoryBytes": 2_096_000_000_i64},
                "Engine": {"EngineVersion": "0.1.0", "Plugins": [
                    {"Type": "Network", "Name": "overlay"}, {"Type": "Network", "Name": "bridge"}]}},
            "Status": {"State": "ready", "Addr": "10.0.0.1"},
            "ManagerStatus": {"Leader": true, "Reachability": "reachable", "Addr": "10.0.0.1:2377"},
        }))
        .unwrap();
        assert_eq!(
            super::node(&node),
            "ID:\t\t\tx\nLabels:\n - a=1\n - b\nHostname:              \tn1\n\
             Joined at:             \t2026-11-21 10:00:00.5 +0000 utc\n\
             Status:\n State:\t\t\tReady\n Availability:         \tActive\n Address:\t\t10.0.0.1\n\
             Manager Status:\n Address:\t\t10.0.0.1:2377\n Raft Status:\t\tReachable\n Leader:\t\tYes\n\
             Platform:\n Operating System:\tlinux\n Architecture:\t\tx86_64\n\
             Resources:\n CPUs:\t\t\t2\n Memory:\t\t1.952GiB\nPlugins:\n Network:\t\toverlay, bridge\nEngine Version:\t\t0.1.0\n"
        );
    }
}
