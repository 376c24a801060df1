//! What a node of a Kubernetes cluster has to tell its API server.

use conf::cluster::{ObjectKind, ObjectName};
use conf::source;

use super::{Control, Topic};
use crate::kubernetes::election::CANDIDATES;
use crate::kubernetes::writes::{Notice, Write, ingress};

/// What is to be written, if it is not written yet.
#[derive(Debug, Clone, Default)]
pub struct WriteBack {
    /// Pods here have a network.
    pub ready: bool,
    /// This node is one of those that may act for all.
    pub is_candidate: bool,
    /// What this node knows best.
    pub own: Vec<Notice>,
    /// Addresses of load balancers, if this node acts for all.
    pub ingress: Vec<Write>,
    /// What all nodes know alike.
    pub of_all: Vec<Notice>,
}

impl Control {
    /// What the API server is to be told.
    pub fn write_back(&self) -> WriteBack {
        let cluster = self.cluster();
        // Not by what is remembered.
        let is_told = self.api_health().is_some_and(|health| health.complete);
        let is_candidate = is_told && cluster.is_synced() && self.is_candidate();
        let mut all =
            WriteBack { ready: self.status().ready, is_candidate, ..WriteBack::default() };
        let state = cluster.read();
        for (topic, text) in &self.problems {
            let Topic::CutOff(address) = topic else { continue };
            for pod in state.pods_at(*address) {
                let (kind, id) = (ObjectKind::Pod.as_str().to_owned(), &pod.id);
                let (namespace, name) = (id.namespace.to_string(), id.name.to_string());
                let (reason, note) = ("AddressConflict", text.clone());
                let uid = self.uid_of(ObjectKind::Pod, id);
                all.own.push(Notice { kind, namespace, name, uid, reason, note });
            }
        }
        if !is_candidate {
            return all;
        }
        all.ingress = ingress(&state);
        for (id, text) in self.objects.table_problems() {
            let (kind, note) = (ObjectKind::Service.as_str().to_owned(), text.to_owned());
            let (namespace, name) = (id.namespace.to_string(), id.name.to_string());
            let (uid, reason) = (self.uid_of(ObjectKind::Service, id), "AddressConflict");
            all.of_all.push(Notice { kind, namespace, name, uid, reason, note });
        }
        let refused = self.objects.source().map(|source| source.refused(&state));
        for refused in refused.into_iter().flatten() {
            let note = match refused.field.as_str() {
                "" => refused.reason,
                field => format!("{field}: {}", refused.reason),
            };
            let (kind, namespace, name) = (refused.kind, refused.namespace, refused.name);
            let known = ObjectKind::ALL.into_iter().find(|known| known.as_str() == kind);
            let id = ObjectName::new(namespace.as_str(), name.as_str());
            let uid = known.map(|kind| self.uid_of(kind, &id)).unwrap_or_default();
            all.of_all.push(Notice { kind, namespace, name, uid, reason: "Refused", note });
        }
        all
    }

    /// What the API server tells an object from others by; empty where that is not known.
    fn uid_of(&self, kind: ObjectKind, id: &ObjectName) -> String {
        match self.objects.source() {
            Some(source::Objects::Kubernetes(objects)) => objects.uid(kind, id).unwrap_or_default(),
            Some(source::Objects::Manifests(_)) | None => String::new(),
        }
    }

    /// Whether this node is one of the first living ones by name.
    fn is_candidate(&self) -> bool {
        let active = self.map.members.values().filter(|member| member.state.is_active());
        let before = active.filter(|member| member.name < self.identity.name);
        before.count() < CANDIDATES
    }
}
