//! What the cluster's names stand for, at one moment: services, their endpoints, and pods.
//!
//! An answer is made of one state, and changes with it at once.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use conf::cluster::Protocol;
use hickory_proto::rr::Name;

/// A protocol as a label of SRV names.
pub fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "_tcp",
        Protocol::Udp => "_udp",
        Protocol::Sctp => "_sctp",
    }
}

/// A port that has a name, or the only one of its service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name; empty for the only port of a service.
    pub name: String,
    /// Its protocol.
    pub protocol: Protocol,
    /// Its number: the service's own port behind a cluster address, the endpoint's behind none.
    pub number: u16,
}

/// An endpoint of a headless service that may be told of: ready, or published although it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Its address.
    pub address: IpAddr,
    /// Its own name in the service's domain; without one, it is named by its address.
    pub hostname: Option<String>,
    /// The ports that it serves.
    pub ports: Vec<Port>,
}

impl Endpoint {
    /// The label by which the endpoint is found: its host name, or its address with dashes.
    pub fn label(&self) -> String {
        self.hostname.clone().unwrap_or_else(|| dashed(self.address))
    }
}

/// What a service's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Addresses of the service itself.
    Cluster {
        /// One per family.
        addresses: Vec<IpAddr>,
        /// All ports.
        ports: Vec<Port>,
    },
    /// The endpoints' own addresses (`clusterIP: None`).
    Headless(Vec<Endpoint>),
    /// Another name (`type: ExternalName`).
    External(Name),
}

/// A pod, as far as names go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pod {
    /// Its addresses; those of the node, when it shares the node's network.
    pub addresses: Vec<IpAddr>,
    /// Whether it shares the node's network: then nobody can be known by the address.
    pub host_network: bool,
}

/// Namespace and name, the namespace in lower case.
pub type PodName = (String, String);

/// What all names stand for. Each change costs as much as what is changed, however much else there is.
#[derive(Debug, Clone, Default)]
pub struct Directory {
    namespaces: BTreeSet<String>,
    services: HashMap<String, BTreeMap<String, Target>>,
    pods: HashMap<PodName, Pod>,
    /// Who has an address; several at most for those of nodes, and while one follows another.
    pods_at: HashMap<IpAddr, Vec<PodName>>,
    /// Names relative to the cluster's domain, for each address that has any.
    names: HashMap<IpAddr, Vec<String>>,
    /// Where the Service of the DNS says that it is.
    servers: Vec<IpAddr>,
}

impl Directory {
    /// Sets whether a namespace exists.
    pub fn set_namespace(&mut self, namespace: &str, exists: bool) {
        let namespace = namespace.to_ascii_lowercase();
        if exists {
            self.namespaces.insert(namespace);
        } else {
            self.namespaces.remove(&namespace);
        }
    }

    /// Sets what a service's name stands for; `None` when it has none.
    pub fn set_service(&mut self, namespace: &str, name: &str, target: Option<Target>) {
        let (namespace, name) = (namespace.to_ascii_lowercase(), name.to_ascii_lowercase());
        let services = self.services.entry(namespace.clone()).or_default();
        let base = format!("{name}.{namespace}.svc");
        if let Some(old) = services.remove(&name) {
            for (address, full) in names_by_address(&old, &base) {
                if let Some(names) = self.names.get_mut(&address) {
                    names.retain(|name| *name != full);
                    if names.is_empty() {
                        self.names.remove(&address);
                    }
                }
            }
        }
        match target {
            Some(target) => {
                for (address, full) in names_by_address(&target, &base) {
                    let names = self.names.entry(address).or_default();
                    // Two ports of one endpoint are one name.
                    if !names.contains(&full) {
                        names.push(full);
                    }
                }
                services.insert(name, target);
            }
            None if services.is_empty() => {
                self.services.remove(&namespace);
            }
            None => {}
        }
    }

    /// Sets where a pod is; `None` when it is nowhere.
    pub fn set_pod(&mut self, namespace: &str, name: &str, pod: Option<Pod>) {
        let id = (namespace.to_ascii_lowercase(), name.to_owned());
        if let Some(old) = self.pods.remove(&id) {
            for address in old.addresses {
                if let Some(names) = self.pods_at.get_mut(&address) {
                    names.retain(|name| *name != id);
                    if names.is_empty() {
                        self.pods_at.remove(&address);
                    }
                }
            }
        }
        if let Some(pod) = pod {
            for address in &pod.addresses {
                self.pods_at.entry(*address).or_default().push(id.clone());
            }
            self.pods.insert(id, pod);
        }
    }

