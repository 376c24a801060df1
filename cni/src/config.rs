//! The network configuration that a runtime passes on standard input (CNI specification 1.1, "Plugin
//! configuration objects").

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::args::is_name;
use crate::delegate::is_plugin_name;
use crate::error::{CniError, Code};
use crate::result::{CniResult, Dns, Route, Version};
use crate::wish::{self, Bandwidth, Mac, PortMapping};

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

/// What a list is called that is for the network of the node, whatever that is called.
pub const DEFAULT_NAME: &str = "weft";

/// A configuration that was read and understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetConf {
    /// `cniVersion`: the version in which the answer is written.
    pub version: Version,
    /// `name`: the network's name.
    pub name: String,
    /// `network`: the daemon's network, where the list has a name of its own.
    pub network: Option<String>,
    /// `socket`: where the daemon listens.
    pub socket: PathBuf,
    /// `prevResult`: what the plugins before us in the chain did; for CHECK, what ADD promised.
    pub previous: Option<CniResult>,
    /// `args.cni.labels`: the pod's labels, if the runtime tells them (CONVENTIONS.md of the
    /// specification, "args in network config").
    pub labels: BTreeMap<String, String>,
    /// The addresses that the container is to have (`runtimeConfig.ips`, `args.cni.ips`).
    pub ips: Vec<IpAddr>,
    /// The Ethernet address that the interface is to have (`runtimeConfig.mac`).
    pub mac: Option<Mac>,
    /// How fast the container may send and receive (`runtimeConfig.bandwidth`).
    pub bandwidth: Option<Bandwidth>,
    /// The node's ports that are to lead to the container (`runtimeConfig.portMappings`).
    pub port_mappings: Vec<PortMapping>,
    /// What the result says of name servers (`runtimeConfig.dns`, `dns`).
    pub dns: Dns,
    /// `ipam.type`: another plugin, which hands out the addresses.
    pub delegate: Option<String>,
    /// Only addresses are asked for: `type` is another plugin, and `ipam.type` this one.
    pub is_ipam: bool,
    /// `ipam.routes`, where only addresses are asked for.
    pub routes: Vec<Route>,
    /// `cni.dev/valid-attachments`: for GC, what is still in use, as container id and interface.
    pub valid: Option<Vec<(String, String)>>,
}

/// What the runtime or the list may put into every plugin's configuration and what does not ask for
/// anything: `capabilities` only announces, `ipMasq` is optional by the specification.
const IGNORED: [&str; 2] = ["capabilities", "ipMasq"];

/// What runtimes tell and what does not ask for anything.
const TOLD: [&str; 2] = ["cgroupPath", "io.kubernetes.cri.pod-annotations"];

/// Parts of `runtimeConfig` that are honoured, as `capabilities` of a network list names them.
pub const CAPABILITIES: [&str; 5] = ["ips", "mac", "dns", "bandwidth", "portMappings"];

