//! What an API server told last, as bytes for a file: a node that starts without the server goes on with it.
//! Pure.
//!
//! ```text
//! {"format":1,"network":"prod","taken_unix_s":1800000000,"len":51234,"crc32c":305419896}
//! {"Node":{…}}
//! {"Service":{…}}
//! …
//! ```
//!
//! One line of JSON says what follows, and each line after it is an object as it is in force: what was refused is
//! judged anew by the list that comes. Bytes that are not exactly what [`Snapshot::encode`] made are no snapshot. Secrets
//! cannot be in it: they have no form to be written in.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::{Object, ObjectKind};

/// The format that this version writes and reads. Whatever changes the form of an object changes it.
pub const FORMAT: u32 = 1;

/// Most bytes of a snapshot: about ten times what a cluster of 1000 nodes has.
pub const LEN_MAX: usize = 256 << 20;

/// For how long a snapshot counts, in seconds. After a day, addresses belong to other pods, and what it says of them
/// is rather wrong than old.
pub const AGE_MAX_S: u64 = 24 * 3600;

/// How far a clock may have been set back since, in seconds.
const AHEAD_MAX_S: u64 = 600;

/// Objects, and when they were as they are here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The network of the node, which no other cluster has.
    pub network: String,
    /// By the node's clock, in seconds since 1970 (UTC).
    pub taken_unix_s: u64,
    /// What was in force.
    pub objects: Vec<Object>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    format: u32,
    network: String,
    taken_unix_s: u64,
    len: usize,
    crc32c: u32,
}

impl Snapshot {
    /// The bytes of the file. Secrets are left out.
    ///
    /// # Errors
    /// When there are more than [`LEN_MAX`] of them; in words.
    pub fn encode(&self) -> Result<Vec<u8>, String> {
        let mut body = Vec::new();
        for object in &self.objects {
            if object.key().kind == ObjectKind::Secret {
                continue;
            }
            serde_json::to_writer(&mut body, object).map_err(|error| error.to_string())?;
            body.push(b'\n');
            if body.len() > LEN_MAX {
                return Err(format!("the cluster's objects take more than {} MB", LEN_MAX >> 20));
            }
        }
        let header = Header {
            format: FORMAT,
            network: self.network.clone(),
            taken_unix_s: self.taken_unix_s,
            len: body.len(),
            crc32c: crc32c::crc32c(&body),
        };
        let mut bytes = serde_json::to_vec(&header).map_err(|error| error.to_string())?;
        bytes.push(b'\n');
        bytes.append(&mut body);
        Ok(bytes)
    }

