//! What a plugin promises: the result of ADD, in each version of the specification.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::error::{CniError, Code};

/// A released version of the CNI specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(non_camel_case_types)]
pub enum Version {
    /// 0.1.0, also meant by a configuration that names no version.
    V0_1_0,
    /// 0.2.0.
    V0_2_0,
    /// 0.3.0: results with interfaces and lists of addresses.
    V0_3_0,
    /// 0.3.1.
    V0_3_1,
    /// 0.4.0: CHECK.
    V0_4_0,
    /// 1.0.0: addresses without a `version`.
    V1_0_0,
    /// 1.1.0: STATUS and GC, `mtu` in results.
    V1_1_0,
}

impl Version {
    /// Every supported version, oldest first.
    pub const ALL: [Self; 7] = [
        Self::V0_1_0,
        Self::V0_2_0,
        Self::V0_3_0,
        Self::V0_3_1,
        Self::V0_4_0,
        Self::V1_0_0,
        Self::V1_1_0,
    ];

    /// The newest.
    pub const LATEST: Self = Self::V1_1_0;

    /// As written in `cniVersion`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V0_1_0 => "0.1.0",
            Self::V0_2_0 => "0.2.0",
            Self::V0_3_0 => "0.3.0",
            Self::V0_3_1 => "0.3.1",
            Self::V0_4_0 => "0.4.0",
            Self::V1_0_0 => "1.0.0",
            Self::V1_1_0 => "1.1.0",
        }
    }

    /// Reads a `cniVersion`.
    ///
    /// # Errors
    /// Code 1 when the version is not supported.
    pub fn from_text(text: &str) -> Result<Self, CniError> {
        Self::ALL.into_iter().find(|version| version.as_str() == text).ok_or_else(|| {
            let supported = Self::ALL.map(Self::as_str).join(", ");
            CniError::new(Code::INCOMPATIBLE_VERSION, "incompatible CNI version").with_details(
                format!("cniVersion is {text:.64?}, and this plugin supports {supported}"),
            )
        })
    }
}

/// A result, in the form of version 1.1.0, which all others are converted from and to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CniResult {
    /// The interfaces made so far, in the container and on the host.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<Interface>,
    /// The addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ips: Vec<Ip>,
    /// The routes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub routes: Vec<Route>,
    /// Name servers, for the runtime's `resolv.conf`.
    #[serde(skip_serializing_if = "Dns::is_empty")]
    pub dns: Dns,
}

/// An interface of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mac: String,
    /// Its MTU in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The path of its namespace; empty on the host.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub sandbox: String,
    /// A socket that stands for it, as vhost-user has; since 1.1.0.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub socket_path: String,
    /// Its PCI address; since 1.1.0.
    #[serde(default, rename = "pciID", skip_serializing_if = "String::is_empty")]
    pub pci_id: String,
}

/// An address of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ip {
    /// The address with its prefix length.
    pub address: IpNetwork,
    /// The gateway of its subnet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
    /// Which of the interfaces has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

/// A route of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// The destination.
    pub dst: IpNetwork,
    /// The next hop; without one, the gateway of the addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gw: Option<IpAddr>,
    /// The MTU along it in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    /// The TCP MSS to advertise in bytes; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub advmss: Option<u32>,
    /// The metric, lower is better; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<u32>,
    /// The routing table; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// The scope; since 1.1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
}

impl Route {
    /// A route with nothing but a destination and a next hop.
    pub fn via(dst: IpNetwork, gw: IpAddr) -> Self {
        Self {
            dst,
            gw: Some(gw),
            mtu: None,
            advmss: None,
            priority: None,
            table: None,
            scope: None,
        }
    }
}

/// Name servers of a result.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dns {
    /// Their addresses, best first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub nameservers: Vec<String>,
    /// The domain for short names.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// The search list.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub search: Vec<String>,
    /// Options of the resolver.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

