//! The network configuration that a runtime passes on standard input (CNI specification 1.1, "Plugin
//! configuration objects").

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::args::is_name;
use crate::error::{CniError, Code};
use crate::result::{CniResult, Version};

/// Where the daemon listens unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/weft/weftd.sock";

/// How strictly to read a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// What we do not do is refused by name: better than a pod that silently lacks something.
    Strict,
    /// Only what is needed is looked at: for DEL, which must work whatever the file says by now.
    Lenient,
}

/// A configuration that was read and understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// `cniVersion`: the version in which the answer is written.
    pub version: Version,
    /// `name`: the network's name.
    pub name: String,
    /// `socket`: where the daemon listens.
    pub socket: PathBuf,
    /// `prevResult`: what the plugins before us in the chain did; for CHECK, what ADD promised.
    pub previous: Option<CniResult>,
    /// `args.cni.labels`: the pod's labels, if the runtime tells them (CONVENTIONS.md of the
    /// specification, "args in network config").
    pub labels: BTreeMap<String, String>,
}

/// What the runtime or the list may put into every plugin's configuration and what does not ask for
/// anything: `capabilities` only announces, `ipMasq` and `dns` are optional by the specification.
const IGNORED: [&str; 3] = ["capabilities", "ipMasq", "dns"];

/// Keys that are read, below. Of `args`, what is not known is to be ignored.
const READ: [&str; 8] =
    ["cniVersion", "name", "type", "prevResult", "socket", "ipam", "runtimeConfig", "args"];

impl NetConf {
    /// Reads a configuration.
    ///
    /// # Errors
    /// Code 1 for a version that is not supported, 2 for a field or value that is not, 6 for a
    /// `prevResult` that cannot be read, 7 for everything else that is wrong.
    pub fn read(config: &Value, strictness: Strictness) -> Result<Self, CniError> {
        let object = config.as_object().ok_or_else(|| invalid("it is not a JSON object"))?;
        let version = version_of(config)?;
        let name = text(object, "name")?.ok_or_else(|| invalid("`name` is missing"))?;
        if !is_name(name) {
            return Err(invalid(format!(
                "`name` is {name:.64?}: start with a letter or digit, then letters, digits, `_`, \
                 `.` and `-`"
            )));
        }
        let socket = match text(object, "socket")? {
            Some(path) if path.starts_with('/') => path,
            Some(path) => {
                return Err(invalid(format!("`socket` is {path:.64?}: give an absolute path")));
            }
            None => DEFAULT_SOCKET,
        };
        let previous = match object.get("prevResult").filter(|value| !value.is_null()) {
            Some(_) if strictness == Strictness::Lenient => None,
            Some(value) => Some(CniResult::from_json(result_version(version, value)?, value)?),
            None => None,
        };
        if strictness == Strictness::Strict {
            if text(object, "type")?.is_none_or(str::is_empty) {
                return Err(invalid("`type` is missing"));
            }
            refuse_unsupported(object)?;
        }
        let labels = match strictness {
            Strictness::Strict => labels_of(object)?,
            Strictness::Lenient => BTreeMap::new(),
        };
        Ok(Self { version, name: name.to_owned(), socket: socket.into(), previous, labels })
    }
}

/// The version in which to answer, also when the rest of the configuration is wrong.
///
/// # Errors
/// Code 1 when it is not supported, 7 when it is not a text.
pub fn version_of(config: &Value) -> Result<Version, CniError> {
    match config.get("cniVersion").filter(|value| !value.is_null()) {
        // The specification's first version had no such field.
        None => Ok(Version::V0_1_0),
        Some(Value::String(text)) if text.is_empty() => Ok(Version::V0_1_0),
        Some(Value::String(text)) => Version::from_text(text),
        Some(other) => Err(invalid(format!("`cniVersion` is {other}: give a text"))),
    }
}

/// A result may name its own version; otherwise it is the configuration's.
fn result_version(version: Version, result: &Value) -> Result<Version, CniError> {
    match result.get("cniVersion").and_then(Value::as_str) {
        Some(text) if !text.is_empty() => Version::from_text(text),
        Some(_) | None => Ok(version),
    }
}

