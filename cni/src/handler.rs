//! What a CNI request means, and what to answer (pure).
//!
//! The shim interprets a request before it calls the daemon, so that what is wrong is refused even when
//! the daemon is down; the daemon interprets it again, because it trusts nobody.

use std::net::IpAddr;
use std::path::PathBuf;

use ipnetwork::IpNetwork;

use crate::args::{Command, Environment};
use crate::config::{NetConf, Strictness};
use crate::error::{CniError, Code};
use crate::result::{CniResult, Interface, Ip, Route, Version};
use crate::rpc::CniRequest;
use crate::wish::{self, Mac};

/// A request that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verb {
    /// Attach a container.
    Add(Attach),
    /// Detach a container. Repeating it is not an error, and neither is a namespace that is gone.
    Del(Detach),
    /// Compare an attachment with what was promised.
    Check(Check),
    /// Release whatever of the network is not listed.
    Gc(Collect),
    /// Say whether ADD would work with this configuration.
    Status(NetConf),
}

/// What ADD asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attach {
    /// The container's id.
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
    /// The path of the container's namespace.
    pub netns: PathBuf,
    /// The pod, if the runtime named it.
    pub pod: Option<PodIdentity>,
    /// The addresses that it is to have and no others, at most one per family: asked for by `ips`, `CNI_ARGS`
    /// or `args.cni`, or chosen by another IPAM plugin.
    pub ips: Vec<IpAddr>,
    /// The Ethernet address that it is to have.
    pub mac: Option<Mac>,
    /// Whether another IPAM plugin chose the addresses.
    pub is_delegated: bool,
    /// The configuration.
    pub conf: NetConf,
}

/// What GC asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Collect {
    /// The name of the network.
    pub network: String,
    /// What stays, as container id and interface. Everything else of the network goes.
    pub valid: Vec<(String, String)>,
}

/// What DEL asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Detach {
    /// The container's id.
    pub container_id: String,
    /// The interface's name inside the container.
    pub ifname: String,
    /// The path of the container's namespace, if there still is one.
    pub netns: Option<PathBuf>,
    /// The name of the network.
    pub network: String,
}

/// What CHECK asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The attachment, as at ADD.
    pub attach: Attach,
    /// What ADD had promised, other plugins' parts included.
    pub promised: CniResult,
}

/// A pod, as the runtime names it in `CNI_ARGS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodIdentity {
    /// `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// `K8S_POD_NAME`.
    pub name: String,
    /// `K8S_POD_UID`, which older runtimes do not give.
    pub uid: Option<String>,
}

/// What an attachment was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigned {
    /// The interface's Ethernet address.
    pub mac: [u8; 6],
    /// The interface's MTU in bytes.
    pub mtu: u32,
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpAddr>,
    /// The gateways, at most one per family.
    pub gateways: Vec<IpAddr>,
}

/// Interprets a request.
///
/// # Errors
/// With the code that the specification has for it. VERSION is refused: the shim answers it alone.
pub fn interpret(request: &CniRequest) -> Result<Verb, CniError> {
    let CniRequest { environment, config, .. } = request;
    environment.validate()?;
    let strictness = match environment.command {
        Command::Del | Command::Gc => Strictness::Lenient,
        Command::Add | Command::Check | Command::Status | Command::Version => Strictness::Strict,
    };
    let conf = NetConf::read(config, strictness)?;
    match environment.command {
        Command::Add => Ok(Verb::Add(attach(request, conf)?)),
        Command::Del => Ok(Verb::Del(Detach {
            container_id: environment.container_id.clone(),
            ifname: environment.ifname.clone(),
            netns: Some(&environment.netns).filter(|path| !path.is_empty()).map(PathBuf::from),
            network: conf.name,
        })),
        Command::Check => {
            since(Version::V0_4_0, conf.version, Command::Check)?;
            let promised = conf.previous.clone().ok_or_else(|| {
                CniError::new(Code::INVALID_CONFIG, "invalid network configuration")
                    .with_details("`prevResult` is missing, and CHECK compares with it")
            })?;
            Ok(Verb::Check(Check { attach: attach(request, conf)?, promised }))
        }
        Command::Gc => {
            since(Version::V1_1_0, conf.version, Command::Gc)?;
            // A list that is missing is not one that is empty: that would release everything.
            let valid = conf.valid.ok_or_else(|| {
                CniError::new(Code::INVALID_CONFIG, "invalid network configuration").with_details(
                    "`cni.dev/valid-attachments` is missing, and GC releases what is not in it",
                )
            })?;
            Ok(Verb::Gc(Collect { network: conf.name, valid }))
        }
        Command::Status => {
            since(Version::V1_1_0, conf.version, Command::Status)?;
            Ok(Verb::Status(conf))
        }
        Command::Version => Err(CniError::new(
            Code::INVALID_ENVIRONMENT,
            "VERSION is answered by the plugin, not by the daemon",
        )),
    }
}