/// Keys that are read, below. Of `args`, what is not known is to be ignored.
const READ: [&str; 10] = [
    "cniVersion",
    "name",
    "type",
    "prevResult",
    "socket",
    "network",
    "ipam",
    "runtimeConfig",
    "args",
    "dns",
];

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
        let ipam = object.get("ipam").and_then(Value::as_object).filter(|_| is_ipam(object));
        let socket = match text(ipam.unwrap_or(object), "socket")? {
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
        let mut conf = Self {
            version,
            name: name.to_owned(),
            network: None,
            socket: socket.into(),
            previous,
            labels: BTreeMap::new(),
            ips: Vec::new(),
            mac: None,
            bandwidth: None,
            port_mappings: Vec::new(),
            dns: Dns::default(),
            delegate: None,
            is_ipam: is_ipam(object),
            routes: Vec::new(),
            valid: valid_attachments(object)?,
        };
        if !conf.is_ipam {
            conf.delegate = match strictness {
                Strictness::Strict => delegate_of(object)?,
                Strictness::Lenient => delegate_of(object).unwrap_or_default(),
            };
        }
        if strictness == Strictness::Strict {
            conf.network = text(object, "network")?.map(str::to_owned);
            conf.labels = labels_of(object)?;
            conf.ips = ips_of(object)?;
            conf.mac = mac_of(object)?;
            conf.bandwidth = bandwidth_of(object)?;
            if !conf.is_ipam {
                // Otherwise they are for the plugin that makes the interface.
                conf.port_mappings = port_mappings_of(object)?;
            }
            conf.dns = dns_of(object)?;
            conf.routes = routes_of(object)?;
        }
        Ok(conf)
    }

    /// Whether pods of this list may be in the network `own`, the only one that a daemon has. One that is called
    /// otherwise must not end up in it by mistake.
    ///
    /// # Errors
    /// Code 7 when the list is for another network.
    pub fn check_network(&self, own: &str) -> Result<(), CniError> {
        let (key, value) = match &self.network {
            Some(network) => ("network", network),
            None if self.name == DEFAULT_NAME => return Ok(()),
            None => ("name", &self.name),
        };
        if value == own {
            return Ok(());
        }
        Err(invalid(format!(
            "`{key}` is {value:.64?}, and this node is in the network {own:?}, the only one that its weftd has. If pods \
             of this list are to be in that one, write \"network\": {own:?}"
        )))
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

/// The addresses of `runtimeConfig.ips` and `args.cni.ips` (CONVENTIONS.md of the specification).
fn ips_of(object: &Map<String, Value>) -> Result<Vec<IpAddr>, CniError> {
    let capability = object.get("runtimeConfig").and_then(|wishes| wishes.get("ips"));
    let argument = object.get("args").and_then(|args| args.get("cni")?.get("ips"));
    let mut ips = Vec::new();
    for (key, list) in [("runtimeConfig.ips", capability), ("args.cni.ips", argument)] {
        let list = match list {
            None | Some(Value::Null) => continue,
            Some(Value::Array(list)) => list,
            Some(other) => {
                return Err(invalid(format!("`{key}` is {:.64}: give a list", other.to_string())));
            }
        };
        for entry in list {
            let text = entry.as_str().unwrap_or_default();
            let ip = wish::address(text).ok_or_else(|| {
                invalid(format!(
                    "`{key}` has {:.64}: give addresses such as \"10.244.1.9\"",
                    entry.to_string()
                ))
            })?;
            wish::add(&mut ips, ip).map_err(|why| invalid(format!("`{key}`: {why}")))?;
        }
    }
    Ok(ips)
}

fn mac_of(object: &Map<String, Value>) -> Result<Option<Mac>, CniError> {
    let wishes = object.get("runtimeConfig").and_then(Value::as_object);
    let Some(text) = wishes.map(|wishes| text(wishes, "mac")).transpose()?.flatten() else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(None);
    }
    let mac = wish::mac(text).map_err(|why| invalid(format!("`runtimeConfig.mac`: {why}")))?;
    Ok(Some(mac))
}

fn bandwidth_of(object: &Map<String, Value>) -> Result<Option<Bandwidth>, CniError> {
    let wish = object.get("runtimeConfig").and_then(|wishes| wishes.get("bandwidth"));
    let Some(wish) = wish.filter(|wish| !is_empty(wish)) else { return Ok(None) };
    let wanted = wish::bandwidth(wish)
        .map_err(|why| invalid(format!("`runtimeConfig.bandwidth`: {why}")))?;
    Ok(Some(wanted).filter(|wanted| *wanted != Bandwidth::default()))
}

fn port_mappings_of(object: &Map<String, Value>) -> Result<Vec<PortMapping>, CniError> {
    let wish = object.get("runtimeConfig").and_then(|wishes| wishes.get("portMappings"));
    let Some(wish) = wish.filter(|wish| !is_empty(wish)) else { return Ok(Vec::new()) };
    wish::port_mappings(wish).map_err(|why| invalid(format!("`runtimeConfig.portMappings`: {why}")))
}

