//! Published ports as people write them.

use std::{
    collections::{BTreeMap, HashMap},
    net::Ipv4Addr,
    ops::RangeInclusive,
};

use anyhow::{Context, Result, bail};
use bollard_stubs::models::{
    EndpointPortConfig, EndpointPortConfigProtocolEnum as Protocol,
    EndpointPortConfigPublishModeEnum as PublishMode,
};
use model::traffic::PUBLISH;

/// More ports than this from one range is a slip of the keyboard.
const RANGE_MAX: usize = 1024;

/// `80`, `8080:80`, `192.0.2.1:8080:80`, `53:53/udp`, `8080-8082:80-82`, or
/// `published=8080,target=80,protocol=tcp,mode=ingress,ip=192.0.2.1`. Ranges come back port by port.
///
/// # Errors
/// Says which part is wrong.
pub fn parse(text: &str) -> Result<Vec<EndpointPortConfig>> {
    parse_with_address(text).map(|(ports, _)| ports)
}

/// The labels that keep the addresses in `texts`, which the Docker API has no field for.
///
/// # Errors
/// A port that is named with an address and without one.
pub fn address_labels(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let mut labels: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in texts {
        let (ports, addr) = parse_with_address(text)?;
        for port in ports {
            let Some(number) = published(&port) else {
                continue;
            };
            let addresses = labels
                .entry(format!("{PUBLISH}{number}/{}", protocol(&port)))
                .or_default();
            addresses.push(addr.map(|addr| addr.to_string()).unwrap_or_default());
        }
    }
    let mut found = BTreeMap::new();
    for (label, addresses) in labels {
        match addresses.iter().filter(|addr| addr.is_empty()).count() {
            0 => drop(found.insert(label, addresses.join(","))),
            all if all == addresses.len() => {}
            _ => bail!(
                "port {} is published on all addresses and on {}: leave out one of them",
                &label[PUBLISH.len()..],
                addresses.join("").trim(),
            ),
        }
    }
    Ok(found)
}

/// Forgets the addresses of ports that are not published (any more), and notes those of `added`.
///
/// # Errors
/// As [`address_labels`].
pub fn edit_labels(
    labels: &mut Option<HashMap<String, String>>,
    ports: &[EndpointPortConfig],
    added: &[String],
) -> Result<()> {
    let is_published = |label: &str| {
        ports.iter().any(|port| {
            let number = published(port).unwrap_or_default();
            label == format!("{PUBLISH}{number}/{}", protocol(port))
        })
    };
    if let Some(labels) = labels {
        labels.retain(|label, _| !label.starts_with(PUBLISH) || is_published(label));
    }
    let new = address_labels(added)?;
    if !new.is_empty() {
        labels.get_or_insert_default().extend(new);
    }
    Ok(())
}

fn parse_with_address(text: &str) -> Result<(Vec<EndpointPortConfig>, Option<Ipv4Addr>)> {
    let ports = if text.contains('=') {
        parse_long(text).map(|(port, addr)| (vec![port], addr))
    } else {
        parse_short(text)
    };
    let ports = ports.and_then(|(ports, addr)| {
        if addr.is_some() && ports.iter().any(|port| published(port).is_none()) {
            bail!("an address needs the port that is published on it, as in 192.0.2.1:8080:80");
        }
        if addr.is_some() && ports.iter().any(|port| mode(port) == PublishMode::HOST) {
            bail!("an address goes with mode ingress only; leave it out, or the mode");
        }
        Ok((ports, addr))
    });
    ports.with_context(|| format!("invalid port `{text}`"))
}

fn parse_short(text: &str) -> Result<(Vec<EndpointPortConfig>, Option<Ipv4Addr>)> {
    let (ports, protocol) = match text.split_once('/') {
        Some((ports, protocol)) => (ports, parse_protocol(protocol)?),
        None => (text, Protocol::TCP),
    };
    let (published, target) = match ports.rsplit_once(':') {
        None => (None, ports),
        Some((published, target)) => (Some(published), target),
    };
    let (addr, published) = match published.and_then(|published| published.rsplit_once(':')) {
        None => (None, published),
        Some((addr, published)) => (Some(parse_address(addr)?), Some(published)),
    };
    let published = published.filter(|published| !published.is_empty());
    let targets = parse_range(target)?;
    let published = published.map(parse_range).transpose()?;
    if published
        .as_ref()
        .is_some_and(|range| range.len() != targets.len())
    {
        bail!("the two ranges differ in length");
    }
    let published = published
        .into_iter()
        .flatten()
        .map(Some)
        .chain(std::iter::repeat(None));
    let ports = targets
        .zip(published)
        .map(|(target, published)| port(target, published, protocol, PublishMode::INGRESS));
    Ok((ports.collect(), addr))
}

