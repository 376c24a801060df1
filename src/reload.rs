//! The configuration file, read again while the daemon runs (SIGHUP): what it says of leases is put in force
//! at once, all else waits for a restart.

use std::collections::BTreeSet;

use conf::NodeConfig;
use serde_json::{Map, Value};

/// What a changed file means.
#[derive(Debug, Clone, PartialEq)]
pub struct Reload {
    /// What is in force from now on: as before, with the file's `[lease]`.
    pub config: NodeConfig,
    /// Whether `[lease]` has changed.
    pub is_new: bool,
    /// What has changed besides, and waits for a restart.
    pub waiting: Vec<String>,
}

impl Reload {
    /// Compares what is in force with what the file says.
    pub fn new(current: &NodeConfig, file: NodeConfig) -> Self {
        let config = NodeConfig { lease: file.lease.clone(), ..current.clone() };
        let (before, now) = (parts(&config), parts(&file));
        let keys: BTreeSet<&String> = before.keys().chain(now.keys()).collect();
        let waiting = keys.into_iter().filter(|key| before.get(*key) != now.get(*key));
        let waiting = waiting.map(|key| match now.get(key).or_else(|| before.get(key)) {
            Some(Value::Object(_)) => format!("[{key}]"),
            Some(_) | None => key.clone(),
        });
        Self { is_new: config.lease != current.lease, waiting: waiting.collect(), config }
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

/// The parts of a configuration, by their names in the file.
fn parts(config: &NodeConfig) -> Map<String, Value> {
    match serde_json::to_value(config) {
        Ok(Value::Object(parts)) => parts,
        other => unreachable!("a configuration is a table of tables: {other:?}"),
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