/// The result of an ADD: what the plugins before us did, then our part.
pub fn add_result(attach: &Attach, assigned: &Assigned) -> CniResult {
    add_result_via(attach, assigned, &assigned.gateways)
}

/// As [`add_result`], for an interface whose default routes lead to `defaults` only: of several interfaces
/// of a pod, one has the default routes (see [`crate::link::default_gateways`]).
pub fn add_result_via(attach: &Attach, assigned: &Assigned, defaults: &[IpAddr]) -> CniResult {
    let gateway_for = |address: &IpAddr| {
        assigned.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    };
    let ours = CniResult {
        interfaces: vec![Interface {
            name: attach.ifname.clone(),
            mac: mac_text(assigned.mac),
            mtu: Some(assigned.mtu),
            sandbox: attach.netns.display().to_string(),
            ..Interface::default()
        }],
        ips: assigned
            .addresses
            .iter()
            .map(|address| Ip {
                address: IpNetwork::from(*address),
                gateway: gateway_for(address),
                interface: Some(0),
            })
            .collect(),
        routes: defaults.iter().map(|gw| Route::via(default_for(*gw), *gw)).collect(),
        dns: attach.conf.dns.clone(),
    };
    let mut result = attach.conf.previous.clone().unwrap_or_default();
    result.append(ours);
    result
}

/// The result of an ADD as IPAM plugin: addresses in their subnets, and no interface (CNI specification 1.1,
/// "Delegated plugins").
pub fn ipam_result(attach: &Attach, assigned: &Assigned, leases: &[IpNetwork]) -> CniResult {
    let ips = assigned.addresses.iter().map(|address| {
        let lease = leases.iter().find(|lease| lease.contains(*address));
        let subnet = lease.and_then(|lease| IpNetwork::new(*address, lease.prefix()).ok());
        Ip {
            address: subnet.unwrap_or_else(|| IpNetwork::from(*address)),
            gateway: assigned.gateways.iter().copied().find(|gw| gw.is_ipv4() == address.is_ipv4()),
            interface: None,
        }
    });
    CniResult {
        ips: ips.collect(),
        routes: attach.conf.routes.clone(),
        dns: attach.conf.dns.clone(),
        ..CniResult::default()
    }
}

/// Names the assigned addresses that the whole result does not promise, where we only gave addresses.
pub fn missing_addresses(check: &Check, assigned: &Assigned) -> Vec<String> {
    let is_promised =
        |address: &&IpAddr| check.promised.ips.iter().any(|ip| ip.address.ip() == **address);
    let missing = assigned.addresses.iter().filter(|address| !is_promised(address));
    missing.map(|address| format!("address {address}: assigned, but not promised")).collect()
}

/// Names what was promised at ADD and is not what we remember having given. What other plugins of the
/// chain added is their business. The list is empty when all is as promised.
pub fn broken_promises(check: &Check, assigned: &Assigned) -> Vec<String> {
    let Check { attach, promised } = check;
    let ours =
        |interface: &Interface| interface.name == attach.ifname && !interface.sandbox.is_empty();
    let Some(ix) = promised.interfaces.iter().position(ours) else {
        return vec![format!("the result of ADD has no interface {}", attach.ifname)];
    };
    let mut broken = Vec::new();
    let mac = mac_text(assigned.mac);
    let promised_mac = &promised.interfaces[ix].mac;
    if !promised_mac.is_empty() && !promised_mac.eq_ignore_ascii_case(&mac) {
        broken.push(format!("MAC: promised {promised_mac:.64}, assigned {mac}"));
    }
    let given: Vec<IpAddr> = promised
        .ips
        .iter()
        .filter(|ip| ip.interface == Some(ix))
        .map(|ip| ip.address.ip())
        .collect();
    for address in given.iter().filter(|address| !assigned.addresses.contains(address)) {
        broken.push(format!("address {address}: promised, but not assigned"));
    }
    for address in assigned.addresses.iter().filter(|address| !given.contains(address)) {
        broken.push(format!("address {address}: assigned, but not promised"));
    }
    broken
}

