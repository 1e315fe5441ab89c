//! Placement constraints: `node.labels.zone==east`, `node.role != manager`.

use std::{fmt, net::Ipv4Addr, str::FromStr};

use ipnet::Ipv4Net;
use model::{
    object::Node,
    spec::{NodeRole, Placement},
};

/// Text that is not a constraint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseConstraintError {
    #[error("constraint expected one operator from ==, !=")]
    Operator,
    #[error("key '{0}' is invalid")]
    Key(String),
    #[error("value '{0}' is invalid")]
    Value(String),
}

/// One condition that a task has on its node. Text compares without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Constraint {
    key: String,
    negated: bool,
    value: String,
}

impl FromStr for Constraint {
    type Err = ParseConstraintError;

    fn from_str(text: &str) -> Result<Self, ParseConstraintError> {
        let (negated, (key, value)) = match (text.split_once("=="), text.split_once("!=")) {
            (Some(parts), _) => (false, parts),
            (None, Some(parts)) => (true, parts),
            (None, None) => return Err(ParseConstraintError::Operator),
        };
        let (key, value) = (key.trim(), value.trim());
        if !is_key(key) {
            return Err(ParseConstraintError::Key(key.to_owned()));
        }
        if !is_value(value) {
            return Err(ParseConstraintError::Value(value.to_owned()));
        }
        Ok(Self {
            key: key.to_owned(),
            negated,
            value: value.to_owned(),
        })
    }
}

impl fmt::Display for Constraint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let operator = if self.negated { "!=" } else { "==" };
        write!(f, "{}{operator}{}", self.key, self.value)
    }
}

impl Constraint {
    /// Whether a task with this constraint may run there. A key that we do not know is met by no
    /// node, whatever the operator: the user meant something by it.
    pub fn matches(&self, node: &Node) -> bool {
        self.equals(node).is_some_and(|equal| equal != self.negated)
    }

    /// `None` for an unknown key.
    fn equals(&self, node: &Node) -> Option<bool> {
        let same = |found: &str| found.eq_ignore_ascii_case(&self.value);
        let key = self.key.to_ascii_lowercase();
        // The label's own name keeps its case.
        if key.starts_with("node.labels.") {
            let label = &self.key["node.labels.".len()..];
            return Some(same(node.spec.labels.get(label).map_or("", String::as_str)));
        }
        if key.starts_with("engine.labels.") {
            // Agents have no labels of their own.
            return Some(same(""));
        }
        match key.as_str() {
            "node.id" => Some(same(&node.id.to_string())),
            "node.hostname" => Some(same(&node.description.hostname)),
            "node.ip" => Some(is_within(node.status.addr, &self.value)),
            "node.role" => Some(same(match node.spec.role {
                NodeRole::Manager => "manager",
                NodeRole::Worker => "worker",
            })),
            "node.platform.os" => Some(same(&node.description.os)),
            "node.platform.arch" => {
                let found = architecture(&node.description.architecture);
                Some(found.eq_ignore_ascii_case(architecture(&self.value)))
            }
            _ => None,
        }
    }
}

/// Parses all constraints of a placement.
///
/// # Errors
/// The first that is malformed.
pub fn parse(placement: &Placement) -> Result<Vec<Constraint>, ParseConstraintError> {
    placement.constraints.iter().map(|c| c.parse()).collect()
}

/// Whether the node meets every constraint. A malformed one, which cannot have passed the checks
/// on the spec, is met by none.
pub fn all_match(placement: &Placement, node: &Node) -> bool {
    placement.constraints.iter().all(|text| {
        text.parse::<Constraint>()
            .is_ok_and(|constraint| constraint.matches(node))
    })
}

/// One spelling for each architecture: Go's, as images name it.
fn architecture(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn is_within(addr: Ipv4Addr, text: &str) -> bool {
    match text.parse::<Ipv4Net>() {
        Ok(net) => net.contains(&addr),
        Err(_) => text.parse() == Ok(addr),
    }
}

fn is_key(text: &str) -> bool {
    let mut bytes = text.bytes();
    let first = bytes.next();
    first.is_some_and(|b| b.is_ascii_alphabetic() || b == b'_')
        && text.len() > 1
        && bytes.all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

fn is_value(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|b| {
            b.is_ascii_alphanumeric()
                || b.is_ascii_whitespace()
                || br":-_.*()?+[]\^$|/".contains(&b)
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture;

    fn matches(text: &str, node: &Node) -> bool {
        text.parse::<Constraint>().unwrap().matches(node)
    }

    #[test]
    fn keys_of_swarm_are_known() {
        let mut node = fixture::node("alpha");
        node.spec.labels.insert("Zone".into(), "east".into());
        node.status.addr = Ipv4Addr::new(192, 168, 7, 9);
        for met in [
            "node.hostname==ALPHA",
            "node.hostname != beta",
            "node.role==worker",
            "node.labels.Zone == east",
            "node.labels.zone != east",
            "node.labels.none!=x",
            "node.ip==192.168.0.0/16",
            "node.ip==192.168.7.9",
            "node.platform.os==linux",
            "node.platform.arch==amd64",
            "Node.Role == Worker",
            "engine.labels.x!=y",
        ] {
            assert!(matches(met, &node), "{met}");
        }
        for unmet in [
            "node.role==manager",
            "node.labels.zone==east",
            "node.ip==10.0.0.0/8",
            "node.colour==red",
            "node.colour!=red",
            "engine.labels.x==y",
        ] {
            assert!(!matches(unmet, &node), "{unmet}");
        }
        assert!(matches(&format!("node.id=={}", node.id), &node));
    }

    #[test]
    fn malformed_constraints_name_what_is_wrong() {
        let error = |text: &str| text.parse::<Constraint>().unwrap_err().to_string();
        let operator = "constraint expected one operator from ==, !=";
        assert_eq!(error("node.role=manager"), operator);
        assert_eq!(error("node.role"), operator);
        assert_eq!(error("1node==x"), "key '1node' is invalid");
        assert_eq!(error("==x"), "key '' is invalid");
        assert_eq!(error("node.role=="), "value '' is invalid");
        assert_eq!(error("node.role==a;b"), "value 'a;b' is invalid");
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_a_constraint_or_an_error(text in ".{0,40}") {
            if let Ok(constraint) = text.parse::<Constraint>() {
                let again: Constraint = constraint.to_string().parse().unwrap();
                proptest::prop_assert_eq!(again, constraint);
            }
        }
    }
}