fn parse_address(text: &str) -> Result<Ipv4Addr> {
    text.parse()
        .with_context(|| format!("`{text}` is not an IPv4 address of a node"))
}

fn parse_long(text: &str) -> Result<(EndpointPortConfig, Option<Ipv4Addr>)> {
    let mut fields = BTreeMap::new();
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .with_context(|| format!("`{field}` is not KEY=VALUE"))?;
        fields.insert(key.trim().to_lowercase(), value.trim());
    }
    let target = fields
        .remove("target")
        .context("target=PORT is missing")
        .and_then(parse_port)?;
    let published = fields.remove("published").map(parse_port).transpose()?;
    let protocol = fields
        .remove("protocol")
        .map_or(Ok(Protocol::TCP), parse_protocol)?;
    let mode = match fields.remove("mode") {
        None | Some("ingress") => PublishMode::INGRESS,
        Some("host") => PublishMode::HOST,
        Some(mode) => bail!("mode `{mode}` is neither ingress nor host"),
    };
    let addr = fields.remove("ip").map(parse_address).transpose()?;
    if let Some(key) = fields.keys().next() {
        bail!("`{key}` is not one of published, target, protocol, mode and ip");
    }
    Ok((port(target, published, protocol, mode), addr))
}

fn port(
    target: u16,
    published: Option<u16>,
    protocol: Protocol,
    mode: PublishMode,
) -> EndpointPortConfig {
    EndpointPortConfig {
        name: None,
        protocol: Some(protocol),
        target_port: Some(target.into()),
        published_port: published.map(Into::into),
        publish_mode: Some(mode),
    }
}

fn parse_protocol(text: &str) -> Result<Protocol> {
    match text.to_lowercase().as_str() {
        "tcp" => Ok(Protocol::TCP),
        "udp" => Ok(Protocol::UDP),
        "sctp" => Ok(Protocol::SCTP),
        _ => bail!("protocol `{text}` is none of tcp, udp and sctp"),
    }
}

fn parse_port(text: &str) -> Result<u16> {
    text.parse()
        .ok()
        .filter(|port| *port != 0)
        .with_context(|| format!("`{text}` is not a port from 1 to 65535"))
}

fn parse_range(text: &str) -> Result<RangeInclusive<u16>> {
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (parse_port(first)?, parse_port(last)?),
        None => (parse_port(text)?, parse_port(text)?),
    };
    if first > last {
        bail!("range `{text}` runs backwards");
    }
    let range = first..=last;
    if range.len() > RANGE_MAX {
        bail!("range `{text}` has more than {RANGE_MAX} ports");
    }
    Ok(range)
}

/// `ports` after `--publish-rm` and `--publish-add`. A removal names the target port; the
/// published one counts when it is given, and names that do not occur are no error.
///
/// # Errors
/// A published port added for two targets.
pub fn edit(
    ports: Vec<EndpointPortConfig>,
    remove: &[EndpointPortConfig],
    add: &[EndpointPortConfig],
) -> Result<Vec<EndpointPortConfig>> {
    let mut ports: Vec<_> = ports
        .into_iter()
        .filter(|port| !remove.iter().any(|gone| is_removed(port, gone)))
        .collect();
    for port in add {
        if ports.iter().any(|other| is_same(other, port)) {
            continue;
        }
        if let Some(other) = ports.iter().find(|other| is_taken(other, port)) {
            bail!(
                "port {} is already published for target port {}: remove it with --publish-rm {}",
                port.published_port.unwrap_or_default(),
                other.target_port.unwrap_or_default(),
                other.target_port.unwrap_or_default(),
            );
        }
        ports.push(port.clone());
    }
    Ok(ports)
}

fn protocol(port: &EndpointPortConfig) -> Protocol {
    match port.protocol {
        None | Some(Protocol::EMPTY) => Protocol::TCP,
        Some(protocol) => protocol,
    }
}

fn mode(port: &EndpointPortConfig) -> PublishMode {
    match port.publish_mode {
        None | Some(PublishMode::EMPTY) => PublishMode::INGRESS,
        Some(mode) => mode,
    }
}

fn published(port: &EndpointPortConfig) -> Option<i64> {
    port.published_port.filter(|port| *port != 0)
}

