//! Networks of a service.

use anyhow::{Context, Result, bail};
use bollard_stubs::models::NetworkAttachmentConfig;

use crate::client::Client;

/// `my-network`, or `name=my-network,alias=db,alias=database`, with the network's id found.
///
/// # Errors
/// The text is not understood, or there is no such network.
pub async fn attachment(client: &Client, text: &str) -> Result<NetworkAttachmentConfig> {
    let (name, aliases) = parse(text)?;
    let network = client.overlay(&name).await?;
    Ok(NetworkAttachmentConfig {
        target: network.id,
        aliases: (!aliases.is_empty()).then_some(aliases),
        driver_opts: None,
    })
}

fn parse(text: &str) -> Result<(String, Vec<String>)> {
    if !text.contains('=') {
        return Ok((text.to_owned(), Vec::new()));
    }
    let (mut name, mut aliases) = (None, Vec::new());
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("name", value)) => name = Some(value.to_owned()),
            Some(("alias", value)) => aliases.push(value.to_owned()),
            _ => bail!("invalid network `{text}`: `{field}` is neither name=NAME nor alias=NAME"),
        }
    }
    let name = name.with_context(|| format!("invalid network `{text}`: name=NAME is missing"))?;
    Ok((name, aliases))
}

/// `networks` without those whose target is in `remove` (names and ids), with `add` at the end.
/// One that is there already takes the new aliases.
pub fn edit_networks(
    networks: &mut Option<Vec<NetworkAttachmentConfig>>,
    remove: &[String],
    add: Vec<NetworkAttachmentConfig>,
) {
    if remove.is_empty() && add.is_empty() {
        return;
    }
    let networks = networks.get_or_insert_default();
    networks.retain(|network| {
        let is_gone = |target: &String| remove.contains(target);
        let is_new = add.iter().any(|new| new.target == network.target);
        !network.target.as_ref().is_some_and(is_gone) && !is_new
    });
    networks.extend(add);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(target: &str) -> NetworkAttachmentConfig {
        NetworkAttachmentConfig {
            target: Some(target.to_owned()),
            ..NetworkAttachmentConfig::default()
        }
    }

    #[test]
    fn both_forms_are_read() {
        assert_eq!(parse("net").unwrap(), ("net".to_owned(), vec![]));
        let (name, aliases) = parse("alias=db,name=net,alias=sql").unwrap();
        assert_eq!(
            (name.as_str(), aliases),
            ("net", vec!["db".to_owned(), "sql".to_owned()])
        );
        assert!(parse("alias=db").is_err());
        assert!(parse("name=a,colour=red").is_err());
    }

    #[test]
    fn edits_replace_by_target() {
        let mut networks = Some(vec![to("a"), to("b"), to("c")]);
        let new = NetworkAttachmentConfig {
            aliases: Some(vec!["x".to_owned()]),
            ..to("b")
        };
        edit_networks(
            &mut networks,
            &["a".to_owned(), "nope".to_owned()],
            vec![new.clone()],
        );
        assert_eq!(networks.unwrap(), [to("c"), new]);
    }
}