    /// Sets where the Service of the cluster's DNS says that it is; nowhere without one.
    pub fn set_servers(&mut self, addresses: Vec<IpAddr>) {
        self.servers = addresses;
    }

    /// Where the Service of the cluster's DNS says that it is.
    pub fn servers(&self) -> &[IpAddr] {
        &self.servers
    }

    /// Whether anybody knows of this namespace.
    pub fn has_namespace(&self, namespace: &str) -> bool {
        self.namespaces.contains(namespace)
    }

    /// The service of this name, in lower case.
    pub fn service(&self, namespace: &str, name: &str) -> Option<&Target> {
        self.services.get(namespace)?.get(name)
    }

    /// Whether a pod of this namespace has this address.
    pub fn is_pod(&self, namespace: &str, address: IpAddr) -> bool {
        let mut pods = self.pods_at.get(&address).into_iter().flatten();
        pods.any(|(of, _)| of == namespace)
    }

    /// The pod that sends from this address, when that can be only one.
    pub fn client(&self, address: IpAddr) -> Option<&PodName> {
        let mut pods = self.pods_at.get(&address)?.iter();
        pods.rfind(|id| self.pods.get(*id).is_some_and(|pod| !pod.host_network))
    }

    /// Where the pod of this name is.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Pod> {
        self.pods.get(&(namespace.to_ascii_lowercase(), name.to_owned()))
    }

    /// The names that lead to this address, relative to the cluster's domain.
    pub fn names_of(&self, address: IpAddr) -> &[String] {
        self.names.get(&address).map_or(&[], Vec::as_slice)
    }

    /// How many services and pods there are.
    pub fn size(&self) -> (usize, usize) {
        (self.services.values().map(BTreeMap::len).sum(), self.pods.len())
    }
}

/// The names that addresses of a service lead back to; `base` is its own.
fn names_by_address(target: &Target, base: &str) -> Vec<(IpAddr, String)> {
    match target {
        Target::Cluster { addresses, .. } => {
            addresses.iter().map(|address| (*address, base.to_owned())).collect()
        }
        Target::Headless(endpoints) => {
            let named = |end: &Endpoint| (end.address, format!("{}.{base}", end.label()));
            endpoints.iter().map(named).collect()
        }
        Target::External(_) => Vec::new(),
    }
}

/// An address as a label: `10-244-1-7`, `fd00--7`.
pub fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

/// The address that such a label stands for.
pub fn undashed(label: &str) -> Option<IpAddr> {
    let v4 = label.replace('-', ".");
    v4.parse().ok().or_else(|| label.replace('-', ":").parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_labels_and_back() {
        for text in ["10.244.1.7", "fd00::7", "fd00:10:244:1::a", "1:2:3:4:5:6:7:8"] {
            let address: IpAddr = text.parse().unwrap();
            assert_eq!(undashed(&dashed(address)), Some(address), "{text}");
        }
        assert_eq!(undashed("10-244-1"), None);
        assert_eq!(undashed("web"), None);
    }

    #[test]
    fn a_pod_on_the_nodes_network_is_no_client() {
        let mut directory = Directory::default();
        let address = IpAddr::from([192, 0, 2, 1]);
        let pod = |host_network| Some(Pod { addresses: vec![address], host_network });
        directory.set_pod("kube-system", "proxy", pod(true));
        assert!(directory.is_pod("kube-system", address));
        assert_eq!(directory.client(address), None);
        directory.set_pod("kube-system", "proxy", pod(false));
        assert_eq!(directory.client(address).unwrap().1, "proxy");
        directory.set_pod("kube-system", "proxy", None);
        assert!(!directory.is_pod("kube-system", address));
        assert_eq!(directory.size(), (0, 0));
    }

    #[test]
    fn what_is_replaced_leaves_nothing_behind() {
        let mut directory = Directory::default();
        let [one, two] = [[10, 96, 0, 1], [10, 96, 0, 2]].map(IpAddr::from);
        let cluster = |address| Some(Target::Cluster { addresses: vec![address], ports: vec![] });
        directory.set_service("default", "web", cluster(one));
        directory.set_service("default", "api", cluster(one));
        assert_eq!(directory.names_of(one), ["web.default.svc", "api.default.svc"]);
        directory.set_service("default", "web", cluster(two));
        assert_eq!(directory.names_of(one), ["api.default.svc"]);
        assert_eq!(directory.names_of(two), ["web.default.svc"]);
        directory.set_service("default", "web", None);
        directory.set_service("default", "api", None);
        assert!(directory.names.is_empty() && directory.services.is_empty());
    }
}