fn is_removed(port: &EndpointPortConfig, gone: &EndpointPortConfig) -> bool {
    let same_target = port.target_port == gone.target_port && protocol(port) == protocol(gone);
    // Unset where the daemon chose the port: then only the target can name it.
    let same_published = published(gone).is_none()
        || published(port).is_none()
        || published(port) == published(gone);
    same_target && same_published
}

fn is_same(a: &EndpointPortConfig, b: &EndpointPortConfig) -> bool {
    a.target_port == b.target_port
        && published(a) == published(b)
        && protocol(a) == protocol(b)
        && mode(a) == mode(b)
}

fn is_taken(a: &EndpointPortConfig, b: &EndpointPortConfig) -> bool {
    published(b).is_some() && published(a) == published(b) && protocol(a) == protocol(b)
}

/// `*:8080->80/tcp`, with neighbours joined to `*:8080-8082->80-82/tcp`: the ports of the mesh as
/// `service ls` shows them.
pub fn show(ports: &[EndpointPortConfig]) -> String {
    let mut ports: Vec<_> = ports
        .iter()
        .filter(|port| mode(port) == PublishMode::INGRESS)
        .map(Run::new)
        .collect();
    ports.sort_by_key(|run| (run.protocol, run.published.0));
    let mut runs: Vec<Run> = Vec::new();
    for port in ports {
        match runs.last_mut().filter(|run| run.goes_on_with(&port)) {
            Some(run) => (run.published.1, run.target.1) = (port.published.1, port.target.1),
            None => runs.push(port),
        }
    }
    let texts: Vec<String> = runs.iter().map(Run::show).collect();
    texts.join(", ")
}

/// Each port as `service ps` shows it: `*:8080->80/tcp,*:53->53/udp`.
pub fn show_each(ports: &[EndpointPortConfig]) -> String {
    let texts: Vec<String> = ports.iter().map(|port| Run::new(port).show()).collect();
    texts.join(",")
}

/// Ports that follow each other: first and last on both sides.
struct Run {
    protocol: Protocol,
    published: (i64, i64),
    target: (i64, i64),
}

impl Run {
    fn new(port: &EndpointPortConfig) -> Self {
        let (published, target) = (published(port), port.target_port);
        let (published, target) = (published.unwrap_or_default(), target.unwrap_or_default());
        Self {
            protocol: protocol(port),
            published: (published, published),
            target: (target, target),
        }
    }

    fn goes_on_with(&self, next: &Self) -> bool {
        self.protocol == next.protocol
            && self.published.1 + 1 == next.published.0
            && self.target.1 + 1 == next.target.0
    }

