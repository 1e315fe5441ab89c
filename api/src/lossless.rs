//! Nothing that a client sets is dropped in silence.
//!
//! A request's JSON is compared with what is left of it after it was read into our types and
//! written out again. Whatever was set and did not survive is a field that we do not support, and
//! its path goes into the error.

use serde_json::Value;

use crate::folding;

/// The path of the first value in `input` that is set and differs from, or is missing in, `kept`.
///
/// Go's zero values (`null`, `false`, `0`, `""`, `[]` and objects of nothing else) count as not
/// set: clients send them for everything that the user left alone.
pub(crate) fn first_lost(input: &Value, kept: &Value) -> Option<String> {
    if is_zero(input) {
        return None;
    }
    match (input, kept) {
        (Value::Object(input), Value::Object(kept)) => input.iter().find_map(|(key, value)| {
            first_lost(value, folding::get(kept, key).unwrap_or(&Value::Null))
                .map(|rest| join(key, &rest))
        }),
        (Value::Array(input), Value::Array(kept)) if input.len() == kept.len() => input
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(at, (input, kept))| {
                first_lost(input, kept).map(|rest| join(&format!("[{at}]"), &rest))
            }),
        (Value::Object(input), Value::Null) => input
            .iter()
            .find_map(|(key, value)| first_lost(value, &Value::Null).map(|rest| join(key, &rest))),
        (input, kept) => (!same(input, kept)).then(String::new),
    }
}

fn join(key: &str, rest: &str) -> String {
    match rest {
        "" => key.to_owned(),
        rest if rest.starts_with('[') => format!("{key}{rest}"),
        rest => format!("{key}.{rest}"),
    }
}

fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.values().all(is_zero),
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        // Ratios are single precision in the model, as they are in Swarm.
        (Value::Number(a), Value::Number(b)) if a.is_f64() || b.is_f64() => {
            a.as_f64().map(|a| a as f32) == b.as_f64().map(|b| b as f32)
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn zero_values_need_not_survive() {
        let input = json!({"A": null, "B": {"C": false, "D": {"E": []}}, "F": 0, "G": ""});
        assert_eq!(first_lost(&input, &json!({})), None);
    }

    #[test]
    fn a_lost_field_is_named_by_its_path() {
        let input = json!({"TaskTemplate": {"ContainerSpec": {"Mounts": [{"Type": "bind"}]}}});
        let kept = json!({"TaskTemplate": {"ContainerSpec": {"Image": "x"}}});
        assert_eq!(
            first_lost(&input, &kept).as_deref(),
            Some("TaskTemplate.ContainerSpec.Mounts")
        );
        let input = json!({"Ports": [{"TargetPort": 80}, {"TargetPort": 81, "Weight": 3}]});
        let kept = json!({"Ports": [{"TargetPort": 80}, {"TargetPort": 81}]});
        assert_eq!(
            first_lost(&input, &kept).as_deref(),
            Some("Ports[1].Weight")
        );
    }

    #[test]
    fn a_changed_value_is_lost() {
        assert_eq!(
            first_lost(&json!({"Init": 3}), &json!({"Init": 4})).as_deref(),
            Some("Init")
        );
        assert_eq!(
            first_lost(&json!({"A": ["x", "y"]}), &json!({"A": ["x"]})).as_deref(),
            Some("A")
        );
    }

    #[test]
    fn ratios_compare_in_single_precision() {
        let kept = json!({"R": f64::from(0.1f32)});
        assert_eq!(first_lost(&json!({"R": 0.1}), &kept), None);
        assert_eq!(first_lost(&json!({"R": 0.2}), &kept).as_deref(), Some("R"));
    }
}
