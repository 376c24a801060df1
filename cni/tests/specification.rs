//! The specification's own examples (CNI specification 1.1, "Appendix: Examples", "Error"), and what each verb
//! answers for each version and each missing variable.

use std::collections::BTreeSet;
use std::ffi::OsString;

use cni::config::{NetConf, Strictness};
use cni::error::{CniError, Code};
use cni::plugin;
use cni::result::{CniResult, Version};
use serde_json::{Value, json};

/// The answers of the example's plugins, each as the next one gets it.
fn bridge_answer() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "ips": [{ "address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 2 }],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "interfaces": [
            { "name": "cni0", "mac": "00:11:22:33:44:55" },
            { "name": "veth3243", "mac": "55:44:33:22:11:11" },
            { "name": "eth0", "mac": "99:88:77:66:55:44", "sandbox": "/var/run/netns/blue" }
        ],
        "dns": { "nameservers": ["10.1.0.1"] }
    })
}

#[test]
fn the_answer_of_the_examples_bridge_is_kept_in_every_version_that_can_say_it() {
    let answer = bridge_answer();
    let result = CniResult::from_json(Version::V1_1_0, &answer).unwrap();
    assert_eq!(result.to_json(Version::V1_1_0), answer);
    for version in Version::ALL {
        let told = result.to_json(version);
        assert_eq!(told["cniVersion"], version.as_str());
        assert_eq!(told["dns"]["nameservers"], json!(["10.1.0.1"]), "{told}");
        let is_old = version <= Version::V0_2_0;
        let address = if is_old { &told["ip4"]["ip"] } else { &told["ips"][0]["address"] };
        assert_eq!(*address, "10.1.0.5/16", "{told}");
        let names_family = matches!(version, Version::V0_3_0 | Version::V0_3_1 | Version::V0_4_0);
        assert_eq!(told["ips"][0].get("version").is_some(), names_family, "{told}");
    }
}

#[test]
fn the_answer_of_the_examples_ipam_plugin_is_kept() {
    let answer = json!({
        "cniVersion": "1.1.0",
        "ips": [{ "address": "10.1.0.5/16", "gateway": "10.1.0.1" }],
        "routes": [{ "dst": "0.0.0.0/0" }],
        "dns": { "nameservers": ["10.1.0.1"] }
    });
    let result = CniResult::from_json(Version::V1_1_0, &answer).unwrap();
    assert_eq!(result.to_json(Version::V1_1_0), answer);
}

#[test]
fn the_examples_configurations_are_read_with_our_plugin_in_their_places() {
    // What the runtime makes of the list `dbnet` for its first plugin, and for its second after the first answered.
    let first = json!({
        "cniVersion": "1.1.0", "name": "dbnet", "type": "weft-cni",
        "ipam": { "type": "host-local", "subnet": "10.1.0.0/16", "gateway": "10.1.0.1" },
        "dns": { "nameservers": ["10.1.0.1"] }
    });
    let conf = NetConf::read(&first, Strictness::Strict).unwrap();
    assert_eq!((conf.name.as_str(), conf.delegate.as_deref()), ("dbnet", Some("host-local")));
    assert_eq!(conf.dns.nameservers, ["10.1.0.1"]);

    let second = json!({
        "cniVersion": "1.1.0", "name": "dbnet", "type": "weft-cni",
        "runtimeConfig": { "mac": "00:11:22:33:44:66" },
        "prevResult": bridge_answer()
    });
    let conf = NetConf::read(&second, Strictness::Strict).unwrap();
    assert_eq!(conf.mac, Some([0x00, 0x11, 0x22, 0x33, 0x44, 0x66]));
    assert_eq!(conf.previous.unwrap().interfaces.len(), 3);

    // The IPAM part of the first one's work, done by ours.
    let mut bridge = first;
    bridge["type"] = json!("bridge");
    bridge["bridge"] = json!("cni0");
    bridge["keyA"] = json!(["some more", "plugin specific", "configuration"]);
    bridge["ipam"] = json!({ "type": "weft-cni", "routes": [{ "dst": "0.0.0.0/0" }] });
    let conf = NetConf::read(&bridge, Strictness::Strict).unwrap();
    assert!(conf.is_ipam);
}

#[test]
fn an_error_looks_as_in_the_example() {
    let error = CniError::new(Code::INVALID_CONFIG, "Invalid Configuration")
        .with_details("Network 192.168.0.0/31 too small to allocate from.");
    let expected = json!({
        "cniVersion": "1.1.0", "code": 7, "msg": "Invalid Configuration",
        "details": "Network 192.168.0.0/31 too small to allocate from."
    });
    assert_eq!(error.to_json(Version::V1_1_0), expected);
}

const VARIABLES: [(&str, &str); 5] = [
    ("CNI_CONTAINERID", "c0ffee"),
    ("CNI_NETNS", "/var/run/netns/blue"),
    ("CNI_IFNAME", "eth0"),
    ("CNI_ARGS", "IgnoreUnknown=1"),
    ("CNI_PATH", "/opt/cni/bin"),
];

/// What each verb cannot do without, and since when it exists.
const VERBS: [(&str, &[&str], Version); 6] = [
    ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"], Version::V0_1_0),
    ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"], Version::V0_1_0),
    ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"], Version::V0_4_0),
    ("GC", &[], Version::V1_1_0),
    ("STATUS", &[], Version::V1_1_0),
    ("VERSION", &[], Version::V0_1_0),
];

#[test]
fn every_verb_in_every_version_with_every_set_of_missing_variables() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("nobody.sock");
    let mut tried = 0;
    for (verb, required, since) in VERBS {
        for version in Version::ALL {
            for missing in 0..1_u32 << VARIABLES.len() {
                let is_missing = |ix: usize| missing >> ix & 1 == 1;
                let variable = |name: &str| match name {
                    "CNI_COMMAND" => Some(OsString::from(verb)),
                    _ => {
                        let ix = VARIABLES.iter().position(|(known, _)| *known == name)?;
                        (!is_missing(ix)).then(|| VARIABLES[ix].1.into())
                    }
                };
                let config = json!({
                    "cniVersion": version.as_str(), "name": "weft", "type": "weft-cni",
                    "socket": socket, "prevResult": {}, "cni.dev/valid-attachments": []
                });
                let outcome = plugin::run(variable, config.to_string().as_bytes());
                let absent: BTreeSet<&str> = (VARIABLES.iter().enumerate())
                    .filter(|(ix, (name, _))| is_missing(*ix) && required.contains(name))
                    .map(|(_, (name, _))| *name)
                    .collect();
                let case = format!("{verb} {} without {absent:?}", version.as_str());
                check(&case, verb, &absent, version < since, &outcome);
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 6 * 7 * 32);
}

fn check(
    case: &str,
    verb: &str,
    absent: &BTreeSet<&str>,
    is_too_old: bool,
    outcome: &plugin::Outcome,
) {
    let output = outcome.output.clone().unwrap_or_default();
    let code = output.get("code").and_then(Value::as_u64);
    let details = output.get("details").and_then(Value::as_str).unwrap_or_default();
    let expected = match verb {
        "VERSION" => None,
        _ if !absent.is_empty() => Some(4),
        _ if is_too_old => Some(1),
        // Nobody runs: a deletion is noted, the rest is to be tried again.
        "DEL" => None,
        "STATUS" => Some(50),
        _ => Some(11),
    };
    assert_eq!((outcome.success, code), (expected.is_none(), expected), "{case}: {output}");
    for name in absent {
        assert!(details.contains(&format!("{name} is missing")), "{case}: {output}");
    }
}
