//! A policy comes: what it denies stops, and the node says why. It goes: everything passes again.

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vswitch::service::Protocol;

use super::measure::Endpoint;
use crate::events::Code;
use crate::lab::probe::{Reach, ReachServer, reach};
use crate::lab::{Family, Interrupt, Lab, address_of};

/// How long a change may take until it is in force.
const CHANGE_LIMIT: Duration = Duration::from_secs(10);

/// How long an answer is waited for.
const ANSWER_LIMIT: Duration = Duration::from_millis(300);

/// Where the pod answers.
const PORT: u16 = 8080;

/// The file of the policy.
const FILE: &str = "demo-policy.yaml";

/// What became of a pod that a policy isolates.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Denied {
    /// Who asked.
    pub(super) source: String,
    /// Who was isolated.
    pub(super) target: String,
    /// From the writing of the policy until nothing passed.
    pub(super) closed_after_ms: u64,
    /// What the target's node told.
    pub(super) told: String,
    /// From the end of the policy until everything passed.
    pub(super) open_after_ms: u64,
}

/// `None` where there is one pod alone.
pub(super) fn show(
    lab: &Lab,
    endpoints: &[Endpoint],
    interrupt: &Interrupt,
) -> Result<Option<Denied>> {
    let pods = || endpoints.iter().filter(|endpoint| endpoint.is_pod);
    let target = pods().next().context("a demo has pods")?;
    let far = pods().find(|pod| pod.node != target.node);
    let Some(source) = far.or_else(|| pods().nth(1)) else { return Ok(None) };
    let (_, state) = lab.state().pod(&target.name)?;
    let address = address_of(&state.addresses, Family::V4).context("a pod has an address")?;
    let namespace = lab.namespace(&target.name)?;
    let _server = ReachServer::start(&namespace, &[address], &[PORT], &[Protocol::Tcp])?;
    let from = lab.namespace(&source.name)?;
    let to = SocketAddr::new(address, PORT);
    let reaches = || -> Result<bool> {
        interrupt.check()?;
        let asked = [Reach { from: &from, to, protocol: Protocol::Tcp }];
        Ok(reach(&asked, ANSWER_LIMIT)?.iter().all(|answered| *answered))
    };
    until("the pod is open", reaches)?;

    let file = lab.manifests().join(FILE);
    let policy = format!(
        "apiVersion: networking.k8s.io/v1\n\
         kind: NetworkPolicy\n\
         metadata: {{name: demo-deny, namespace: {}}}\n\
         spec: {{podSelector: {{matchLabels: {{lab/pod: {}}}}}}}\n",
        state.namespace, target.name
    );
    fs::write(&file, policy).with_context(|| format!("writing {}", file.display()))?;
    let closed = until("the policy is in force", || Ok(!reaches()?))?;
    let mut told = String::new();
    until("the node tells of it", || {
        reaches()?;
        let log = fs::read_to_string(lab.log_path(&target.node))?;
        let line = log.lines().rev().find(|line| line.contains(Code::PolicyDenied.as_str()));
        told = line.map(sentence).unwrap_or_default();
        Ok(!told.is_empty())
    })?;
    fs::remove_file(&file).with_context(|| format!("removing {}", file.display()))?;
    let open = until("the policy is gone", reaches)?;
    let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    Ok(Some(Denied {
        source: source.name.clone(),
        target: target.name.clone(),
        closed_after_ms: ms(closed),
        told,
        open_after_ms: ms(open),
    }))
}

/// The sentence of a line of the log: what is before it and behind it is for programs.
fn sentence(line: &str) -> String {
    let from = line.find("ingress denied").unwrap_or(0);
    let sentence = &line[from..];
    let end = sentence.find(" direction=").unwrap_or(sentence.len());
    sentence[..end].to_owned()
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let start = Instant::now();
    while !holds()? {
        if start.elapsed() > CHANGE_LIMIT {
            bail!("not within {CHANGE_LIMIT:?}: {what}");
        }
    }
    Ok(start.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_is_found_in_the_line() {
        let line = "2026-01-01T00:00:00Z  WARN ingress denied: lab/n2-p1 (10.244.2.2) to lab/n1-p1 (10.244.1.2), TCP \
                    8080: why direction=ingress from=10.244.2.2 code=\"policy-denied\"";
        let expected =
            "ingress denied: lab/n2-p1 (10.244.2.2) to lab/n1-p1 (10.244.1.2), TCP 8080: why";
        assert_eq!(sentence(line), expected);
    }
}