/// Reads `args.cni.labels`: a list of `{"key": …, "value": …}`, as the conventions have it, or an object.
fn labels_of(object: &Map<String, Value>) -> Result<BTreeMap<String, String>, CniError> {
    let labels = object.get("args").and_then(|args| args.get("cni")?.get("labels"));
    let pairs: Option<Vec<(&str, &str)>> = match labels {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|label| Some((label.get("key")?.as_str()?, label.get("value")?.as_str()?)))
            .collect(),
        Some(Value::Object(object)) => {
            object.iter().map(|(key, value)| Some((key.as_str(), value.as_str()?))).collect()
        }
        Some(Value::Bool(_) | Value::Number(_) | Value::String(_)) => None,
    };
    let pairs = pairs.ok_or_else(|| {
        invalid("`args.cni.labels` is no list of labels: write [{\"key\": \"app\", \"value\": \"web\"}]")
    })?;
    let mut labels = BTreeMap::new();
    for (key, value) in pairs {
        if labels.insert(key.to_owned(), value.to_owned()).is_some_and(|former| former != value) {
            return Err(invalid(format!("`args.cni.labels` has two values for {key:.80?}")));
        }
    }
    Ok(labels)
}

fn refuse_unsupported(object: &Map<String, Value>) -> Result<(), CniError> {
    if let Some(ipam) = object.get("ipam").and_then(Value::as_object)
        && let Some((key, value)) = ipam.iter().next()
    {
        return Err(unsupported(
            &format!("ipam.{key}"),
            value,
            "addresses come from weftd; remove `ipam` from the configuration",
        ));
    }
    if let Some(wishes) = object.get("runtimeConfig").and_then(Value::as_object)
        && let Some((key, value)) = wishes.iter().find(|(_, value)| !is_empty(value))
    {
        return Err(unsupported(
            &format!("runtimeConfig.{key}"),
            value,
            "remove it from `capabilities`, or chain a plugin that does it",
        ));
    }
    let unknown = object.iter().find(|(key, _)| {
        !READ.contains(&key.as_str())
            && !IGNORED.contains(&key.as_str())
            && !key.starts_with("cni.dev/")
    });
    match unknown {
        Some((key, value)) => Err(unsupported(key, value, "this plugin knows no such key")),
        None => Ok(()),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(object) => object.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn text<'a>(object: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, CniError> {
    match object.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(invalid(format!("`{key}` is {:.64}: give a text", other.to_string()))),
    }
}

fn invalid(why: impl Into<String>) -> CniError {
    CniError::new(Code::INVALID_CONFIG, "invalid network configuration").with_details(why)
}

