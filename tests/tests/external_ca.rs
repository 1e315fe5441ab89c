//! An authority outside of the cluster signs its certificates, and keeps the root's key for itself.

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use signer::Conduct;
use swarmnet_tests::{Cluster, Web, external_ca};

#[test]
fn external_ca_signs_for_all_nodes_and_is_waited_for() -> Result<()> {
    let (cluster, signer) = Cluster::with_external_ca()?;
    let [first, second, third] = [1, 2, 3].map(|number| cluster.node(number));
    let stays = format!("node.hostname!={}", second.name());
    let web = Web::start_on(&cluster, &[1, 3], &["--constraint", &stays])?;
    let id = |hostname: &str| -> Result<String> {
        let node = first.listed(hostname)?;
        Ok(node["ID"].as_str().context("it has an id")?.to_owned())
    };
    ensure!(first.cli(&["ca"])?.trim() == signer.root_pem().trim());
    let signed = signer.signed();
    let own = id(first.name())?;
    ensure!(
        signed[0].node == own && signed[0].caller.is_none(),
        "{signed:?}"
    );
    for (node, role) in [(second, "swarm-manager"), (third, "swarm-worker")] {
        let node = id(node.name())?;
        let its = signed
            .iter()
            .find(|its| its.node == node && its.role == role);
        let its = its.with_context(|| format!("{node} is not in {signed:?}"))?;
        ensure!(its.caller.as_ref() == Some(&own), "{its:?}");
    }
    let shown = format!("External CAs: cfssl: {}", signer.url());
    for info in [first.docker(&["info"])?, first.cli(&["info"])?] {
        let words: Vec<_> = info.split_whitespace().collect();
        ensure!(words.join(" ").contains(&shown), "{info}");
    }

    signer.conduct(Conduct::Refuse);
    let token = first.cli(&["join-token", "-q", "worker"])?;
    let known = format!("{}:2377", first.addr());
    second.cli(&["leave", "--force"])?;
    let refused = second.cli_error(&["join", "--token", token.trim(), &known])?;
    let why = format!(
        "external CA {}: it does not sign: policy violation",
        signer.url()
    );
    ensure!(refused.contains(&why), "{refused}");
    // It needs another certificate for that, and goes on with the one that it has.
    first.cli(&["node", "promote", third.name()])?;
    wait_for("the node to be refused a certificate", || {
        Ok(third.log_tail().contains(&why).then_some(()))
    })?;
    web.open.go_on()?;
    first.cli(&["service", "scale", "--detach", "web=5"])?;
    cluster.wait_running("web", 5)?;

    signer.conduct(Conduct::Sign);
    wait_for("it to be a manager", || {
        let node = first.listed(third.name())?;
        Ok((node["ManagerStatus"] == "Reachable").then_some(()))
    })?;
    second.cli(&["join", "--token", token.trim(), &known])?;
    web.open.go_on()
}

#[test]
fn signers_that_nodes_would_not_believe_are_refused() -> Result<()> {
    let (cluster, signer) = Cluster::with_external_ca()?;
    let manager = cluster.node(1);
    let stranger = cluster.signer()?;
    let root = cluster.dir().join("strangers-root.pem");
    std::fs::write(&root, stranger.root_pem())?;
    for (external, why) in [
        (
            external_ca(&stranger, Some(&root)),
            "another root than the swarm's",
        ),
        (external_ca(&stranger, None), "no secure connection"),
        (
            "protocol=cfssl,url=http://ca.example".to_owned(),
            "want https://",
        ),
    ] {
        let refused = manager.cli_error(&["update", "--external-ca", &external])?;
        ensure!(refused.contains(why), "{external}: {refused}");
    }
    let both = [external_ca(&signer, None), external_ca(&signer, None)];
    let update = [
        "swarm",
        "update",
        "--external-ca",
        &both[0],
        "--external-ca",
        &both[1],
    ];
    manager.docker(&update)?;
    let shown = manager.docker(&["info"])?;
    ensure!(shown.matches(&signer.url()).count() == 2, "{shown}");

    let rotated = manager.cli_error(&["ca", "--rotate"])?;
    ensure!(rotated.contains("the root is not replaced"), "{rotated}");
    manager.cli(&["leave", "--force"])?;
    let without = ["init", "--external-ca", &external_ca(&signer, None)];
    let refused = manager.cli_error(&without)?;
    ensure!(refused.contains("cacert=FILE"), "{refused}");
    signer.conduct(Conduct::OtherKey);
    let named = external_ca(&signer, Some(&cluster.dir().join("external-root.pem")));
    let init = [
        "init",
        "--advertise-addr",
        &manager.addr().to_string(),
        "--external-ca",
        &named,
    ];
    let refused = manager.cli_error(&init)?;
    ensure!(refused.contains(&signer.url()), "{refused}");
    ensure!(manager.docker(&["info"])?.contains("Swarm: inactive"));
    Ok(())
}
