//! The daemon's side of a Kubernetes cluster: where objects come from, and where this node is in it.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, Result};
use conf::NodeConfig;
use conf::cluster::ObjectKind;
use conf::source::Update;
use conf::source::kubernetes::{Access, Api, SharedObjects, Source, Timing};
use overlay::config::LeaseConfig;
use rand::TryRng as _;
use rand::rngs::SysRng;

use super::memory::{self, Memory};
use super::placement::{Decision, Placement, decide};
use crate::control::{Control, SharedControl, Topic, now_unix_s};

/// A cluster whose objects are kept in step.
#[derive(Debug)]
pub struct Cluster {
    config: Arc<NodeConfig>,
    name: String,
    /// Nothing is asked without it.
    source: Option<Source>,
    objects: SharedObjects,
    memory: Memory,
    placement: Option<Placement>,
    /// Since when the Node objects are known.
    known_since: Option<Instant>,
}

/// Takes up what this node remembers of the cluster, if anything.
fn remember(config: &NodeConfig, control: &mut Control) {
    match memory::load(&config.paths.state, &config.network, now_unix_s()) {
        Ok(Some(snapshot)) => control.restore_kubernetes(snapshot),
        Ok(None) => {}
        Err(error) => {
            let file = config.paths.state.join(memory::FILE);
            tracing::warn!("{} is left aside: {error}", file.display());
        }
    }
}

/// What follows from where this node is.
#[derive(Debug)]
pub enum Place {
    /// Nothing new.
    Same,
    /// It is known now: the node is to run with this configuration.
    New(Arc<NodeConfig>),
    /// The control plane gave it other subnets, and no pod has addresses of the old ones.
    Moved(LeaseConfig),
}

impl Cluster {
    /// Finds out whom to ask, and where this node was before. Nobody is asked yet.
    ///
    /// # Errors
    /// When it is not known how to reach the server, or what was decided before cannot be read.
    pub async fn open(config: &Arc<NodeConfig>, control: &SharedControl) -> Result<Self> {
        let access = Access {
            kubeconfig: config.objects.kubeconfig.clone(),
            servers: config.objects.api_servers.iter().map(ToString::to_string).collect(),
            ..Access::default()
        };
        let api = Api::new(access).await.map_err(anyhow::Error::msg)?;
        let seed = SysRng.try_next_u64().context("the kernel gives no random number")?;
        let objects = SharedObjects::new(api, Timing::default(), seed);
        let state = &config.paths.state;
        let placement = Placement::load(state).with_context(|| {
            format!("cannot read {}: remove it", state.join(super::placement::FILE).display())
        })?;
        let (control, for_control) = (control.clone(), objects.clone());
        let name = tokio::task::spawn_blocking(move || {
            let mut control = control.lock();
            control.set_kubernetes(for_control);
            control.identity().name.clone()
        });
        let name = name.await.context("the control side panicked")?;
        let memory = Memory::new(state, &config.network);
        let config = Arc::clone(config);
        Ok(Self { config, name, source: None, objects, memory, placement, known_since: None })
    }

    /// Takes up what this node remembers of the cluster, and starts to read its objects, whether the API server can be
    /// reached or not.
    ///
    /// # Errors
    /// When the control side has panicked.
    pub async fn start(&mut self, control: &SharedControl) -> Result<()> {
        let (config, control) = (Arc::clone(&self.config), control.clone());
        let remembering =
            tokio::task::spawn_blocking(move || remember(&config, &mut control.lock()));
        remembering.await.context("the control side panicked")?;
        self.source = Some(Source::resume(self.objects.clone()));
        Ok(())
    }

    /// The configuration to run with, if it is known where this node is.
    pub fn config(&self) -> Option<Arc<NodeConfig>> {
        Some(Arc::new(self.placement.as_ref()?.apply(&self.config)))
    }

    /// Takes up what the file says now, and returns what follows for the configuration to run with.
    pub fn set_config(&mut self, config: &Arc<NodeConfig>) -> Option<Arc<NodeConfig>> {
        self.config = Arc::clone(config);
        self.config()
    }

    /// Who is asked.
    pub fn api(&self) -> &Api {
        self.objects.api()
    }

    /// Waits for what changes. May be cancelled.
    pub async fn next(&mut self) -> Update {
        let Some(source) = &mut self.source else { return std::future::pending().await };
        let update = source.next().await;
        if !update.changes.is_empty() {
            self.memory.note_change();
        }
        update
    }

    /// Keeps what is known on disk, while that is what the server has.
    fn keep_memory(&mut self, control: &SharedControl, now: Instant) {
        let health = self.objects.health();
        if !health.complete || health.stale_since.is_some() {
            return;
        }
        let Some(outcome) = self.memory.keep(&self.objects, now, now_unix_s()) else { return };
        let mut control = control.lock();
        match outcome {
            Ok(()) => control.clear(&Topic::Snapshot),
            Err(error) => {
                let file = self.config.paths.state.join(memory::FILE);
                let text = format!(
                    "{} is not written: {error}. A start without the API server would not know what the cluster \
                     declares now. It is tried again",
                    file.display()
                );
                control.raise(Topic::Snapshot, text);
            }
        }
    }

    /// Looks where this node is, and keeps what it knows. Called about once a second, on a thread that may block.
    pub fn look(&mut self, control: &SharedControl, now: Instant) -> Place {
        self.keep_memory(control, now);
        if !self.objects.is_known(ObjectKind::Node) {
            return Place::Same;
        }
        let waited = now.duration_since(*self.known_since.get_or_insert(now));
        let mut control = control.lock();
        let cluster = control.cluster();
        let decision = decide(&self.config, &self.name, &cluster.read(), waited);
        let topic = Topic::PodCidrs;
        let new = match (decision, &self.placement) {
            (Decision::Placed(new), _) => new,
            (Decision::Waiting(why), None) => {
                control.raise(topic, why);
                return Place::Same;
            }
            // What was decided counts until something else is.
            (Decision::Waiting(_), Some(_)) => return Place::Same,
        };
        let Some(old) = &self.placement else {
            control.clear(&topic);
            self.remember(new);
            return self.config().map_or(Place::Same, Place::New);
        };
        if old.pod_cidrs == new.pod_cidrs {
            control.clear(&topic);
            if *old != new {
                self.remember(new);
            }
            return Place::Same;
        }
        let text = |prefixes: &[ipnetwork::IpNetwork]| match prefixes {
            [] => "none".to_owned(),
            some => some.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        };
        if control.pod_count() > 0 {
            let (old, new) = (text(&old.pod_cidrs), text(&new.pod_cidrs));
            control.raise(
                topic,
                format!(
                    "the Node object's podCIDRs are {new} now, and were {old} before: pods here have addresses \
                     of these, which stay. Drain the node, and it takes up the new ones"
                ),
            );
            return Place::Same;
        }
        control.clear(&topic);
        self.remember(new);
        self.config().map_or(Place::Same, |config| Place::Moved(config.lease.clone()))
    }

    fn remember(&mut self, placement: Placement) {
        if let Err(error) = placement.save(&self.config.paths.state) {
            tracing::warn!(%error, "where this node is cannot be remembered: a start without the API server has to wait for it");
        }
        self.placement = Some(placement);
    }
}