    fn show(&self) -> String {
        let side = |(first, last): (i64, i64)| match first == last {
            true => first.to_string(),
            false => format!("{first}-{last}"),
        };
        let (published, target) = (side(self.published), side(self.target));
        format!("*:{published}->{target}/{}", self.protocol)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn short(text: &str) -> Vec<(i64, Option<i64>, Protocol)> {
        parse(text)
            .unwrap()
            .iter()
            .map(|port| {
                (
                    port.target_port.unwrap(),
                    port.published_port,
                    protocol(port),
                )
            })
            .collect()
    }

    #[test]
    fn short_forms() {
        assert_eq!(short("80"), [(80, None, Protocol::TCP)]);
        assert_eq!(short("8080:80"), [(80, Some(8080), Protocol::TCP)]);
        assert_eq!(short("80:80/tcp"), [(80, Some(80), Protocol::TCP)]);
        assert_eq!(short("53:53/udp"), [(53, Some(53), Protocol::UDP)]);
        assert_eq!(
            short("8080-8081:80-81"),
            [
                (80, Some(8080), Protocol::TCP),
                (81, Some(8081), Protocol::TCP)
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_ports_or_an_error(
            text in "([0-9.]{0,9}:)?([0-9]{0,5}(-[0-9]{0,5})?:)?[0-9]{0,5}(-[0-9]{0,5})?(/[a-z]{0,4})?",
        ) {
            if let Ok(ports) = parse(&text) {
                prop_assert!((1..=RANGE_MAX).contains(&ports.len()));
            }
        }

        #[test]
        fn any_fields_are_a_port_or_an_error(
            text in "((published|target|protocol|mode|ip)=[0-9a-z.]{0,6},?){0,4}",
        ) {
            let _ = parse(&text);
        }
    }

    #[test]
    fn long_form() {
        let port = &parse("published=8080,target=80,protocol=udp,mode=host").unwrap()[0];
        assert_eq!(
            port,
            &super::port(80, Some(8080), Protocol::UDP, PublishMode::HOST)
        );
        let port = &parse("target=80").unwrap()[0];
        assert_eq!(
            port,
            &super::port(80, None, Protocol::TCP, PublishMode::INGRESS)
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, want) in [
            ("", "not a port"),
            ("0:80", "not a port"),
            ("65536", "not a port"),
            ("80/icmp", "protocol `icmp`"),
            ("::1:80:80", "`::1` is not an IPv4 address"),
            ("192.0.2.1:80", "not a port"),
            ("192.0.2.1::80", "needs the port"),
            ("ip=192.0.2.1,target=80", "needs the port"),
            ("ip=192.0.2,target=80,published=8", "not an IPv4 address"),
            (
                "ip=192.0.2.1,target=80,published=8,mode=host",
                "mode ingress only",
            ),
            ("8080-8082:80", "differ in length"),
            ("9-8:9-8", "backwards"),
            ("1-60000:1-60000", "more than"),
            ("published=1", "target=PORT is missing"),
            ("target=80,mode=x", "mode `x`"),
            ("target=80,color=red", "`color`"),
            ("target=80,host", "KEY=VALUE"),
        ] {
            let err = format!("{:#}", parse(text).unwrap_err());
            assert!(err.contains(want) && err.contains(text), "{text}: {err}");
        }
    }

    #[test]
    fn addresses_become_labels() {
        let labels = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            address_labels(&texts).map(Vec::from_iter)
        };
        let label = |port: &str, addr: &str| (format!("{PUBLISH}{port}"), addr.to_owned());
        assert_eq!(
            labels(&[
                "192.0.2.1:8080:80",
                "ip=127.0.0.1,published=8080,target=80",
                "192.0.2.1:53-54:53-54/udp",
                "9:9",
            ])
            .unwrap(),
            [
                label("53/udp", "192.0.2.1"),
                label("54/udp", "192.0.2.1"),
                label("8080/tcp", "192.0.2.1,127.0.0.1"),
            ]
        );
        let error = labels(&["192.0.2.1:8080:80", "8080:80"]).unwrap_err();
        assert!(error.to_string().contains("8080/tcp"), "{error}");

        let mut kept = Some(HashMap::from([
            label("1/tcp", "192.0.2.1"),
            label("2/tcp", "192.0.2.1"),
        ]));
        edit_labels(
            &mut kept,
            &ports(&["2:2", "3:3"]),
            &["192.0.2.3:3:3".to_owned()],
        )
        .unwrap();
        let after = [label("2/tcp", "192.0.2.1"), label("3/tcp", "192.0.2.3")];
        assert_eq!(kept.unwrap(), HashMap::from(after));
    }

    fn ports(texts: &[&str]) -> Vec<EndpointPortConfig> {
        texts.iter().flat_map(|text| parse(text).unwrap()).collect()
    }

    #[test]
    fn edit_removes_by_target_and_by_published_port_when_it_is_given() {
        let before = ports(&["8080:80", "8081:80", "53:53/udp", "53:53"]);
        let after = edit(before.clone(), &ports(&["80", "53/udp"]), &[]).unwrap();
        assert_eq!(after, ports(&["53:53"]));
        let after = edit(before, &ports(&["8081:80", "7"]), &[]).unwrap();
        assert_eq!(after, ports(&["8080:80", "53:53/udp", "53:53"]));
    }

    #[test]
    fn edit_adds_once_and_refuses_a_taken_port() {
        let before = ports(&["8080:80"]);
        let after = edit(before.clone(), &[], &ports(&["8080:80", "8081:80"])).unwrap();
        assert_eq!(after, ports(&["8080:80", "8081:80"]));
        assert!(edit(before.clone(), &[], &ports(&["8080:81"])).is_err());
        let moved = edit(before, &ports(&["80"]), &ports(&["8080:81"])).unwrap();
        assert_eq!(moved, ports(&["8080:81"]));
    }

    #[test]
    fn neighbours_are_shown_as_one() {
        assert_eq!(show(&ports(&["8080:80"])), "*:8080->80/tcp");
        assert_eq!(
            show(&ports(&["53:53/udp", "8081:81", "8080:80", "9000:81"])),
            "*:8080-8081->80-81/tcp, *:9000->81/tcp, *:53->53/udp"
        );
        assert_eq!(show(&ports(&["target=1,published=1,mode=host"])), "");
    }
}
