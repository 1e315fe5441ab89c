//! The recipe of docs/security.md for an external CA, with the real `cfssl serve`.

use anyhow::{Context, Result, ensure};
use lab::wait_for;
use swarmnet_tests::{Cfssl, Cluster};

const MUTUAL: [&str; 2] = ["-mutual-tls-ca", "root.pem"];

#[test]
fn cfssl_that_demands_certificates_signs_for_joins_and_promotions() -> Result<()> {
    let mut cluster = Cluster::of_strangers(3)?;
    let cfssl = Cfssl::new(&cluster.dir().join("cfssl"), "ecdsa", 256)?;
    for number in 1..=3 {
        cluster.node_mut(number).start()?;
    }
    let [first, second, third] = [1, 2, 3].map(|number| cluster.node(number));
    let addr = first.addr().to_string();
    let demanding = cfssl.serve(cluster.client(), cluster.client_addr(), &MUTUAL)?;
    let init = |external: &str| {
        let words = ["init", "--advertise-addr", &addr, "--external-ca", external];
        words.map(str::to_owned)
    };
    let words = init(&demanding.flag(Some(&cfssl.root())));
    let refused = first.cli_error(&words.each_ref().map(String::as_str))?;
    let why = format!(
        "external CA {}: it demands a client certificate",
        demanding.url()
    );
    ensure!(refused.contains(&why), "{refused}");
    ensure!(first.docker(&["info"])?.contains("Swarm: inactive"));

    // One that demands none, which only the first node can reach.
    let open = cfssl.serve(first.host(), first.addr(), &[])?;
    let words = init(&open.flag(Some(&cfssl.root())));
    first.cli(&words.each_ref().map(String::as_str))?;
    first.cli(&["update", "--external-ca", &demanding.flag(None)])?;
    drop(open);
    let known = format!("{addr}:2377");
    for (node, role) in [(second, "manager"), (third, "worker")] {
        let token = first.cli(&["join-token", "-q", role])?;
        node.cli(&["join", "--token", token.trim(), &known])?;
    }
    let root = std::fs::read_to_string(cfssl.root())?;
    for node in cluster.nodes() {
        let trusted = std::fs::read_to_string(node.state_dir().join("certificates/root.pem"))?;
        ensure!(trusted.trim() == root.trim(), "{trusted}");
    }
    // By another certificate, for which the node's manager asks with its own.
    second.cli(&["node", "promote", third.name()])?;
    wait_for("it to be a manager", || {
        let node = first.listed(third.name())?;
        Ok((node["ManagerStatus"] == "Reachable").then_some(()))
    })?;
    let rotated = first.cli_error(&["ca", "--rotate"])?;
    ensure!(rotated.contains("the root is not replaced"), "{rotated}");

    // Whom it does not take is known when its URL is typed, as is a path where nothing is.
    let stranger = Cfssl::new(&cluster.dir().join("stranger"), "ecdsa", 256)?;
    let theirs = stranger.root().display().to_string();
    let deaf = ["-mutual-tls-ca", &theirs];
    let deaf = cfssl.serve(cluster.client(), cluster.client_addr(), &deaf)?;
    let nobody = ["-mutual-tls-ca", "root.pem", "-mutual-tls-cn", "^nobody$"];
    let nobody = cfssl.serve(cluster.client(), cluster.client_addr(), &nobody)?;
    for (external, why) in [
        (
            deaf.flag(None),
            "does not take the certificate of this manager",
        ),
        (nobody.flag(None), "it answers 403 Forbidden: Invalid CN"),
        (demanding.flag(None) + "n", "it answers 404 Not Found"),
    ] {
        let refused = first.cli_error(&["update", "--external-ca", &external])?;
        ensure!(refused.contains(why), "{external}: {refused}");
    }
    Ok(())
}

#[test]
fn roots_of_all_keys_that_cfssl_makes_are_taken_but_for_p521() -> Result<()> {
    let mut cluster = Cluster::of_strangers(1)?;
    cluster.node_mut(1).start()?;
    let node = cluster.node(1);
    for (algorithm, size, refused) in [
        ("rsa", 2048, None),
        ("rsa", 4096, None),
        ("ecdsa", 256, None),
        ("ecdsa", 384, None),
        (
            "ecdsa",
            521,
            Some("its signature is of a kind that is not known here"),
        ),
    ] {
        let dir = cluster.dir().join(format!("{algorithm}{size}"));
        let cfssl = Cfssl::new(&dir, algorithm, size)?;
        let serving = cfssl.serve(node.host(), node.addr(), &[])?;
        let flag = serving.flag(Some(&cfssl.root()));
        let addr = node.addr().to_string();
        let init = ["init", "--advertise-addr", &addr, "--external-ca", &flag];
        match refused {
            None => {
                node.cli(&init)
                    .with_context(|| format!("{algorithm} {size}"))?;
                node.cli(&["leave", "--force"])?;
            }
            Some(why) => {
                let refused = node.cli_error(&init)?;
                ensure!(refused.contains(why), "{algorithm} {size}: {refused}");
            }
        }
    }
    Ok(())
}
