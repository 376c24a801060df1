//! What this node writes to the API server, as requests. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use conf::cluster::{
    Authority, Change, ClusterState, Object, ObjectKind, ObjectName, ServiceConfig,
};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::election::micros;

/// Media type of a patch that replaces fields (RFC 7386).
pub const MERGE: &str = "application/merge-patch+json";

/// Media type of a patch that also knows lists with keys, such as conditions.
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// Media type of a whole object.
pub const OBJECT: &str = "application/json";

/// The namespace of what belongs to no namespace, and of the Lease.
pub const NAMESPACE: &str = "kube-system";

/// Name of the Lease of the node that acts for all.
pub const LEASE: &str = "weft";

/// Who reports events.
const CONTROLLER: &str = "weft.io/weftd";

/// Most bytes of an event's note (`NoteLengthLimit` of kubernetes/pkg/apis/core/validation/events.go).
const NOTE_LEN_MAX: usize = 1024;

/// Most bytes of who reports it (`ReportingInstanceLengthLimit`, likewise): less than a node's name may have.
const INSTANCE_LEN_MAX: usize = 128;

/// A request that changes something.
#[derive(Debug, Clone, PartialEq)]
pub struct Write {
    /// `POST`, `PUT` or `PATCH`.
    pub method: &'static str,
    /// Its path.
    pub path: String,
    /// What the body is.
    pub media_type: &'static str,
    /// The body.
    pub body: Value,
}

/// The path of the Lease, or, without a name, of where it is made.
pub fn lease_path(name: Option<&str>) -> String {
    let root = format!("/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases");
    name.map_or_else(|| root.clone(), |name| format!("{root}/{name}"))
}

/// Says of a node that its network is there: a cloud's controller taints nodes until somebody does. `is_first` is
/// whether this daemon says it for the first time; later, nothing but the heartbeat changes.
pub fn network_available(node: &str, wall: Timestamp, is_first: bool) -> Write {
    let now = format!("{wall:.0}");
    let mut condition = json!({
        "type": "NetworkUnavailable", "status": "False", "reason": "WeftIsUp",
        "message": "weftd carries this node's pods", "lastHeartbeatTime": now
    });
    if is_first {
        condition["lastTransitionTime"] = now.into();
    }
    Write {
        method: "PATCH",
        path: format!("/api/v1/nodes/{node}/status"),
        media_type: STRATEGIC,
        body: json!({"status": {"conditions": [condition]}}),
    }
}

/// What an event is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    /// `kind` of the object.
    pub kind: String,
    /// Its namespace; empty for cluster-wide objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// `metadata.uid`, by which `kubectl describe` finds the events of an object; empty where it is not known.
    pub uid: String,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub note: String,
}

/// Tells of an object that not all is well with it.
pub fn event(notice: &Notice, node: &str, wall: Timestamp) -> Write {
    // Of cluster-wide objects as everybody does it.
    let namespace = if notice.namespace.is_empty() { "default" } else { &notice.namespace };
    let version = ObjectKind::ALL.into_iter().find(|kind| kind.as_str() == notice.kind);
    let version = version.map_or("v1", ObjectKind::api_version);
    let note = cut(&notice.note, NOTE_LEN_MAX);
    let mut regarding = json!({
        "apiVersion": version, "kind": notice.kind, "namespace": notice.namespace, "name": notice.name
    });
    if !notice.uid.is_empty() {
        regarding["uid"] = notice.uid.as_str().into();
    }
    Write {
        method: "POST",
        path: format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events"),
        media_type: OBJECT,
        body: json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event",
            "metadata": {"generateName": "weft-", "namespace": namespace},
            "eventTime": micros(wall), "type": "Warning", "reason": notice.reason, "action": "Serve",
            "note": note, "reportingController": CONTROLLER,
            "reportingInstance": cut(node, INSTANCE_LEN_MAX), "regarding": regarding
        }),
    }
}

/// The beginning of a text, of so many bytes at most.
fn cut(text: &str, len_max: usize) -> &str {
    &text[..text.floor_char_boundary(len_max)]
}

/// Which Services of type LoadBalancer are to have which addresses, and have others.
///
/// The addresses come from the pool, as without a control plane: who asks for one gets it, who has one keeps
/// it, and all others get what is free, in the order of names.
pub fn ingress(state: &ClusterState) -> Vec<Write> {
    let config = state.config();
    if config.load_balancer_pool.is_empty() {
        return Vec::new();
    }
    let mut pool =
        ClusterState::new(ServiceConfig { authority: Authority::Weft, ..config.clone() });
    let wanting = state.services().filter(|view| view.service.wants_load_balancer());
    pool.apply(wanting.map(|view| Change::Set(Object::Service(view.service.clone()))));
    let mut writes = Vec::new();
    for view in pool.services().filter(|view| view.refused.is_none()) {
        let have: BTreeSet<IpAddr> = view.service.load_balancer.ingress.iter().copied().collect();
        let want: BTreeSet<IpAddr> = view.load_balancer_ips.iter().copied().collect();
        if have != want {
            writes.push(set_ingress(&view.service.id, &view.load_balancer_ips));
        }
    }
    writes
}

