//! Which addresses are Services'. Pure.

use conf::NodeConfig;
use conf::cluster::ClusterState;
use ipnetwork::IpNetwork;
use overlay::config::{covers, overlaps};

/// The ranges of cluster IPs, and what is wrong with those that are declared, in words.
///
/// Where there are ServiceCIDRs, they say it, as they do to the API server, which gives the addresses; the
/// configuration says it elsewhere. What overlaps with the pods' ranges is left out: addresses there are pods'.
pub fn of_services(config: &NodeConfig, state: &ClusterState) -> (Vec<IpNetwork>, Option<String>) {
    let (mut ranges, mut wrong): (Vec<IpNetwork>, Vec<String>) = (Vec::new(), Vec::new());
    for declared in state.service_cidrs() {
        if let Some(pods) = config.lease.ranges.iter().find(|pods| overlaps(**pods, declared)) {
            wrong.push(format!("{declared} overlaps with the pods' range {pods}"));
        } else if !ranges.iter().any(|known| covers(*known, declared)) {
            ranges.retain(|known| !covers(declared, *known));
            ranges.push(declared);
        }
    }
    if ranges.is_empty() {
        ranges.clone_from(&config.services.ranges);
    }
    let problem = (!wrong.is_empty()).then(|| {
        format!(
            "ServiceCIDRs have ranges that cannot be Services': {}. Services with addresses there are not reached \
             from nodes; change the ServiceCIDR, or ranges under [lease]",
            wrong.join("; ")
        )
    });
    (ranges, problem)
}

#[cfg(test)]
mod tests {
    use conf::cluster::Change;
    use conf::cluster::parse::parse;

    use super::*;

    fn of(cidrs: &[&str]) -> (String, Option<String>) {
        let mut state = ClusterState::default();
        for (ix, cidrs) in cidrs.iter().enumerate() {
            let text = format!(
                "apiVersion: networking.k8s.io/v1\nkind: ServiceCIDR\nmetadata: {{name: c{ix}}}\nspec: {{cidrs: [{cidrs}]}}\n"
            );
            let manifests = parse(&text);
            assert!(manifests.refused.is_empty(), "{manifests:?}");
            state.apply(manifests.accepted.into_iter().map(|found| Change::Set(found.object)));
        }
        let (ranges, problem) = of_services(&NodeConfig::new("prod", vec![]), &state);
        (ranges.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "), problem)
    }

    #[test]
    fn declared_ranges_are_in_place_of_the_configured_ones() {
        assert_eq!(of(&[]).0, "10.96.0.0/12");
        let both = of(&["10.43.0.0/16, 'fd00:43::/112'", "10.50.0.0/24"]);
        assert_eq!(both, ("10.43.0.0/16 fd00:43::/112 10.50.0.0/24".to_owned(), None));
        // One within another, whichever comes first.
        assert_eq!(of(&["10.43.1.0/24", "10.43.0.0/16"]).0, "10.43.0.0/16");
        assert_eq!(of(&["10.43.0.0/16", "10.43.1.0/24"]).0, "10.43.0.0/16");
    }

    #[test]
    fn a_range_of_pods_is_no_range_of_services() {
        let (ranges, problem) = of(&["10.244.128.0/20"]);
        assert_eq!(ranges, "10.96.0.0/12");
        let problem = problem.unwrap();
        assert!(
            problem.contains("10.244.128.0/20 overlaps with the pods' range 10.244.0.0/16"),
            "{problem}"
        );
    }
}