/// `runtimeConfig.dns` goes before `dns` of the list, as the runtime knows the pod.
fn dns_of(object: &Map<String, Value>) -> Result<Dns, CniError> {
    #[derive(serde::Deserialize)]
    struct Capability {
        #[serde(default)]
        servers: Vec<String>,
        #[serde(default)]
        searches: Vec<String>,
        #[serde(default)]
        options: Vec<String>,
    }
    let wish = object.get("runtimeConfig").and_then(|wishes| wishes.get("dns"));
    let unreadable =
        |key: &str, error: serde_json::Error| invalid(format!("`{key}` cannot be read: {error}"));
    if let Some(wish) = wish.filter(|wish| !is_empty(wish)) {
        let Capability { servers, searches, options } = serde_json::from_value(wish.clone())
            .map_err(|error| unreadable("runtimeConfig.dns", error))?;
        return Ok(Dns { nameservers: servers, search: searches, options, ..Dns::default() });
    }
    match object.get("dns").filter(|dns| !is_empty(dns)) {
        Some(dns) => serde_json::from_value(dns.clone()).map_err(|error| unreadable("dns", error)),
        None => Ok(Dns::default()),
    }
}

/// `cni.dev/valid-attachments` of the specification; libcni wrote it as `cni.dev/attachments` at first.
fn valid_attachments(
    object: &Map<String, Value>,
) -> Result<Option<Vec<(String, String)>>, CniError> {
    const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    #[derive(serde::Deserialize)]
    struct Valid {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    let found = KEYS.iter().find_map(|key| Some((key, object.get(*key)?)));
    let Some((key, list)) = found else { return Ok(None) };
    let list: Vec<Valid> = serde_json::from_value(list.clone())
        .map_err(|error| invalid(format!("`{key}` cannot be read: {error}")))?;
    Ok(Some(list.into_iter().map(|valid| (valid.container_id, valid.ifname)).collect()))
}

/// What this plugin is called.
pub const PLUGIN: &str = "weft-cni";

/// Another plugin's configuration, which names this one for the addresses.
fn is_ipam(object: &Map<String, Value>) -> bool {
    let named = |value: Option<&Value>| value.and_then(Value::as_str) == Some(PLUGIN);
    let ipam = object.get("ipam").and_then(|ipam| ipam.get("type"));
    named(ipam) && object.get("type").is_some_and(|own| !named(Some(own)))
}

/// The plugin that hands out the addresses, if it is not this one.
fn delegate_of(object: &Map<String, Value>) -> Result<Option<String>, CniError> {
    let ipam = object.get("ipam").and_then(Value::as_object);
    let Some(name) = ipam.map(|ipam| text(ipam, "type")).transpose()?.flatten() else {
        return Ok(None);
    };
    match name {
        PLUGIN => Ok(None),
        "dhcp" => Err(unsupported(
            "ipam.type",
            &Value::from(name),
            "pods' interfaces are routed, so a DHCP server's answers do not come to them; addresses come \
             from weftd when `ipam` is removed, or from `host-local` or `static`",
        )),
        name if is_plugin_name(name) => Ok(Some(name.to_owned())),
        name => Err(invalid(format!("`ipam.type` is {name:.64?}: give the name of a plugin"))),
    }
}

fn routes_of(object: &Map<String, Value>) -> Result<Vec<Route>, CniError> {
    match object.get("ipam").and_then(|ipam| ipam.get("routes")).filter(|_| is_ipam(object)) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(routes) => serde_json::from_value(routes.clone())
            .map_err(|error| invalid(format!("`ipam.routes` cannot be read: {error}"))),
    }
}

fn refuse_unsupported(object: &Map<String, Value>) -> Result<(), CniError> {
    if is_ipam(object) {
        // The rest is the other plugin's.
        return refuse_unknown_ipam(object, &["type", "socket", "routes"]);
    }
    if object.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str) == Some(PLUGIN)
    {
        refuse_unknown_ipam(object, &["type"])?;
    }
    if let Some(ipam) = object.get("ipam").and_then(Value::as_object)
        && !ipam.contains_key("type")
        && let Some((key, value)) = ipam.iter().next()
    {
        return Err(unsupported(
            &format!("ipam.{key}"),
            value,
            "addresses come from weftd; remove `ipam` from the configuration",
        ));
    }
    if let Some(wishes) = object.get("runtimeConfig").and_then(Value::as_object)
        && let Some((key, value)) = wishes.iter().find(|(key, value)| {
            !is_empty(value)
                && !CAPABILITIES.contains(&key.as_str())
                && !TOLD.contains(&key.as_str())
        })
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