fn set_ingress(id: &ObjectName, addresses: &[IpAddr]) -> Write {
    let ingress: Vec<Value> = addresses
        .iter()
        .map(|address| json!({"ip": address.to_string(), "ipMode": "VIP"}))
        .collect();
    Write {
        method: "PATCH",
        path: format!("/api/v1/namespaces/{}/services/{}/status", id.namespace, id.name),
        media_type: MERGE,
        body: json!({"status": {"loadBalancer": {"ingress": ingress}}}),
    }
}

#[cfg(test)]
mod tests {
    use conf::cluster::parse::parse;

    use super::*;

    fn state(services: &str) -> ClusterState {
        let config = ServiceConfig {
            authority: Authority::Kubernetes,
            load_balancer_pool: vec!["192.0.2.0/29".parse().unwrap()],
            ..ServiceConfig::default()
        };
        let mut state = ClusterState::new(config);
        let manifests = parse(services);
        assert!(manifests.refused.is_empty(), "{manifests:?}");
        state.apply(manifests.accepted.into_iter().map(|found| Change::Set(found.object)));
        state
    }

    fn service(name: &str, ip: u8, rest: &str) -> String {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n\
             spec: {{type: LoadBalancer, clusterIP: 10.96.0.{ip}, ports: [{{port: 80, nodePort: {}}}]}}\n{rest}---\n",
            30_000 + u32::from(ip)
        )
    }

    #[test]
    fn load_balancers_get_addresses_once() {
        let given = "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n";
        let state = state(&(service("a", 20, "") + &service("b", 21, given)));
        let writes = ingress(&state);
        assert_eq!(writes.len(), 1, "{writes:?}");
        assert_eq!(writes[0].path, "/api/v1/namespaces/default/services/a/status");
        let ip = &writes[0].body["status"]["loadBalancer"]["ingress"][0]["ip"];
        assert!(ip.as_str().is_some_and(|ip| ip.starts_with("192.0.2.") && ip != "192.0.2.1"));
    }

    #[test]
    fn nobody_gets_anything_without_a_pool() {
        let mut state = ClusterState::new(ServiceConfig {
            authority: Authority::Kubernetes,
            ..ServiceConfig::default()
        });
        let parsed = parse(&service("a", 20, ""));
        state.apply(parsed.accepted.into_iter().map(|found| Change::Set(found.object)));
        assert!(ingress(&state).is_empty());
    }

    #[test]
    fn events_are_of_the_objects_namespace() {
        let mut notice = Notice {
            kind: "EndpointSlice".into(),
            namespace: "shop".into(),
            name: "web-1".into(),
            uid: "0d1f5a2c-0000-4000-8000-000000000001".into(),
            reason: "Refused",
            note: "x".repeat(5000),
        };
        let wall = Timestamp::UNIX_EPOCH;
        let write = event(&notice, "n1", wall);
        assert_eq!(write.path, "/apis/events.k8s.io/v1/namespaces/shop/events");
        assert_eq!(write.body["regarding"]["apiVersion"], "discovery.k8s.io/v1");
        assert_eq!(write.body["note"].as_str().map(str::len), Some(NOTE_LEN_MAX));
        assert_eq!(write.body["regarding"]["uid"], notice.uid);
        assert_eq!(write.body["eventTime"], "1970-01-01T00:00:00.000000Z");
        notice.namespace.clear();
        assert!(event(&notice, "n1", wall).path.contains("/namespaces/default/"));
    }

    #[test]
    fn limits_of_events_are_bytes() {
        let notice = Notice {
            kind: "Service".into(),
            namespace: "shop".into(),
            name: "web".into(),
            uid: String::new(),
            reason: "Refused",
            note: format!("x{}", "\u{e4}".repeat(1000)),
        };
        let node = "n".repeat(253);
        let body = event(&notice, &node, Timestamp::UNIX_EPOCH).body;
        assert_eq!(body["note"].as_str().map(str::len), Some(NOTE_LEN_MAX - 1));
        assert_eq!(body["reportingInstance"].as_str().map(str::len), Some(INSTANCE_LEN_MAX));
        assert!(body["regarding"].get("uid").is_none(), "an empty one would match no object");
    }

    #[test]
    fn a_heartbeat_is_no_transition() {
        let condition = |is_first| {
            network_available("n1", Timestamp::UNIX_EPOCH, is_first).body["status"]["conditions"][0]
                .clone()
        };
        assert_eq!(condition(true)["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert!(condition(false).get("lastTransitionTime").is_none());
        assert_eq!(condition(false)["lastHeartbeatTime"], "1970-01-01T00:00:00Z");
    }
}