/// The MTU that the result of ADD, or a plugin behind us, promises for our interface.
pub fn promised_mtu(check: &Check) -> Option<u32> {
    let ours = |interface: &&Interface| {
        interface.name == check.attach.ifname && !interface.sandbox.is_empty()
    };
    check.promised.interfaces.iter().find(ours)?.mtu
}

fn attach(request: &CniRequest, conf: NetConf) -> Result<Attach, CniError> {
    let environment = &request.environment;
    let arguments = Arguments::read(environment)?;
    let mut ips = conf.ips.clone();
    let chosen = request.delegated.iter().flatten();
    for ip in arguments.ips.iter().chain(chosen) {
        wish::add(&mut ips, *ip).map_err(|why| {
            CniError::new(Code::INVALID_CONFIG, "contradicting addresses").with_details(why)
        })?;
    }
    let mac = match (conf.mac, arguments.mac) {
        (Some(one), Some(other)) if one != other => {
            return Err(CniError::new(Code::INVALID_CONFIG, "contradicting MAC addresses")
                .with_details("`runtimeConfig.mac` and MAC in CNI_ARGS are not the same"));
        }
        (one, other) => one.or(other),
    };
    Ok(Attach {
        container_id: environment.container_id.clone(),
        ifname: environment.ifname.clone(),
        netns: environment.netns.clone().into(),
        pod: arguments.pod,
        ips,
        mac,
        is_delegated: request.delegated.is_some(),
        conf,
    })
}

/// What `CNI_ARGS` asks for.
struct Arguments {
    pod: Option<PodIdentity>,
    ips: Vec<IpAddr>,
    mac: Option<Mac>,
}

impl Arguments {
    fn read(environment: &Environment) -> Result<Self, CniError> {
        let wrong = |why: String| {
            CniError::new(Code::INVALID_ENVIRONMENT, "environment variables are missing or wrong")
                .with_details(format!("CNI_ARGS: {why}"))
        };
        let (mut ips, mut mac) = (Vec::new(), None);
        for (key, value) in environment.pairs()? {
            match key {
                "IP" => {
                    for text in value.split(',').filter(|text| !text.is_empty()) {
                        let ip = wish::address(text).ok_or_else(|| {
                            wrong(format!("IP has {text:.64?}, which is no address"))
                        })?;
                        wish::add(&mut ips, ip).map_err(wrong)?;
                    }
                }
                "MAC" if !value.is_empty() => mac = Some(wish::mac(value).map_err(wrong)?),
                _ => {}
            }
        }
        Ok(Self { pod: pod_identity(environment)?, ips, mac })
    }
}

/// Reads `CNI_ARGS`. A key that we do not know is an error unless the runtime says `IgnoreUnknown`,
/// which is the convention (CONVENTIONS.md of the specification, "CNI_ARGS").
fn pod_identity(environment: &Environment) -> Result<Option<PodIdentity>, CniError> {
    let (mut namespace, mut name, mut uid) = (None, None, None);
    let (mut ignore_unknown, mut unknown) = (false, None);
    for (key, value) in environment.pairs()? {
        match key {
            "K8S_POD_NAMESPACE" => namespace = Some(value),
            "K8S_POD_NAME" => name = Some(value),
            "K8S_POD_UID" => uid = Some(value).filter(|uid| !uid.is_empty()),
            "K8S_POD_INFRA_CONTAINER_ID" | "IP" | "MAC" => {}
            "IgnoreUnknown" => {
                ignore_unknown = matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True");
            }
            _ => unknown = unknown.or(Some((key, value))),
        }
    }
    if let (Some((key, value)), false) = (unknown, ignore_unknown) {
        return Err(CniError::new(Code::UNSUPPORTED_FIELD, "unsupported key in CNI_ARGS")
            .with_details(format!(
                "`{key:.64}` is {value:.64?}: remove it, or add IgnoreUnknown=1"
            )));
    }
    match (namespace, name) {
        (Some(namespace), Some(name)) if !namespace.is_empty() && !name.is_empty() => {
            Ok(Some(PodIdentity {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: uid.map(str::to_owned),
            }))
        }
        _ => Ok(None),
    }
}

fn since(first: Version, version: Version, command: Command) -> Result<(), CniError> {
    if version >= first {
        return Ok(());
    }
    Err(CniError::new(
        Code::INCOMPATIBLE_VERSION,
        format!("the configuration does not allow {command}"),
    )
    .with_details(format!(
        "{command} exists since {}, and cniVersion is {}",
        first.as_str(),
        version.as_str()
    )))
}

