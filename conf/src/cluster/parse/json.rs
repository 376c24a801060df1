//! JSON of an API server, as the values that YAML is read into. They have no lines.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::tree::{Entry, Node, Value};

/// Who has set which field, by whom it was. It is a third of an object, and nobody asks for it.
const MANAGED_FIELDS: &str = "managedFields";

/// Where values of an API are.
const NO_LINE: usize = 0;

/// A value of JSON.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Json(pub(crate) Node);

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(JsonVisitor)?;
        Ok(Self(Node { line: NO_LINE, value }))
    }
}

struct JsonVisitor;

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Whole(value))
    }

    // Numbers that no field can hold stay numbers that no field can hold.
    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Whole(i64::try_from(value).unwrap_or(i64::MAX)))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(Json(item)) = access.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(key) = access.next_key::<String>()? {
            if key == MANAGED_FIELDS {
                access.next_value::<IgnoredAny>()?;
                continue;
            }
            let Json(value) = access.next_value()?;
            entries.push(Entry { key, line: NO_LINE, value });
        }
        Ok(Value::Map(entries))
    }
}
