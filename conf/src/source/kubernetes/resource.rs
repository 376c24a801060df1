//! Which kinds are watched, and where an API server has them.

use crate::cluster::ObjectKind;

/// A kind that is watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resource {
    /// The kind.
    pub kind: ObjectKind,
    /// Its name in paths, and in the rules of a role.
    pub plural: &'static str,
    /// Whether clusters may do without it: old ones, or those where nobody has installed it. Then there are
    /// no objects of it, and that is no mistake.
    pub optional: bool,
}

/// All that is watched. A new kind of [`ObjectKind`] takes one line here, and one in the role of
/// `conf/kubernetes/weft.yaml`.
pub const WATCHED: &[Resource] = &[
    Resource { kind: ObjectKind::Node, plural: "nodes", optional: false },
    // Since 1.33.
    Resource { kind: ObjectKind::ServiceCidr, plural: "servicecidrs", optional: true },
    Resource { kind: ObjectKind::Namespace, plural: "namespaces", optional: false },
    Resource { kind: ObjectKind::Service, plural: "services", optional: false },
    Resource { kind: ObjectKind::EndpointSlice, plural: "endpointslices", optional: false },
    Resource { kind: ObjectKind::NetworkPolicy, plural: "networkpolicies", optional: false },
    Resource {
        kind: ObjectKind::ClusterNetworkPolicy,
        plural: "clusternetworkpolicies",
        optional: true,
    },
    Resource {
        kind: ObjectKind::AdminNetworkPolicy,
        plural: "adminnetworkpolicies",
        optional: true,
    },
    Resource {
        kind: ObjectKind::BaselineAdminNetworkPolicy,
        plural: "baselineadminnetworkpolicies",
        optional: true,
    },
    Resource { kind: ObjectKind::Pod, plural: "pods", optional: false },
];

impl Resource {
    /// The API group; empty for the core.
    pub fn group(&self) -> &'static str {
        self.kind.api_version().split_once('/').map_or("", |(group, _)| group)
    }

    /// The path of all objects of the kind, in whatever namespace.
    pub fn path(&self) -> String {
        let root = if self.group().is_empty() { "api" } else { "apis" };
        format!("/{root}/{}/{}", self.kind.api_version(), self.plural)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_have_the_group_and_the_version() {
        let paths: Vec<String> = WATCHED.iter().map(Resource::path).collect();
        assert!(paths.contains(&"/api/v1/services".to_owned()), "{paths:?}");
        assert!(paths.contains(&"/apis/discovery.k8s.io/v1/endpointslices".to_owned()));
    }

    #[test]
    fn secrets_are_not_watched() {
        assert!(WATCHED.iter().all(|resource| resource.kind != ObjectKind::Secret));
    }
}
