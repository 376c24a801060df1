//! The content of the file, as it stands there.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::policy::{Kept, Resting};
use crate::record::Allocation;
use crate::store::StoreError;
use crate::{Cursor, Error, Lease, State};

/// The layout of the file. A file with another number is refused.
pub(crate) const FORMAT: u32 = 1;

/// The file as people see it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Document {
    pub(crate) format: u32,
    #[serde(default)]
    pub(crate) lease: Lease,
    #[serde(default)]
    pub(crate) cursor: Cursor,
    #[serde(default)]
    pub(crate) allocations: Vec<Allocation>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) lent: BTreeMap<IpAddr, String>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) resting: BTreeMap<IpAddr, Resting>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) kept: BTreeMap<IpAddr, Kept>,
}

impl From<&State> for Document {
    fn from(state: &State) -> Self {
        Self {
            format: FORMAT,
            lease: state.lease,
            cursor: state.cursor,
            allocations: state.allocations.values().cloned().collect(),
            lent: state.lent.clone(),
            resting: state.resting.clone(),
            kept: state.kept.clone(),
        }
    }
}

impl Document {
    pub(crate) fn into_state(self, path: &Path) -> Result<State, Error> {
        if self.format != FORMAT {
            return Err(Error::Format { path: path.to_owned(), found: self.format });
        }
        let damaged = |why| Error::Store(StoreError::Damaged { path: path.to_owned(), why });
        let mut state = State { lease: self.lease, cursor: self.cursor, ..State::default() };
        state.lease.pools()?;
        for allocation in self.allocations {
            for address in allocation.addresses() {
                if !state.taken.insert(address) {
                    return Err(damaged(format!("{address} is held twice")));
                }
            }
            let attachment = allocation.attachment.clone();
            if state.allocations.insert(attachment.clone(), allocation).is_some() {
                return Err(damaged(format!("{attachment} appears twice")));
            }
        }
        if let Some(address) = self.lent.keys().find(|address| state.taken.contains(*address)) {
            return Err(damaged(format!("{address} is held here and left to another node")));
        }
        state.lent = self.lent;
        let rests = self.resting.keys().chain(self.kept.keys());
        if let Some(address) = rests.into_iter().find(|address| state.taken.contains(*address)) {
            return Err(damaged(format!("{address} is held and free")));
        }
        state.resting = self.resting;
        state.kept = self.kept;
        Ok(state)
    }
}
