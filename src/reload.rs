//! The configuration file, read again while the daemon runs (SIGHUP): what it says of leases is put in force
//! at once, all else waits for a restart.

use conf::NodeConfig;

/// What a changed file means.
#[derive(Debug, Clone, PartialEq)]
pub struct Reload {
    /// What is in force from now on: as before, with the file's `[lease]`.
    pub config: NodeConfig,
    /// Whether `[lease]` has changed.
    pub is_new: bool,
    /// What has changed besides, and waits for a restart.
    pub waiting: Vec<&'static str>,
}

impl Reload {
    /// Compares what is in force with what the file says.
    pub fn new(current: &NodeConfig, file: NodeConfig) -> Self {
        let NodeConfig {
            network,
            seeds,
            name,
            underlay,
            overlay,
            lease,
            switch,
            host,
            objects,
            services,
            dns,
            paths,
            metrics,
            log,
        } = file;
        let changed = [
            ("network", network != current.network),
            ("seeds", seeds != current.seeds),
            ("name", name != current.name),
            ("[underlay]", underlay != current.underlay),
            ("[overlay]", overlay != current.overlay),
            ("[switch]", switch != current.switch),
            ("[host]", host != current.host),
            ("[objects]", objects != current.objects),
            ("[services]", services != current.services),
            ("[dns]", dns != current.dns),
            ("[paths]", paths != current.paths),
            ("[metrics]", metrics != current.metrics),
            ("[log]", log != current.log),
        ];
        let waiting = changed.iter().filter(|(_, changed)| *changed).map(|(name, _)| *name);
        Self {
            is_new: lease != current.lease,
            waiting: waiting.collect(),
            config: NodeConfig { lease, ..current.clone() },
        }
    }

    /// What was done about the file, in words.
    pub fn describe(&self) -> String {
        let lease = match self.is_new {
            true => "[lease] is in force as the file has it now",
            false => "nothing has changed in [lease]",
        };
        match self.waiting.is_empty() {
            true => format!("the configuration was read again: {lease}"),
            false => format!(
                "the configuration was read again: {lease}; {} changed, too, and waits for a restart",
                self.waiting.join(", ")
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_taken_up_and_the_rest_is_named() {
        let current = NodeConfig::new("prod", Vec::new());
        let mut file = current.clone();
        assert_eq!(Reload::new(&current, file.clone()).config, current);
        file.lease.ranges.push("10.245.0.0/16".parse().unwrap());
        let wider = Reload::new(&current, file.clone());
        assert!(wider.is_new && wider.waiting.is_empty(), "{wider:?}");
        assert_eq!(wider.config, file);

        file.network = "other".to_owned();
        file.overlay.nodes_max = 7;
        let partly = Reload::new(&current, file.clone());
        assert_eq!(partly.waiting, ["network", "[overlay]"]);
        assert_eq!(partly.config.network, "prod");
        assert_eq!(partly.config.lease, file.lease);
        let text = partly.describe();
        assert!(
            text.ends_with("network, [overlay] changed, too, and waits for a restart"),
            "{text}"
        );
    }
}
