//! Docker's sentences say what is wrong; where they stop there, ours go on with what to do.

/// The sentence has all of the words in the first column.
const WAYS_OUT: &[(&[&str], &str)] = &[
    (
        &["can't be used with dnsrr mode"],
        "publish no ports, or use --endpoint-mode vip",
    ),
    (
        &["name conflicts with an existing object: service"],
        "choose another --name, or change that one with `swarmnet service update`",
    ),
    (
        &["port '", "is already in use by service"],
        "publish another port, or take it from that service with `swarmnet service update \
         --publish-rm`",
    ),
    (
        &["network with name", "already exists"],
        "choose another name",
    ),
    (
        &["network", "is in use by service"],
        "remove the service first, or take it off with `swarmnet service update --network-rm`",
    ),
    (
        &["node", "is not down and can't be removed"],
        "run `swarmnet leave` on it first, or use --force",
    ),
    (
        &["invalid join token"],
        "`swarmnet join-token worker` on a manager shows the right one",
    ),
    (
        &["Swarm is encrypted"],
        "`swarmnet unlock` asks for the key that `swarmnet unlock-key` shows on another manager",
    ),
    (
        &["could not be unlocked"],
        "`swarmnet unlock-key` on another manager shows the right one",
    ),
    (&["service", "not found"], "`swarmnet service ls` lists all"),
    (&["network", "not found"], "`swarmnet network ls` lists all"),
    (&["node", "not found"], "`swarmnet node ls` lists all"),
];

/// What the user can do about a refusal, when the refusal does not say so itself.
pub(super) fn way_out(message: &str) -> Option<&'static str> {
    let fits = |words: &[&str]| words.iter().all(|word| message.contains(word));
    WAYS_OUT
        .iter()
        .find(|(words, _)| fits(words))
        .map(|(_, way_out)| *way_out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dockers_sentences_get_a_way_out_and_complete_ones_are_left_alone() {
        let way_out = |message| way_out(message).unwrap_or_default();
        assert_eq!(
            way_out("service web not found"),
            "`swarmnet service ls` lists all"
        );
        assert!(
            way_out("port '80' is already in use by service 'network' (x) as an ingress port")
                .contains("--publish-rm")
        );
        assert_eq!(
            way_out("subnet 10.0.0.0/8 overlaps; choose another --subnet"),
            ""
        );
    }
}
