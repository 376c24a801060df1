//! From the state of the cluster to its names. Pure.

use std::sync::Arc;

use conf::cluster::{ClusterState, Delta, PodView, ServiceType, ServiceView};
use hickory_proto::rr::Name;

use super::directory::{Directory, Endpoint, Pod, Port, Target};
use super::place;

/// Takes up what is different in `state`.
pub fn update(directory: &mut Directory, state: &ClusterState, delta: &Delta) {
    for id in &delta.services {
        let view = state.service(&id.namespace, &id.name);
        let target = view.and_then(|view| target(view));
        directory.set_service(&id.namespace, &id.name, target);
        directory.set_namespace(&id.namespace, state.has_namespace(&id.namespace));
    }
    if place::is_in(&delta.services) {
        directory.set_servers(place::of_service(state));
    }
    for id in &delta.pods {
        let pod = state.pod(&id.namespace, &id.name).filter(|pod| !pod.is_finished());
        directory.set_pod(&id.namespace, &id.name, pod.map(|pod| place(pod)));
        directory.set_namespace(&id.namespace, state.has_namespace(&id.namespace));
    }
    for namespace in &delta.namespaces {
        directory.set_namespace(namespace, state.has_namespace(namespace));
    }
}

/// All names of a state.
pub fn directory(state: &ClusterState) -> Directory {
    let mut directory = Directory::default();
    let delta = Delta {
        services: state.services().map(|view| view.service.id.clone()).collect(),
        pods: state.pods().map(|pod| pod.id.clone()).collect(),
        namespaces: state.namespaces().map(|one| Arc::clone(&one.name)).collect(),
        ..Delta::default()
    };
    update(&mut directory, state, &delta);
    for always in ["default", "kube-system"] {
        directory.set_namespace(always, state.has_namespace(always));
    }
    directory
}

/// What the name of a service stands for; `None` while it is refused.
fn target(view: &ServiceView) -> Option<Target> {
    if view.refused.is_some() {
        return None;
    }
    let service = &view.service;
    if service.kind == ServiceType::ExternalName {
        let mut name = Name::from_ascii(service.external_name.as_deref()?).ok()?;
        name.set_fqdn(true);
        return Some(Target::External(name));
    }
    if service.is_headless() {
        return Some(Target::Headless(endpoints(view)));
    }
    let ports = service.ports.iter().map(|port| Port {
        name: port.name.to_string(),
        protocol: port.protocol,
        number: port.port,
    });
    Some(Target::Cluster { addresses: view.cluster_ips.to_vec(), ports: ports.collect() })
}

/// The endpoints that may be told of.
fn endpoints(view: &ServiceView) -> Vec<Endpoint> {
    let all = &view.endpoints;
    let mut found: Vec<Option<Endpoint>> = all
        .endpoints
        .iter()
        .map(|end| {
            end.ready.then(|| Endpoint {
                address: end.address,
                hostname: end.hostname.as_deref().map(str::to_owned),
                ports: Vec::new(),
            })
        })
        .collect();
    for port in &all.ports {
        for (ix, number) in &port.targets {
            let end = usize::try_from(*ix).ok().and_then(|ix| found.get_mut(ix));
            if let Some(Some(end)) = end {
                let name = port.name.to_string();
                end.ports.push(Port { name, protocol: port.protocol, number: *number });
            }
        }
    }
    found.into_iter().flatten().collect()
}

fn place(pod: &PodView) -> Pod {
    Pod { addresses: pod.addresses.to_vec(), host_network: pod.host_network }
}

#[cfg(test)]
mod tests {
    use conf::cluster::{Change, ObjectName, PodFact};

    use super::*;

    fn pod(name: &str, last: u8, labels: &[(&str, &str)]) -> Change {
        Change::SetPod(PodFact {
            id: ObjectName::new("default", name),
            node: "n1".into(),
            addresses: Box::new([[10, 244, 1, last].into()]),
            labels: labels.iter().copied().collect(),
            host_network: false,
            since_ms: 1,
        })
    }

    #[test]
    fn pods_of_the_map_have_names_and_lose_them() {
        let mut state = ClusterState::default();
        let mut directory = directory(&state);
        assert!(directory.has_namespace("default") && !directory.has_namespace("lab"));
        let delta = state.apply([pod("web-0", 7, &[("app", "web")])]);
        update(&mut directory, &state, &delta);
        assert_eq!(directory.client([10, 244, 1, 7].into()).unwrap().1, "web-0");
        let gone = Change::RemovePod { id: ObjectName::new("default", "web-0"), node: "n1".into() };
        let delta = state.apply([gone]);
        update(&mut directory, &state, &delta);
        assert_eq!(directory.size(), (0, 0));
    }
}