fn refuse_unknown_ipam(object: &Map<String, Value>, known: &[&str]) -> Result<(), CniError> {
    let ipam = object.get("ipam").and_then(Value::as_object);
    let unknown = ipam.and_then(|ipam| ipam.iter().find(|(key, _)| !known.contains(&key.as_str())));
    match unknown {
        Some((key, value)) => Err(unsupported(
            &format!("ipam.{key}"),
            value,
            "addresses come out of the node's lease, by the rules under [ipam] of weft.toml",
        )),
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
    fn a_list_for_another_network_is_told_from_one_with_another_name() {
        let check = |name: &str, network: Option<&str>| {
            let mut config = with("name", json!(name));
            config["network"] = json!(network);
            strict(&config).unwrap().check_network("prod").map_err(|error| error.details)
        };
        assert_eq!(check("weft", None), Ok(()));
        assert_eq!(check("prod", None), Ok(()));
        assert_eq!(check("podman", Some("prod")), Ok(()));
        let why = check("blue", None).unwrap_err();
        assert!(
            why.starts_with("`name` is \"blue\", and this node is in the network \"prod\""),
            "{why}"
        );
        assert!(why.ends_with("write \"network\": \"prod\""), "{why}");
        assert!(check("weft", Some("blue")).unwrap_err().starts_with("`network` is \"blue\""));
    }

    #[test]
    fn ports_are_for_whoever_makes_the_interface() {
        let wish = json!({ "portMappings": [{ "hostPort": 8080, "containerPort": 80 }] });
        let conf = strict(&with("runtimeConfig", wish.clone())).unwrap();
        assert_eq!((conf.port_mappings.len(), conf.port_mappings[0].host_port), (1, 8080));
        let mut bridge = with("runtimeConfig", wish);
        bridge["type"] = json!("bridge");
        bridge["ipam"] = json!({ "type": "weft-cni" });
        assert_eq!(strict(&bridge).unwrap().port_mappings, []);
        let wrong = json!({ "portMappings": [{ "hostPort": 70000, "containerPort": 80 }] });
        let error = strict(&with("runtimeConfig", wrong.clone())).unwrap_err();
        assert_eq!(error.code, Code::INVALID_CONFIG);
        assert!(error.details.contains("`runtimeConfig.portMappings`: hostPort 70000"), "{error}");
        let lenient = NetConf::read(&with("runtimeConfig", wrong), Strictness::Lenient);
        assert_eq!(lenient.unwrap().port_mappings, [], "DEL works whatever it says");
    }

    #[test]
    fn the_smallest_configuration() {
        let conf = strict(&json!({ "cniVersion": "1.0.0", "name": "weft", "type": "weft-cni" }));
        assert_eq!(
            conf.unwrap(),
            NetConf {
                version: Version::V1_0_0,
                name: "weft".into(),
                network: None,
                socket: DEFAULT_SOCKET.into(),
                previous: None,
                labels: BTreeMap::new(),
                ips: Vec::new(),
                mac: None,
                bandwidth: None,
                port_mappings: Vec::new(),
                dns: Dns::default(),
                delegate: None,
                is_ipam: false,
                routes: Vec::new(),
                valid: None,
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
            ("ipam", json!({ "type": "dhcp" }), "`ipam.type` is \"dhcp\""),
            ("ipam", json!({ "subnet": "10.0.0.0/8" }), "`ipam.subnet` is \"10.0.0.0/8\""),
            ("ipam", json!({ "type": "weft-cni", "subnet": "a" }), "`ipam.subnet` is \"a\""),
            (
                "runtimeConfig",
                json!({ "infinibandGUID": "c2:11" }),
                "`runtimeConfig.infinibandGUID` is \"c2:11\"",
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
    fn the_addresses_may_be_another_plugins_and_those_of_others_ours() {
        let conf = strict(&with("ipam", json!({ "type": "host-local", "ranges": [] }))).unwrap();
        assert_eq!((conf.delegate.as_deref(), conf.is_ipam), (Some("host-local"), false));
        let own = strict(&with("ipam", json!({ "type": "weft-cni" }))).unwrap();
        assert_eq!((own.delegate, own.is_ipam), (None, false));
        assert_eq!(strict(&with("ipam", json!({ "type": "../x" }))).unwrap_err().code, Code(7));

        let mut bridge = with("type", json!("bridge"));
        bridge["isGateway"] = json!(true);
        bridge["ipam"] = json!({ "type": "weft-cni", "socket": "/run/other.sock", "routes": [{ "dst": "0.0.0.0/0" }] });
        let conf = strict(&bridge).unwrap();
        assert!(conf.is_ipam && conf.delegate.is_none() && conf.routes.len() == 1);
        assert_eq!(conf.socket, PathBuf::from("/run/other.sock"));
        bridge["ipam"]["subnet"] = json!("10.0.0.0/8");
        assert_eq!(strict(&bridge).unwrap_err().code, Code(2));
    }

    #[test]
    fn addresses_are_asked_for_in_two_places_that_agree() {
        let both = |capability: Value, argument: Value| {
            let mut config = with("runtimeConfig", json!({ "ips": capability }));
            config["args"] = json!({ "cni": { "ips": argument } });
            strict(&config).map(|conf| conf.ips)
        };
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(both(json!(["10.244.1.9/24"]), Value::Null).unwrap(), [ip("10.244.1.9")]);
        let dual = both(json!(["10.244.1.9", "fd00::9/64"]), json!(["10.244.1.9"])).unwrap();
        assert_eq!(dual, [ip("10.244.1.9"), ip("fd00::9")]);
        for (capability, argument) in [
            (json!(["10.244.1.9"]), json!(["10.244.1.10"])),
            (json!(["10.244.1.9", "10.244.1.10"]), Value::Null),
            (json!("10.244.1.9"), Value::Null),
            (json!([7]), Value::Null),
            (Value::Null, json!(["10.244.1"])),
        ] {
            let error = both(capability, argument).unwrap_err();
            assert_eq!(error.code, Code(7), "{error}");
            assert!(error.details.contains("ips`"), "{error}");
        }
    }

    #[test]
    fn a_mac_address_is_one_of_an_interface() {
        let mac = |text: &str| strict(&with("runtimeConfig", json!({ "mac": text })));
        assert_eq!(
            mac("C2:11:22:33:44:55").unwrap().mac,
            Some([0xc2, 0x11, 0x22, 0x33, 0x44, 0x55])
        );
        for wrong in ["01:00:5e:00:00:01", "00:00:00:00:00:00", "c2:11:22:33:44", "nonsense"] {
            assert_eq!(mac(wrong).unwrap_err().code, Code(7), "{wrong}");
        }
    }

    #[test]
    fn name_servers_come_from_the_runtime_or_the_list() {
        let mut config = with("dns", json!({ "nameservers": ["10.1.0.1"], "domain": "a.example" }));
        assert_eq!(strict(&config).unwrap().dns.nameservers, ["10.1.0.1"]);
        config["runtimeConfig"] = json!({ "dns": { "servers": ["10.96.0.10"], "searches": ["b.example"], "options": [] } });
        let dns = strict(&config).unwrap().dns;
        assert_eq!(
            (dns.nameservers, dns.search),
            (vec!["10.96.0.10".into()], vec!["b.example".into()])
        );
        assert_eq!(strict(&with("dns", json!({ "nameservers": 7 }))).unwrap_err().code, Code(7));
    }

    #[test]
    fn valid_attachments_have_two_spellings() {
        let list = json!([{ "containerID": "a", "ifname": "eth0" }, { "containerID": "b", "ifname": "net1" }]);
        let expected =
            vec![("a".to_owned(), "eth0".to_owned()), ("b".to_owned(), "net1".to_owned())];
        for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
            let conf = NetConf::read(&with(key, list.clone()), Strictness::Lenient).unwrap();
            assert_eq!(conf.valid, Some(expected.clone()));
        }
        let wrong =
            NetConf::read(&with("cni.dev/valid-attachments", json!(["a"])), Strictness::Lenient);
        assert_eq!(wrong.unwrap_err().code, Code(7));
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
