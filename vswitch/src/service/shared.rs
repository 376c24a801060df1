//! Containers whose copies share what is not changed, so that a table of very many Services is copied at once.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::{FixedState, RandomState};

use crate::service::{Family, Service};

/// Services in one part: to change one copies so many pointers.
const PART_LEN: usize = 128;

/// Parts of the map of names: to change one copies so much less than all.
const NAME_PARTS: usize = 512;

/// Services by number.
#[derive(Debug, Clone, Default)]
pub(super) struct Slots {
    parts: Vec<Arc<Vec<Option<Arc<Service>>>>>,
    len: usize,
}

impl Slots {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, ix: usize) -> Option<&Arc<Service>> {
        self.parts.get(ix / PART_LEN)?.get(ix % PART_LEN)?.as_ref()
    }

    /// Replaces what is at `ix`, which is not behind the end.
    pub(super) fn replace(
        &mut self,
        ix: usize,
        service: Option<Arc<Service>>,
    ) -> Option<Arc<Service>> {
        let part = Arc::make_mut(self.parts.get_mut(ix / PART_LEN)?);
        std::mem::replace(part.get_mut(ix % PART_LEN)?, service)
    }

    /// Makes one more place, without a Service.
    pub(super) fn push(&mut self) {
        if self.len.is_multiple_of(PART_LEN) {
            self.parts.push(Arc::default());
        }
        if let Some(part) = self.parts.last_mut() {
            Arc::make_mut(part).push(None);
            self.len += 1;
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.parts.iter().flat_map(|part| part.iter().flatten())
    }
}

type Name = (Arc<str>, Family);

/// Numbers of Services by name and family.
#[derive(Debug, Clone)]
pub(super) struct Names {
    parts: Vec<Arc<HashMap<Name, u32, RandomState>>>,
}

impl Names {
    pub(super) fn new() -> Self {
        // One empty map for all.
        Self { parts: vec![Arc::default(); NAME_PARTS] }
    }

    pub(super) fn get(&self, name: &str, family: Family) -> Option<u32> {
        let part = self.parts.get(part_of(name))?;
        part.get(&(Arc::from(name), family)).copied()
    }

    pub(super) fn insert(&mut self, name: Arc<str>, family: Family, slot: u32) {
        if let Some(part) = self.parts.get_mut(part_of(&name)) {
            Arc::make_mut(part).insert((name, family), slot);
        }
    }

    pub(super) fn remove(&mut self, name: &str, family: Family) -> Option<u32> {
        let slot = self.get(name, family)?;
        let part = self.parts.get_mut(part_of(name))?;
        Arc::make_mut(part).remove(&(Arc::from(name), family));
        Some(slot)
    }
}

/// The same for all copies. Names are the cluster's own, so nobody gains by crowding one part.
fn part_of(name: &str) -> usize {
    let hash = FixedState::default().hash_one(name);
    usize::try_from(hash % NAME_PARTS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Frontend;
    use crate::service::{Algorithm, Protocol, ServicePort, ServiceTableBuilder, TrafficPolicy};

    fn port(number: u16) -> ServicePort {
        let [high, low] = number.to_be_bytes();
        ServicePort {
            name: format!("default/s{number}:"),
            family: Family::V4,
            protocol: Protocol::Tcp,
            frontends: vec![Frontend::ClusterIp { address: [10, 96, high, low].into(), port: 80 }],
            endpoints: Vec::new(),
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            algorithm: Algorithm::Maglev,
            affinity: None,
        }
    }

    /// A copy is changed and the one that it was made of is not; what is not changed is the same in both.
    #[test]
    fn copies_share_what_is_not_changed() {
        let mut builder = ServiceTableBuilder::new(Vec::new());
        for number in 0..1000 {
            builder.set(port(number)).unwrap();
        }
        let before = builder.build(1);
        let mut builder = before.edit();
        assert!(builder.remove("default/s7:", Family::V4));
        assert!(!builder.remove("default/s7:", Family::V4));
        builder
            .set(ServicePort { affinity: Some(std::time::Duration::from_secs(1)), ..port(8) })
            .unwrap();
        builder.set(port(1000)).unwrap();
        let after = builder.build(2);
        let names = |table: &crate::service::ServiceTable| table.services().count();
        assert_eq!((names(&before), names(&after)), (1000, 1000));
        let find = |table: &crate::service::ServiceTable, number: u16| {
            table
                .service(&format!("default/s{number}:"), Family::V4)
                .map(|service| service.spec().clone())
        };
        assert_eq!((find(&before, 7).is_some(), find(&after, 7).is_some()), (true, false));
        assert_eq!(find(&before, 8).unwrap().affinity, None);
        assert!(find(&after, 8).unwrap().affinity.is_some());
        assert_eq!((find(&before, 1000), find(&after, 1000)), (None, Some(port(1000))));
        let at = |table: &crate::service::ServiceTable| {
            std::ptr::from_ref(table.service("default/s999:", Family::V4).unwrap())
        };
        assert_eq!(at(&before), at(&after));
    }
}