fn unsupported(key: &str, value: &Value, fix: &str) -> CniError {
    CniError::new(Code::UNSUPPORTED_FIELD, "unsupported field in the network configuration")
        .with_details(format!("`{key:.64}` is {:.256}: {fix}", value.to_string()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn strict(config: &Value) -> Result<NetConf, CniError> {
        NetConf::read(config, Strictness::Strict)
    }

    fn with(key: &str, value: Value) -> Value {
        let mut config = json!({ "cniVersion": "1.1.0", "name": "weft", "type": "weft-cni" });
        config[key] = value;
        config
    }

    #[test]
    fn the_smallest_configuration() {
        let conf = strict(&json!({ "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni" }));
        assert_eq!(
            conf.unwrap(),
            NetConf {
                version: Version::V1_0_0,
                name: "weft".into(),
                socket: DEFAULT_SOCKET.into(),
                previous: None,
                labels: BTreeMap::new(),
            }
        );
    }

    #[test]
    fn a_missing_version_means_the_first() {
        let conf = strict(&json!({ "name": "weft", "type": "weft-cni" })).unwrap();
        assert_eq!(conf.version, Version::V0_1_0);
    }

    #[test]
    fn what_the_protocol_itself_puts_there_is_accepted() {
        for (key, value) in [
            ("args", json!({ "labels": [{ "key": "a", "value": "b" }], "cni": { "ips": [] } })),
            ("capabilities", json!({ "portMappings": true })),
            ("runtimeConfig", json!({})),
            ("runtimeConfig", json!({ "portMappings": [], "mac": "" })),
            ("ipMasq", json!(true)),
            ("ipam", json!({})),
            ("dns", json!({ "nameservers": ["10.1.0.1"] })),
            ("cni.dev/attachments", json!([])),
            ("prevResult", Value::Null),
            ("socket", json!("/run/other.sock")),
        ] {
            strict(&with(key, value)).unwrap_or_else(|error| panic!("{key}: {error}"));
        }
    }

    #[test]
    fn what_is_not_supported_is_named_with_its_value() {
        for (key, value, names) in [
            ("ipam", json!({ "type": "host-local" }), "`ipam.type` is \"host-local\""),
            (
                "runtimeConfig",
                json!({ "bandwidth": { "ingressRate": 1 } }),
                "`runtimeConfig.bandwidth` is {\"ingressRate\":1}",
            ),
            ("sokcet", json!("/run/weft"), "`sokcet` is \"/run/weft\""),
        ] {
            let error = strict(&with(key, value.clone())).unwrap_err();
            assert_eq!(error.code, Code(2));
            assert!(error.details.contains(names), "{error}");
            NetConf::read(&with(key, value), Strictness::Lenient).unwrap();
        }
    }

    #[test]
    fn what_is_wrong_is_refused_with_the_right_code() {
        for (config, code) in [
            (json!(null), 7),
            (json!([]), 7),
            (json!({ "cniVersion": "1.0.0", "type": "weft-cni" }), 7),
            (json!({ "cniVersion": "1.0.0", "name": "weft" }), 7),
            (with("name", json!("a b")), 7),
            (with("name", json!(5)), 7),
            (with("socket", json!("relative")), 7),
            (with("cniVersion", json!(1)), 7),
            (with("cniVersion", json!("9.0.0")), 1),
            (with("prevResult", json!({ "ips": 7 })), 6),
            (with("prevResult", json!({ "cniVersion": "7" })), 1),
        ] {
            assert_eq!(strict(&config).unwrap_err().code, Code(code), "{config}");
        }
    }

    #[test]
    fn labels_come_as_a_list_or_as_an_object() {
        let labels = |value: Value| strict(&with("args", json!({ "cni": { "labels": value } })));
        let wanted: BTreeMap<_, _> =
            [("app", "web"), ("tier", "")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let list = json!([{ "key": "app", "value": "web" }, { "key": "tier", "value": "" }]);
        assert_eq!(labels(list).unwrap().labels, wanted);
        assert_eq!(labels(json!({ "app": "web", "tier": "" })).unwrap().labels, wanted);
        assert!(labels(Value::Null).unwrap().labels.is_empty());
        let twice = json!([{ "key": "app", "value": "a" }, { "key": "app", "value": "b" }]);
        for wrong in [json!("app=web"), json!([{ "key": "app" }]), json!({ "app": 1 }), twice] {
            let config = with("args", json!({ "cni": { "labels": wrong } }));
            let error = strict(&config).unwrap_err();
            assert_eq!(error.code, Code(7));
            assert!(error.details.contains("args.cni.labels"), "{error}");
            NetConf::read(&config, Strictness::Lenient).unwrap();
        }
    }

    #[test]
    fn a_previous_result_may_have_another_version() {
        let previous = json!({ "cniVersion": "0.2.0", "ip4": { "ip": "10.1.0.5/16" } });
        let conf = strict(&with("prevResult", previous)).unwrap();
        assert_eq!(conf.previous.unwrap().ips[0].address.to_string(), "10.1.0.5/16");
    }

    proptest! {
        #[test]
        fn hostile_configurations_never_panic(
            key in prop::sample::select(READ.to_vec()),
            text in "\\PC{0,20}",
        ) {
            for value in [json!(text), json!([text]), json!({ text.clone(): text }), json!(7)] {
                let config = with(key, value);
                let _ = strict(&config);
                let _ = NetConf::read(&config, Strictness::Lenient);
            }
        }
    }
}
