//! Zones and records from the configuration. Pure.

use std::collections::{BTreeSet, HashMap};

use hickory_proto::op::ResponseCode;
use hickory_proto::rr::{Name, RData, Record, RecordType};

use super::answer::{Answer, soa};
use super::cluster::Found;

/// Records that somebody wrote down, and the zones of which they are all there is.
///
/// A name outside of these zones that has a record is answered; whatever else it may have elsewhere is
/// hidden, as with a line in a hosts file.
#[derive(Debug, Clone, Default)]
pub struct StaticZones {
    zones: Vec<Name>,
    records: HashMap<Name, Vec<Record>>,
    /// Names that have something below them: they exist, too.
    parents: BTreeSet<Name>,
    ttl: u32,
}

impl StaticZones {
    /// These zones with these records. `ttl` is that of negative answers, in seconds.
    pub fn new(
        zones: impl IntoIterator<Item = Name>,
        records: impl IntoIterator<Item = Record>,
        ttl: u32,
    ) -> Self {
        let zones: Vec<Name> = zones.into_iter().collect();
        let mut made =
            Self { parents: zones.iter().cloned().collect(), zones, ttl, ..Self::default() };
        for record in records {
            let mut parent = record.name.base_name();
            while made.zone_of(&parent).is_some() && made.parents.insert(parent.clone()) {
                parent = parent.base_name();
            }
            made.records.entry(record.name.clone()).or_default().push(record);
        }
        made
    }

    /// The names of the zones.
    pub fn zones(&self) -> &[Name] {
        &self.zones
    }

    /// Answers a question.
    pub fn answer(&self, name: &Name, kind: RecordType) -> Found {
        let zone = self.zone_of(name);
        let Some(records) = self.records.get(name).or_else(|| self.wildcard(name)) else {
            let rcode = match self.parents.contains(name) {
                true => ResponseCode::NoError,
                false => ResponseCode::NXDomain,
            };
            return match zone {
                Some(zone) if name == zone && kind == RecordType::SOA => {
                    Found::Answer(Answer::records(vec![soa(zone, self.ttl)]))
                }
                Some(zone) => Found::Answer(Answer::negative(rcode, soa(zone, self.ttl))),
                None => Found::Foreign,
            };
        };
        let owned =
            |record: &Record| Record::from_rdata(name.clone(), record.ttl, record.data.clone());
        let wanted = |record: &&Record| record.record_type() == kind || kind == RecordType::ANY;
        let answers: Vec<_> = records.iter().filter(wanted).map(owned).collect();
        if !answers.is_empty() {
            return Found::Answer(Answer::records(answers));
        }
        let alias = records.iter().find_map(|record| {
            let RData::CNAME(target) = &record.data else { return None };
            Some((owned(record), target.0.clone()))
        });
        if let Some((record, target)) = alias {
            return Found::Alias(Answer::records(vec![record]), target);
        }
        // The name is ours, so that nobody else is asked for its other types.
        let above = name.base_name();
        let zone = zone.unwrap_or(&above);
        Found::Answer(Answer::negative(ResponseCode::NoError, soa(zone, self.ttl)))
    }

    fn zone_of(&self, name: &Name) -> Option<&Name> {
        let inside = self.zones.iter().filter(|zone| zone.zone_of(name));
        inside.max_by_key(|zone| zone.num_labels())
    }

    /// What `*` stands for at this name (RFC 4592): the closest name above that exists decides.
    fn wildcard(&self, name: &Name) -> Option<&Vec<Record>> {
        if self.parents.contains(name) {
            return None;
        }
        let mut parent = name.base_name();
        while !parent.is_root() {
            let star = parent.prepend_label("*").ok()?;
            if let Some(records) = self.records.get(&star) {
                return Some(records);
            }
            if self.records.contains_key(&parent) || self.parents.contains(&parent) {
                return None;
            }
            parent = parent.base_name();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use conf::StaticRecord;

    use super::*;

    fn zones() -> StaticZones {
        let records = [
            "db.lab.example A 192.0.2.7",
            "db.lab.example A 192.0.2.8",
            "www.lab.example CNAME db.lab.example.",
            "a.deep.lab.example AAAA fd00::1",
            "*.apps.lab.example A 192.0.2.9",
            "x.apps.lab.example A 192.0.2.10",
            "printer.home A 192.0.2.11",
        ];
        let records = records.map(|text| text.parse::<StaticRecord>().unwrap().record().clone());
        StaticZones::new([Name::from_ascii("lab.example.").unwrap()], records, 5)
    }

    fn ask(name: &str, kind: RecordType) -> String {
        let name = Name::from_ascii(name).unwrap();
        match zones().answer(&name, kind) {
            Found::Foreign => "foreign".to_owned(),
            Found::Alias(_, target) => format!("-> {target}"),
            Found::Answer(answer) if answer.answers.is_empty() => {
                format!("{:?}", answer.rcode)
            }
            Found::Answer(answer) => {
                assert!(answer.answers.iter().all(|record| record.name.eq_case(&name)));
                answer.answers.iter().map(|record| format!("{} ", record.data)).collect()
            }
        }
    }

    #[test]
    fn each_name_has_its_answer() {
        for (name, kind, expected) in [
            ("db.lab.example.", RecordType::A, "192.0.2.7 192.0.2.8 "),
            ("DB.Lab.example.", RecordType::A, "192.0.2.7 192.0.2.8 "),
            ("db.lab.example.", RecordType::AAAA, "NoError"),
            ("www.lab.example.", RecordType::A, "-> db.lab.example."),
            ("www.lab.example.", RecordType::CNAME, "db.lab.example. "),
            ("none.lab.example.", RecordType::A, "NXDomain"),
            ("deep.lab.example.", RecordType::A, "NoError"),
            ("lab.example.", RecordType::A, "NoError"),
            ("y.apps.lab.example.", RecordType::A, "192.0.2.9 "),
            ("z.y.apps.lab.example.", RecordType::A, "192.0.2.9 "),
            ("x.apps.lab.example.", RecordType::A, "192.0.2.10 "),
            ("y.apps.lab.example.", RecordType::TXT, "NoError"),
            ("printer.home.", RecordType::A, "192.0.2.11 "),
            ("printer.home.", RecordType::AAAA, "NoError"),
            ("scanner.home.", RecordType::A, "foreign"),
            ("example.", RecordType::A, "foreign"),
        ] {
            assert_eq!(ask(name, kind), expected, "{name} {kind}");
        }
    }
}