impl Dns {
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl CniResult {
    /// Reads a result of any version, as `prevResult` carries it.
    ///
    /// # Errors
    /// Code 6 when it is not one.
    pub fn from_json(version: Version, value: &Value) -> Result<Self, CniError> {
        let Value::Object(object) = value else {
            return Err(CniError::new(Code::DECODING_FAILURE, "the result is not a JSON object"));
        };
        // Empty lists may be written as null.
        let mut object = object.clone();
        object.retain(|_, field| !field.is_null());
        if version <= Version::V0_2_0 {
            return from_v0_2(object);
        }
        serde_json::from_value(object.into()).map_err(|error| unreadable(&error))
    }

    /// Writes the result in the form of `version`. What an older version cannot say is left out.
    pub fn to_json(&self, version: Version) -> Value {
        let mut value = if version <= Version::V0_2_0 {
            to_v0_2(self)
        } else {
            let mut result = self.clone();
            if version < Version::V1_1_0 {
                result.strip_1_1();
            }
            let mut value = json!(result);
            if version < Version::V1_0_0 {
                add_ip_versions(&mut value, &self.ips);
            }
            value
        };
        value["cniVersion"] = version.as_str().into();
        value
    }

    /// Adds another plugin's part after ours, with its interface numbers moved accordingly.
    pub fn append(&mut self, other: Self) {
        let offset = self.interfaces.len();
        self.interfaces.extend(other.interfaces);
        self.ips.extend(other.ips.into_iter().map(|ip| Ip {
            interface: ip.interface.map(|interface| interface.saturating_add(offset)),
            ..ip
        }));
        self.routes.extend(other.routes);
        if self.dns.is_empty() {
            self.dns = other.dns;
        }
    }

    /// Removes what came with 1.1.0.
    fn strip_1_1(&mut self) {
        for interface in &mut self.interfaces {
            interface.mtu = None;
            interface.socket_path.clear();
            interface.pci_id.clear();
        }
        for route in &mut self.routes {
            *route = Route {
                dst: route.dst,
                gw: route.gw,
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            };
        }
    }
}

/// Before 1.0.0 each address said which IP version it is.
fn add_ip_versions(value: &mut Value, ips: &[Ip]) {
    let Some(list) = value.get_mut("ips").and_then(Value::as_array_mut) else { return };
    for (object, ip) in list.iter_mut().zip(ips) {
        object["version"] = if ip.address.is_ipv4() { "4" } else { "6" }.into();
    }
}

/// 0.1.0 and 0.2.0: at most one address of each family, with the routes of that family.
fn to_v0_2(result: &CniResult) -> Value {
    let mut object = Map::new();
    for (key, is_ipv4) in [("ip4", true), ("ip6", false)] {
        let Some(ip) = result.ips.iter().find(|ip| ip.address.is_ipv4() == is_ipv4) else {
            continue;
        };
        let routes: Vec<Value> = result
            .routes
            .iter()
            .filter(|route| route.dst.is_ipv4() == is_ipv4)
            .map(|route| match route.gw {
                Some(gw) => json!({ "dst": route.dst, "gw": gw }),
                None => json!({ "dst": route.dst }),
            })
            .collect();
        let mut family = json!({ "ip": ip.address });
        if let Some(gateway) = ip.gateway {
            family["gateway"] = json!(gateway);
        }
        if !routes.is_empty() {
            family["routes"] = routes.into();
        }
        object.insert(key.to_owned(), family);
    }
    if !result.dns.is_empty() {
        object.insert("dns".to_owned(), json!(result.dns));
    }
    object.into()
}

fn from_v0_2(object: Map<String, Value>) -> Result<CniResult, CniError> {
    #[derive(Deserialize)]
    struct Old {
        ip4: Option<Family>,
        ip6: Option<Family>,
        #[serde(default)]
        dns: Dns,
    }
    #[derive(Deserialize)]
    struct Family {
        ip: IpNetwork,
        gateway: Option<IpAddr>,
        #[serde(default)]
        routes: Vec<Route>,
    }
    let old = Old::deserialize(Value::Object(object)).map_err(|error| unreadable(&error))?;
    let mut result = CniResult { dns: old.dns, ..CniResult::default() };
    for family in [old.ip4, old.ip6].into_iter().flatten() {
        result.ips.push(Ip { address: family.ip, gateway: family.gateway, interface: None });
        result.routes.extend(family.routes);
    }
    Ok(result)
}

fn unreadable(error: &serde_json::Error) -> CniError {
    CniError::new(Code::DECODING_FAILURE, "the result cannot be read")
        .with_details(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dual_stack() -> CniResult {
        let gw4: IpAddr = "10.244.1.1".parse().unwrap();
        let gw6: IpAddr = "fd00:10:244:1::1".parse().unwrap();
        CniResult {
            interfaces: vec![Interface {
                name: "eth0".into(),
                mac: "0a:58:0a:f4:01:05".into(),
                mtu: Some(1450),
                sandbox: "/run/netns/blue".into(),
                ..Interface::default()
            }],
            ips: vec![
                Ip {
                    address: "10.244.1.5/32".parse().unwrap(),
                    gateway: Some(gw4),
                    interface: Some(0),
                },
                Ip {
                    address: "fd00:10:244:1::5/128".parse().unwrap(),
                    gateway: Some(gw6),
                    interface: Some(0),
                },
            ],
            routes: vec![
                Route::via("0.0.0.0/0".parse().unwrap(), gw4),
                Route::via("::/0".parse().unwrap(), gw6),
            ],
            dns: Dns::default(),
        }
    }

    #[test]
    fn version_1_1_0() {
        assert_eq!(
            dual_stack().to_json(Version::V1_1_0),
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
    fn version_1_0_0_has_no_mtu() {
        let value = dual_stack().to_json(Version::V1_0_0);
        assert_eq!(value["cniVersion"], "1.0.0");
        assert_eq!(
            value["interfaces"],
            json!([{ "name": "eth0", "mac": "0a:58:0a:f4:01:05", "sandbox": "/run/netns/blue" }])
        );
        assert_eq!(value["ips"][0].get("version"), None);
    }

    #[test]
    fn versions_0_3_and_0_4_name_the_ip_version() {
        for version in [Version::V0_3_0, Version::V0_3_1, Version::V0_4_0] {
            let value = dual_stack().to_json(version);
            assert_eq!(
                value["ips"],
                json!([
                    { "version": "4", "address": "10.244.1.5/32", "gateway": "10.244.1.1",
                      "interface": 0 },
                    { "version": "6", "address": "fd00:10:244:1::5/128",
                      "gateway": "fd00:10:244:1::1", "interface": 0 }
                ])
            );
        }
    }

    #[test]
    fn versions_0_1_and_0_2_have_one_address_per_family() {
        assert_eq!(
            dual_stack().to_json(Version::V0_2_0),
            json!({
                "cniVersion": "0.2.0",
                "ip4": {
                    "ip": "10.244.1.5/32", "gateway": "10.244.1.1",
                    "routes": [{ "dst": "0.0.0.0/0", "gw": "10.244.1.1" }]
                },
                "ip6": {
                    "ip": "fd00:10:244:1::5/128", "gateway": "fd00:10:244:1::1",
                    "routes": [{ "dst": "::/0", "gw": "fd00:10:244:1::1" }]
                }
            })
        );
    }

    #[test]
    fn every_version_reads_what_it_wrote() {
        for version in Version::ALL {
            let value = dual_stack().to_json(version);
            let read = CniResult::from_json(version, &value).unwrap();
            assert_eq!(read.to_json(version), value, "{version:?}");
        }
    }

    #[test]
    fn the_specifications_example_is_kept() {
        // CNI specification 1.1, appendix "Example configuration", the answer of the bridge plugin.
        let example = json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": "cni0", "mac": "00:11:22:33:44:55" },
                { "name": "veth3243", "mac": "55:44:33:22:11:11" },
                { "name": "eth0", "mac": "99:88:77:66:55:44",
                  "sandbox": "/var/run/netns/blue" }
            ],
            "ips": [{ "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2 }],
            "routes": [{ "dst": "0.0.0.0/0" }],
            "dns": { "nameservers": ["10.1.0.1"] }
        });
        let result = CniResult::from_json(Version::V1_1_0, &example).unwrap();
        assert_eq!(result.to_json(Version::V1_1_0), example);
    }

    #[test]
    fn appending_moves_interface_numbers() {
        let mut first = dual_stack();
        first.append(dual_stack());
        assert_eq!(first.interfaces.len(), 2);
        let numbers: Vec<_> = first.ips.iter().map(|ip| ip.interface).collect();
        assert_eq!(numbers, [Some(0), Some(0), Some(1), Some(1)]);
    }

    #[test]
    fn unknown_versions_are_refused_with_code_1() {
        for text in ["", "0.9.9", "2.0.0", "1.1", "v1.0.0"] {
            assert_eq!(Version::from_text(text).unwrap_err().code, Code(1), "{text}");
        }
        for version in Version::ALL {
            assert_eq!(Version::from_text(version.as_str()).unwrap(), version);
        }
    }

    #[test]
    fn a_wrong_result_is_refused_with_code_6() {
        for wrong in [json!([]), json!({ "ips": 5 }), json!({ "ips": [{ "address": "x" }] })] {
            let error = CniResult::from_json(Version::V1_0_0, &wrong).unwrap_err();
            assert_eq!(error.code, Code(6), "{wrong}");
        }
        let error = CniResult::from_json(Version::V0_2_0, &json!({ "ip4": {} })).unwrap_err();
        assert_eq!(error.code, Code(6));
    }
}
