//! JSON as Go reads it: the names of fields match in any case. Some SDKs rely on it (docker-py
//! writes `Mode.replicated`).

use serde::{
    Deserializer,
    de::{
        IntoDeserializer, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use serde_json::{Error, Map, Value};

/// A value to deserialize from. Keys of maps, such as labels, stay as they are.
pub(crate) struct Folding(pub(crate) Value);

/// The entry of `fields` under `name`, in its own case if there is one, in any case otherwise.
pub(crate) fn get<'a>(fields: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    fields.get(name).or_else(|| {
        let mut fields = fields.iter();
        fields
            .find(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
    })
}

impl<'de> Deserializer<'de> for Folding {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Array(items) => {
                visitor.visit_seq(SeqDeserializer::new(items.into_iter().map(Folding)))
            }
            Value::Object(fields) => {
                let fields = fields.into_iter().map(|(key, value)| (key, Self(value)));
                visitor.visit_map(MapDeserializer::new(fields))
            }
            scalar => scalar.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        known: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let Value::Object(fields) = self.0 else {
            return self.deserialize_any(visitor);
        };
        let fields = fields.into_iter().map(|(key, value)| {
            let name = known.iter().find(|name| name.eq_ignore_ascii_case(&key));
            let name = name.map_or(key.clone(), |name| (*name).to_owned());
            (name, Self(value))
        });
        visitor.visit_map(MapDeserializer::new(fields))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0 {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.0.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Error> for Folding {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

#[cfg(test)]
mod tests {
    use bollard_stubs::models::ServiceSpec;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;

    fn read(json: Value) -> Result<ServiceSpec, Error> {
        ServiceSpec::deserialize(Folding(json))
    }

    #[test]
    fn fields_match_in_any_case_and_keys_of_maps_stay() {
        let folded = json!({
            "name": "a", "labels": {"X": "1", "x": "2"},
            "MODE": {"replicated": {"replicas": 2}},
            "taskTemplate": {"containerspec": {"args": ["A", "b"]}},
            "updateConfig": {"maxFailureRatio": 1, "failureaction": "pause"},
        });
        let plain = json!({
            "Name": "a", "Labels": {"X": "1", "x": "2"},
            "Mode": {"Replicated": {"Replicas": 2}},
            "TaskTemplate": {"ContainerSpec": {"Args": ["A", "b"]}},
            "UpdateConfig": {"MaxFailureRatio": 1, "FailureAction": "pause"},
        });
        let want: ServiceSpec = serde_json::from_value(plain).unwrap();
        assert_eq!(read(folded).unwrap(), want);
        assert_eq!(want.labels.unwrap().len(), 2);
    }

    #[test]
    fn a_field_given_twice_is_refused() {
        let err = read(json!({"Name": "a", "name": "b"})).unwrap_err();
        assert!(err.to_string().contains("duplicate field"), "{err}");
    }

    #[test]
    fn other_types_are_refused_as_ever() {
        for wrong in [
            json!([]),
            json!({"Name": 1}),
            json!({"Mode": "x"}),
            json!("x"),
        ] {
            assert!(read(wrong.clone()).is_err(), "{wrong}");
        }
    }
}