fn default_for(gateway: IpAddr) -> IpNetwork {
    let any: IpAddr = match gateway {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNetwork::new(any, 0).expect("0 is a prefix length of either family")
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn request(command: Command, config: Value) -> CniRequest {
        CniRequest {
            environment: Environment {
                command,
                container_id: "c0ffee".into(),
                netns: "/run/netns/blue".into(),
                ifname: "eth0".into(),
                args: "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;COLOR=1".into(),
            },
            config,
            delegated: None,
        }
    }

    fn config(version: &str) -> Value {
        json!({ "cniVersion": version, "name": "weft", "type": "weft-cni" })
    }

    fn assigned() -> Assigned {
        Assigned {
            mac: [0x0a, 0x58, 0x0a, 0xf4, 0x01, 0x05],
            mtu: 1450,
            addresses: vec!["10.244.1.5".parse().unwrap(), "fd00:10:244:1::5".parse().unwrap()],
            gateways: vec!["10.244.1.1".parse().unwrap(), "fd00:10:244:1::1".parse().unwrap()],
        }
    }

    fn attach_of(request: &CniRequest) -> Attach {
        let Verb::Add(attach) = interpret(request).unwrap() else { panic!("not ADD") };
        attach
    }

    #[test]
    fn add_is_understood_and_answered() {
        let attach = attach_of(&request(Command::Add, config("1.1.0")));
        assert_eq!(
            attach.pod,
            Some(PodIdentity { namespace: "default".into(), name: "web-0".into(), uid: None })
        );
        assert_eq!(
            add_result(&attach, &assigned()).to_json(attach.conf.version),
            json!({
                "cniVersion": "1.1.0",
                "interfaces": [{
                    "name": "eth0", "mac": "0a:58:0a:f4:01:05", "mtu": 1450,
                    "sandbox": "/run/netns/blue"
                }],
                "ips": [
                    { "address": "10.244.1.5/32", "gateway": "10.244.1.1", "interface": 0 },
                    { "address": "fd00:10:244:1::5/128", "gateway": "fd00:10:244:1::1",
                      "interface": 0 }
                ],
                "routes": [
                    { "dst": "0.0.0.0/0", "gw": "10.244.1.1" },
                    { "dst": "::/0", "gw": "fd00:10:244:1::1" }
                ]
            })
        );
    }

    #[test]
    fn a_later_plugin_of_a_chain_passes_on_what_was_before() {
        let mut config = config("1.0.0");
        config["prevResult"] = json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "lo", "sandbox": "/run/netns/blue" }, { "name": "cni0" }],
            "ips": [{ "address": "127.0.0.1/8", "interface": 0 }],
            "dns": { "nameservers": ["10.1.0.1"] }
        });
        let attach = attach_of(&request(Command::Add, config));
        let result = add_result(&attach, &assigned()).to_json(attach.conf.version);
        assert_eq!(result["interfaces"][0], json!({ "name": "lo", "sandbox": "/run/netns/blue" }));
        assert_eq!(result["interfaces"][2]["name"], "eth0");
        assert_eq!(result["ips"][0], json!({ "address": "127.0.0.1/8", "interface": 0 }));
        assert_eq!(result["ips"][1]["interface"], 2);
        assert_eq!(result["dns"], json!({ "nameservers": ["10.1.0.1"] }));
    }

    #[test]
    fn del_works_without_namespace_and_with_a_configuration_of_yesterday() {
        let mut del = request(Command::Del, config("1.0.0"));
        del.environment.netns.clear();
        del.config["tomorrow"] = json!(true);
        del.config["prevResult"] = json!("nonsense");
        let expected = Verb::Del(Detach {
            container_id: "c0ffee".into(),
            ifname: "eth0".into(),
            netns: None,
            network: "weft".into(),
        });
        assert_eq!(interpret(&del).unwrap(), expected);
    }

    #[test]
    fn check_needs_the_result_of_add() {
        let error = interpret(&request(Command::Check, config("1.0.0"))).unwrap_err();
        assert_eq!(error.code, Code(7));
        assert!(error.details.contains("prevResult"), "{error}");
    }

    #[test]
    fn a_broken_promise_is_named() {
        let attach = attach_of(&request(Command::Add, config("1.0.0")));
        let mut config = config("1.0.0");
        config["prevResult"] = add_result(&attach, &assigned()).to_json(Version::V1_0_0);
        let Verb::Check(check) = interpret(&request(Command::Check, config)).unwrap() else {
            panic!("not CHECK");
        };
        assert_eq!(broken_promises(&check, &assigned()), Vec::<String>::new());
        let mut other = assigned();
        other.mac[5] = 6;
        other.addresses[0] = "10.244.1.6".parse().unwrap();
        assert_eq!(
            broken_promises(&check, &other),
            [
                "MAC: promised 0a:58:0a:f4:01:05, assigned 0a:58:0a:f4:01:06",
                "address 10.244.1.5: promised, but not assigned",
                "address 10.244.1.6: assigned, but not promised",
            ]
        );
        let mut elsewhere = check;
        elsewhere.attach.ifname = "net1".into();
        assert_eq!(broken_promises(&elsewhere, &assigned()).len(), 1);
    }

    #[test]
    fn commands_need_a_version_that_has_them() {
        for (command, version, code) in [
            (Command::Check, "0.3.1", Some(1)),
            (Command::Status, "1.0.0", Some(1)),
            (Command::Status, "1.1.0", None),
            (Command::Gc, "1.0.0", Some(1)),
            (Command::Gc, "1.1.0", Some(7)),
            (Command::Add, "0.1.0", None),
            (Command::Del, "0.1.0", None),
            (Command::Add, "3.0.0", Some(1)),
            (Command::Version, "1.0.0", Some(4)),
        ] {
            let answer = interpret(&request(command, config(version)));
            let found = answer.err().map(|error| error.code.0);
            assert_eq!(found, code, "{command} {version}");
        }
    }

    #[test]
    fn the_daemon_checks_the_environment_again() {
        let mut add = request(Command::Add, config("1.0.0"));
        add.environment.container_id = "../../etc".into();
        add.environment.ifname.clear();
        let error = interpret(&add).unwrap_err();
        assert_eq!(error.code, Code(4));
        assert!(error.details.contains("CNI_IFNAME is missing"), "{error}");
        assert!(error.details.contains("CNI_CONTAINERID"), "{error}");
    }

    #[test]
    fn unknown_args_are_an_error_unless_the_runtime_says_otherwise() {
        let mut add = request(Command::Add, config("1.0.0"));
        add.environment.args = "COLOR=red".into();
        let error = interpret(&add).unwrap_err();
        assert_eq!(error.code, Code(2));
        assert!(error.details.contains("`COLOR` is \"red\""), "{error}");
        add.environment.args = "COLOR=red;IgnoreUnknown=true".into();
        assert_eq!(attach_of(&add).pod, None);
    }

    #[test]
    fn addresses_are_asked_for_in_cni_args_too_and_nothing_may_contradict() {
        let mut add = request(Command::Add, config("1.0.0"));
        add.environment.args = "IP=10.244.1.9,fd00::9;MAC=c2:11:22:33:44:55".into();
        add.config["runtimeConfig"] = json!({ "ips": ["10.244.1.9/24"] });
        let asked = attach_of(&add);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(asked.ips, [ip("10.244.1.9"), ip("fd00::9")]);
        assert_eq!(asked.mac, Some([0xc2, 0x11, 0x22, 0x33, 0x44, 0x55]));
        add.config["runtimeConfig"] = json!({ "ips": ["10.244.1.10"] });
        assert_eq!(interpret(&add).unwrap_err().code, Code(7));
        add.config["runtimeConfig"] = json!({ "mac": "c2:11:22:33:44:56" });
        assert_eq!(interpret(&add).unwrap_err().code, Code(7));
        for wrong in ["IP=10.244.1", "IP=10.0.0.1,10.0.0.2", "MAC=01:00:00:00:00:01"] {
            add.environment.args = wrong.into();
            assert_eq!(interpret(&add).unwrap_err().code, Code(4), "{wrong}");
        }
    }

    #[test]
    fn what_another_plugin_chose_is_asked_for() {
        let mut add = request(Command::Add, config("1.0.0"));
        add.delegated = Some(vec!["10.244.1.9".parse().unwrap()]);
        let asked = attach_of(&add);
        assert_eq!((asked.ips.len(), asked.is_delegated), (1, true));
    }

    #[test]
    fn gc_says_what_stays() {
        let mut gc = request(Command::Gc, config("1.1.0"));
        gc.environment.container_id.clear();
        gc.environment.netns.clear();
        gc.environment.ifname.clear();
        gc.config["cni.dev/valid-attachments"] = json!([{ "containerID": "a", "ifname": "eth0" }]);
        gc.config["tomorrow"] = json!(true);
        let valid = vec![("a".to_owned(), "eth0".to_owned())];
        assert_eq!(interpret(&gc).unwrap(), Verb::Gc(Collect { network: "weft".into(), valid }));
    }
}