    /// Reads what [`Snapshot::encode`] made.
    ///
    /// # Errors
    /// When it is something else, or damaged; in words.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        let end = bytes.iter().position(|byte| *byte == b'\n').ok_or("it has no first line")?;
        let (first, body) = (&bytes[..end], &bytes[end + 1..]);
        let format = serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(first)
            .map_err(|error| format!("its first line is damaged: {error}"))?;
        if format.get("format").and_then(serde_json::Value::as_u64) != Some(u64::from(FORMAT)) {
            return Err(format!(
                "it is of another version of weftd: this one reads format {FORMAT}"
            ));
        }
        let Header { network, taken_unix_s, len, crc32c, .. } = serde_json::from_slice(first)
            .map_err(|error| format!("its first line is damaged: {error}"))?;
        if (body.len(), crc32c::crc32c(body)) != (len, crc32c) {
            return Err("it is damaged: its length or its checksum is another one".to_owned());
        }
        let lines = body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let objects = lines.map(|line| {
            serde_json::from_slice(line).map_err(|error| format!("an object is damaged: {error}"))
        });
        Ok(Self { network, taken_unix_s, objects: objects.collect::<Result<_, _>>()? })
    }

    /// How old it is, in seconds. One that is of a time to come, as after the clock was set back a little, is new.
    pub fn age_s(&self, now_unix_s: u64) -> u64 {
        now_unix_s.saturating_sub(self.taken_unix_s)
    }

    /// Whether this node may go on with it.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn check(&self, network: &str, now_unix_s: u64) -> Result<(), String> {
        if self.network != network {
            return Err(format!(
                "it is of the network {}, and this node is in {network}",
                self.network
            ));
        }
        let ahead_s = self.taken_unix_s.saturating_sub(now_unix_s);
        if ahead_s > AHEAD_MAX_S {
            return Err(format!(
                "it is of a time to come, {ahead_s} s from now: nobody knows how old it is"
            ));
        }
        match self.age_s(now_unix_s) {
            age_s if age_s > AGE_MAX_S => Err(format!("it is {} h old", age_s / 3600)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cluster::parse::parse;

    /// One object of each kind that is watched, with all that it may have.
    const ALL: &str = include_str!("snapshot_objects.yaml");

    fn objects() -> Vec<Object> {
        let parsed = parse(ALL);
        assert!(parsed.refused.is_empty(), "{:?}", parsed.refused);
        parsed.accepted.into_iter().map(|found| found.object).collect()
    }

    fn snapshot() -> Snapshot {
        Snapshot { network: "prod".into(), taken_unix_s: 1_800_000_000, objects: objects() }
    }

    #[test]
    fn every_kind_that_is_watched_comes_back_as_it_was() {
        let kinds: Vec<ObjectKind> = objects().iter().map(|object| object.key().kind).collect();
        for resource in super::super::resource::WATCHED {
            assert!(kinds.contains(&resource.kind), "{} is not tried", resource.kind);
        }
        let bytes = snapshot().encode().unwrap();
        assert_eq!(Snapshot::decode(&bytes).unwrap(), snapshot());
    }

    #[test]
    fn secrets_stay_out_of_it() {
        let secret =
            "apiVersion: v1\nkind: Secret\nmetadata: {name: tls}\nstringData: {key: hidden}\n";
        let mut with = snapshot();
        with.objects.extend(parse(secret).accepted.into_iter().map(|found| found.object));
        assert_eq!(with.objects.len(), objects().len() + 1);
        let bytes = with.encode().unwrap();
        assert_eq!(Snapshot::decode(&bytes).unwrap(), snapshot());
        assert!(!String::from_utf8(bytes).unwrap().contains("hidden"));
    }

    #[test]
    fn others_networks_and_old_ones_do_not_count() {
        let (snapshot, taken) = (snapshot(), 1_800_000_000);
        assert!(snapshot.check("prod", taken + AGE_MAX_S).is_ok());
        assert!(snapshot.check("prod", taken - 500).is_ok(), "the clock was set back");
        assert!(snapshot.check("prod", taken + AGE_MAX_S + 1).unwrap_err().contains("24 h old"));
        let error = snapshot.check("prod", taken - 601).unwrap_err();
        assert!(error.contains("601 s from now"), "{error}");
        assert!(snapshot.check("test", taken).unwrap_err().contains("the network prod"));
    }

    #[test]
    fn another_format_is_told() {
        let bytes = snapshot().encode().unwrap();
        let text = String::from_utf8(bytes).unwrap().replacen("\"format\":1", "\"format\":2", 1);
        let error = Snapshot::decode(text.as_bytes()).unwrap_err();
        assert!(error.contains("another version"), "{error}");
    }

    proptest! {
        /// A file is whole, or it is none: whatever is cut off or changed in it.
        #[test]
        fn what_is_torn_is_no_snapshot(cut: prop::sample::Index, at: prop::sample::Index, flip in 1u8..) {
            let bytes = snapshot().encode().unwrap();
            let torn = &bytes[..cut.index(bytes.len())];
            prop_assert!(Snapshot::decode(torn).is_err());
            let mut changed = bytes.clone();
            let at = at.index(bytes.len());
            changed[at] ^= flip;
            // But for what no checksum is needed to see: the first line is compared as it is.
            if let Ok(found) = Snapshot::decode(&changed) {
                prop_assert_eq!(found.objects, objects());
            }
        }

        #[test]
        fn reading_never_panics(bytes: Vec<u8>) {
            let _ = Snapshot::decode(&bytes);
        }
    }
}
