//! The node daemon: builds every part, keeps them going, and stops them in reverse order.
//!
//! Start: state → switch → underlay → pods of the last run → admin socket → gossip → lease.
//! So pods that were there before talk to each other before any other node is asked for anything.

use std::ffi::OsString;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use conf::source::{Update, Watcher};
use conf::{DnsConfig, MetricsListen, NodeConfig, NodeName, ObjectSource};
use ipam::Ipam;
use overlay::agent::{Agent, AgentConfig, AgentHandle};
use overlay::gossip::{Event, GossipConfig, Holdings, LeaseState, LocalNode, Memory};
use overlay::node_id::NodeId;
use overlay::pods::{LocalPod, PodMap};
use overlay::seal::KeyFile;
use overlay::subnet::SubnetMap;
use overlay::underlay::{self, Underlay, UnderlaySelector};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, interval, timeout, timeout_at};
use tracing_subscriber::EnvFilter;

use crate::admin;
use crate::admin::api::{LeasePhase, ProblemTopic};
use crate::announce::{self, Report};
use crate::control::{Control, HeldLease, Identity, SharedControl, Topic};
use crate::dns::resolver::Resolver;
use crate::dns::{self, Dns};
use crate::events::{Code, log_gossip};
use crate::health_check;
use crate::kubernetes::cluster::{Cluster, Place};
use crate::kubernetes::writer;
use crate::reload::Reload;
use crate::uninstall;

/// How often the daemon looks at its own health, takes up reports, and feeds the watchdog.
const TICK: Duration = Duration::from_secs(1);

/// How often the underlay is looked at, or looked for, and what failed is tried again.
const LOOK: Duration = Duration::from_secs(2);

/// How often in a row the underlay address is missed before another one is taken: a lease that is renewed may
/// take it away for a moment.
const GONE_LOOKS: u32 = 2;

/// How long pods of the last run wait for the underlay's MTU.
const UNDERLAY_WAIT: Duration = Duration::from_millis(200);

/// How long the name of a seed may take to be resolved.
const RESOLVE_MAX: Duration = Duration::from_secs(5);

/// How long the goodbye to the other nodes may take.
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// How long a stop may take for the servers to finish what they answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The daemon of a Weft node.
///
/// It gives pods their network interfaces, carries their traffic between nodes in VXLAN, and learns from
/// gossip which node owns which subnet.
#[derive(Debug, Parser)]
#[command(name = "weftd", version, verbatim_doc_comment, after_help = EXAMPLES)]
struct Options {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/weft/weft.toml")]
    config: PathBuf,

    /// The node's name, instead of `name` in the configuration file. In a Kubernetes cluster, that of its Node
    /// object.
    #[arg(long, value_name = "NAME")]
    node_name: Option<NodeName>,

    /// Only check the configuration file, and say all that is wrong with it.
    #[arg(long)]
    check: bool,

    /// Remove pods' interfaces, weft0, routes and the nftables table, and exit. Stop the daemon first.
    #[arg(long, conflicts_with = "check")]
    uninstall: bool,

    /// With --uninstall: also remove the node's identity, lease and allocations.
    #[arg(long, requires = "uninstall")]
    files: bool,
}

const EXAMPLES: &str = "\
Two lines of configuration are enough:
  network = \"prod\"
  seeds = [\"192.168.10.11\"]

Examples:
  weftd --check --config weft.toml      says all that is wrong with the file
  weftd --config /etc/weft/weft.toml    runs, with its log on standard error
  weftd --uninstall                     removes every trace, once the daemon is stopped";

/// Runs the daemon with these arguments, of which the first is the program's name.
///
/// Exit codes: 0 after a clean stop, 1 when something failed, 2 when a person has to act first: the
/// arguments or the configuration are wrong, or a state file is damaged.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    let mut config = match conf::load(&options.config) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(2);
        }
    };
    config.name = options.node_name.or(config.name);
    if options.check {
        eprintln!("{}: no errors", options.config.display());
        if let Some(warning) = seal_warning(&config) {
            eprintln!("warning: {warning}");
        }
        return ExitCode::SUCCESS;
    }
    if options.uninstall {
        return report(&uninstall::uninstall(&config, options.files));
    }
    start_logging(&config);
    match run(config, options.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            if needs_a_person(&error) { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

/// What a check of the file says about the seal, which is not only a matter of the file.
fn seal_warning(config: &NodeConfig) -> Option<String> {
    if config.overlay.insecure {
        return Some(admin::api::INSECURE.to_owned());
    }
    KeyFile::load(&config.overlay.key_file).err().map(|error| error.to_string())
}

/// Whether starting again by itself would fail again.
fn needs_a_person(error: &anyhow::Error) -> bool {
    let damaged = |cause: &(dyn std::error::Error + 'static)| {
        let overlay = cause.downcast_ref::<overlay::error::Error>().is_some_and(|error| {
            use overlay::error::Error;
            matches!(
                error,
                Error::CorruptNodeId { .. } | Error::CorruptState { .. } | Error::Keys(_)
            )
        });
        let ipam = cause.downcast_ref::<ipam::Error>().is_some_and(|error| {
            use ipam::{Error, StoreError};
            matches!(error, Error::Format { .. } | Error::Store(StoreError::Damaged { .. }))
        });
        overlay || ipam
    };
    error.chain().any(damaged)
}

fn report(problems: &[String]) -> ExitCode {
    for problem in problems {
        eprintln!("not removed: {problem}");
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Logs to standard error: systemd's journal takes it from there, with its own time stamps.
fn start_logging(config: &NodeConfig) {
    let level = || config.log.level.as_str().to_owned();
    let asked = std::env::var("WEFT_LOG").unwrap_or_else(|_unset| level());
    let (filter, wrong) = match EnvFilter::try_new(&asked) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(level()), Some(error)),
    };
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(false).with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
    if let Some(error) = wrong {
        tracing::warn!("WEFT_LOG is ignored: {error}");
    }
}

fn run(config: NodeConfig, file: PathBuf) -> Result<()> {
    raise_file_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    let served = runtime.block_on(serve(Arc::new(config), file));
    // A write that hangs in the kernel must not hold up the end of the process.
    runtime.shutdown_timeout(STOP_TIMEOUT);
    served
}

/// A port takes a descriptor, and the usual soft limit of 1024 is there for programs that use select(2).
fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}

/// Nothing is started without the keys that gossip needs, nor is it silent where none are wanted.
fn check_seal(config: &NodeConfig) -> Result<()> {
    if config.overlay.insecure {
        tracing::warn!("{}", admin::api::INSECURE);
        return Ok(());
    }
    let file = KeyFile::load(&config.overlay.key_file)
        .map_err(|error| overlay::error::Error::Keys(Box::new(error)))?;
    let keys = file.ring().map(|ring| ring.ids()).unwrap_or_default();
    tracing::info!(?keys, "gossip is sealed; the first key is in use");
    Ok(())
}

async fn serve(mut config: Arc<NodeConfig>, file: PathBuf) -> Result<()> {
    check_seal(&config)?;
    // Before anything that takes time, so that a stop is always a clean one.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let control = SharedControl::new(build(&config)?);
    let mut cluster = match config.objects.source {
        ObjectSource::Manifests => None,
        ObjectSource::Kubernetes => Some(Cluster::open(&config, &control).await?),
    };
    // In a Kubernetes cluster, the Node objects say where this node is; or what they said before.
    let mut placed = match &cluster {
        Some(cluster) => cluster.config(),
        None => Some(Arc::clone(&config)),
    };
    let choose = |config: &Arc<NodeConfig>, former: Option<Underlay>| {
        tokio::spawn(choose_underlay(Arc::clone(config), control.clone(), former))
    };
    let mut choosing = placed.as_ref().map(|config| choose(config, None));
    // Known at once, unless the name of a seed is to be resolved. Nothing waits for that: not the pods
    // that are there, and not the service manager.
    let mut underlay = match timeout(UNDERLAY_WAIT, wait_for(&mut choosing)).await {
        Ok(underlay) => underlay?,
        Err(_elapsed) => None,
    };
    // Pods that are there come to ports for which there are policies already.
    if let Some(cluster) = &mut cluster {
        cluster.start(&control).await?;
    }
    with(&control, Control::reattach).await??;

    // Before anybody is told that the daemon runs: what it remembers may be damaged.
    let (monitor, mut findings) = with(&control, Control::take_paths)
        .await?
        .context("the paths of a new control side are there")?;
    let mut prober = tokio::spawn(monitor.run());
    let mut gossip = match (&underlay, &placed) {
        (Some(underlay), Some(placed)) => Some(Gossip::start(placed, &control, underlay).await?),
        (Some(_) | None, _) => None,
    };

    let watcher = match config.objects.source {
        ObjectSource::Manifests => Some(watch_objects(&config, &control).await?),
        ObjectSource::Kubernetes => None,
    };
    let mut beside = start_beside(&control).await?;
    let (stop, stopped) = watch::channel(false);
    let mut servers = start_servers(&config, &control, &stopped).await?;
    sd_notify::notify(&[NotifyState::Ready]).context("cannot tell systemd that weftd is ready")?;
    let events = with(&control, |control| control.events().clone()).await?;
    let version = env!("CARGO_PKG_VERSION");
    let about: [(&str, &dyn ToString); 2] = [("network", &config.network), ("version", &version)];
    events.emit(Code::DaemonStarted, "weftd runs", &about);

    let writer = match &cluster {
        Some(cluster) => {
            let name = with(&control, |control| control.identity().name.clone()).await?;
            Some(tokio::spawn(writer::run(cluster.api().clone(), control.clone(), name)))
        }
        None => None,
    };

    let mut tick = interval(TICK);
    let mut look = interval(LOOK);
    let mut looks_without_address = 0;
    loop {
        if let (None, Some(underlay), Some(placed)) = (&gossip, &underlay, &placed) {
            gossip = Some(Gossip::start(placed, &control, underlay).await?);
        }
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = hangup.recv() => {
                if let Some(changed) = reload(&file, &config, &control).await? {
                    config = changed;
                    placed = match &mut cluster {
                        None => Some(Arc::clone(&config)),
                        Some(cluster) => cluster.set_config(&config),
                    };
                    if let (Some(gossip), Some(placed)) = (&gossip, &placed) {
                        gossip.agent.configure(placed.lease.clone()).await;
                    }
                }
            }
            _ = tick.tick() => {
                on_tick(&control, gossip.as_mut()).await?;
                match look_for_place(&mut cluster, &control).await? {
                    Place::Same => {}
                    Place::New(config) => {
                        choosing = Some(choose(&config, None));
                        placed = Some(config);
                    }
                    Place::Moved(lease) => {
                        if let Some(gossip) = &gossip {
                            gossip.agent.configure(lease).await;
                        }
                        placed = cluster.as_ref().and_then(Cluster::config);
                    }
                }
            }
            update = next_update(&mut cluster) => {
                with(&control, move |control| control.update_kubernetes(update)).await?;
            }
            _ = look.tick() => match (&underlay, &placed) {
                (None, Some(placed)) if choosing.is_none() => choosing = Some(choose(placed, None)),
                (None, _) | (Some(_), None) => {}
                (Some(known), Some(placed)) => match look_after(placed, &control, known.clone()).await? {
                    Look::Same => looks_without_address = 0,
                    Look::Resized(changed) => {
                        // Other nodes learn the new MTU with a new record.
                        leave(&mut gossip).await;
                        underlay = Some(changed);
                    }
                    Look::Gone => {
                        looks_without_address += 1;
                        let is_gone = looks_without_address >= GONE_LOOKS;
                        if is_gone && choosing.is_none() && is_free_to_choose(placed) {
                            choosing = Some(choose(placed, Some(known.clone())));
                        }
                    }
                },
            },
            chosen = wait_for(&mut choosing) => if let Some(chosen) = chosen? {
                // The node keeps its id and its lease, and tells the others where it is now.
                leave(&mut gossip).await;
                looks_without_address = 0;
                underlay = Some(chosen);
            },
            news = next_news(&mut gossip) => take_up(&control, gossip.as_mut(), news).await?,
            Some(ended) = beside.join_next() => {
                ended.context("who announces addresses or answers for health panicked")??;
                bail!("nobody announces addresses or answers for health any more");
            }
            ended = &mut prober => {
                ended.context("who looks after the paths panicked")?;
                bail!("nobody looks after the paths to other nodes any more");
            }
            Some((id, finding)) = findings.recv() => {
                with(&control, move |control| control.take_up_finding(id, finding)).await?;
            }
        }
    }

    let text = "stopping: pods keep their interfaces and addresses";
    events.emit(Code::DaemonStopping, text, &[]);
    sd_notify::notify(&[NotifyState::Stopping]).context("cannot tell systemd that weftd stops")?;
    prober.abort();
    beside.abort_all();
    if let Some(writer) = &writer {
        writer.abort();
    }
    if let Some(gossip) = gossip {
        gossip.leave().await;
    }
    // The receivers may all be gone, when every server has ended already.
    let _ = stop.send(true);
    let deadline = Instant::now() + STOP_TIMEOUT;
    for server in &mut servers {
        if timeout_at(deadline, server).await.is_err() {
            tracing::warn!(
                "a client of the admin socket or metrics port keeps its connection open"
            );
        }
    }
    for server in servers {
        server.abort();
    }
    let _ = fs::remove_file(config.paths.socket());
    drop(cluster);
    // Its thread may be handing over a change just now.
    tokio::task::spawn_blocking(move || drop(watcher)).await.context("the watcher panicked")?;
    match control.into_inner() {
        Some(control) => control.stop(),
        // An answer is still being made; the end of the process stops the workers.
        None => Ok(()),
    }
}

/// Starts what serves Services beside the switch: who announces addresses, and who answers for health.
async fn start_beside(control: &SharedControl) -> Result<JoinSet<Result<()>>> {
    let (me, plans, checks) =
        with(control, |control| (control.identity().id, control.plans(), control.health_checks()))
            .await?;
    let mut beside = JoinSet::new();
    let (report, mut reports) = watch::channel(Report::default());
    beside.spawn(async move {
        announce::run(me, plans, report).await;
        Ok(())
    });
    let shared = control.clone();
    beside.spawn(async move {
        while reports.changed().await.is_ok() {
            let report = reports.borrow_and_update().clone();
            with(&shared, |control| control.set_announced(report)).await?;
        }
        Ok(())
    });
    let (problem, mut problems) = watch::channel(None);
    beside.spawn(async move {
        health_check::run(checks, problem).await;
        Ok(())
    });
    let shared = control.clone();
    beside.spawn(async move {
        let topic = Topic::Services("health checks");
        while problems.changed().await.is_ok() {
            let (topic, problem) = (topic.clone(), problems.borrow_and_update().clone());
            with(&shared, move |control| match problem {
                Some(problem) => control.raise(topic, problem),
                None => control.clear(&topic),
            })
            .await?;
        }
        Ok(())
    });
    Ok(beside)
}

/// Opens the state of the last run and starts the switch.
fn build(config: &Arc<NodeConfig>) -> Result<Control> {
    let paths = &config.paths;
    for directory in [&paths.state, &paths.run] {
        fs::create_dir_all(directory)
            .with_context(|| format!("cannot make the directory {}", directory.display()))?;
    }
    // Opened first: its lock keeps a second daemon from touching the same state.
    let ipam = Ipam::open(&paths.state.join(uninstall::ALLOCATIONS))?;
    let identity = Identity {
        id: NodeId::load_or_create(&paths.state.join("node-id"))?,
        name: config.node_name().map_err(anyhow::Error::msg)?.to_string(),
        boot_id: boot_id()?,
    };
    tracing::info!(version = env!("CARGO_PKG_VERSION"), name = identity.name, id = %identity.id, "weftd starts");
    Control::new(Arc::clone(config), identity, ipam)
}

fn boot_id() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?;
    Ok(text.trim().to_owned())
}

/// Waits for what changes in the cluster; for ever where objects come from files.
async fn next_update(cluster: &mut Option<Cluster>) -> Update {
    match cluster {
        Some(cluster) => cluster.next().await,
        None => std::future::pending().await,
    }
}

/// Looks where this node is in the cluster.
async fn look_for_place(cluster: &mut Option<Cluster>, control: &SharedControl) -> Result<Place> {
    let Some(mut looking) = cluster.take() else { return Ok(Place::Same) };
    let control = control.clone();
    let looked = tokio::task::spawn_blocking(move || {
        let place = looking.look(&control, std::time::Instant::now());
        (looking, place)
    });
    let (looked, place) = looked.await.context("the control side panicked")?;
    *cluster = Some(looked);
    Ok(place)
}

/// Reads the manifests, and takes up what changes in them from now on.
async fn watch_objects(config: &NodeConfig, control: &SharedControl) -> Result<Watcher> {
    let (dir, shared) = (config.objects.dir.clone(), control.clone());
    tokio::task::spawn_blocking(move || {
        let changed = shared.clone();
        let deliver = move |update| changed.lock().update_objects(update);
        let (watcher, first) = Watcher::start(&dir, deliver)
            .with_context(|| format!("cannot watch {}", dir.display()))?;
        shared.lock().set_directory(watcher.directory(), first);
        Ok(watcher)
    })
    .await
    .context("the watcher panicked")?
}

/// Runs control work, which may block, beside the runtime's threads.
async fn with<T: Send + 'static>(
    control: &SharedControl,
    work: impl FnOnce(&mut Control) -> T + Send + 'static,
) -> Result<T> {
    let control = control.clone();
    tokio::task::spawn_blocking(move || work(&mut control.lock()))
        .await
        .context("the control side panicked")
}

/// Waits for the choice of the underlay address; for ever when none is being made.
async fn wait_for(
    choosing: &mut Option<JoinHandle<Result<Option<Underlay>>>>,
) -> Result<Option<Underlay>> {
    let Some(choice) = choosing else {
        return std::future::pending().await;
    };
    let chosen = choice.await;
    *choosing = None;
    chosen.context("the choice of the underlay address panicked")?
}

/// Whether another underlay address may be taken when the one in use is gone.
fn is_free_to_choose(config: &NodeConfig) -> bool {
    !matches!(config.underlay.address, UnderlaySelector::Address(_))
}

/// Looks for the underlay address and opens the tunnel there, in place of the `former` one that is gone. `None`
/// when there is none yet.
async fn choose_underlay(
    config: Arc<NodeConfig>,
    control: SharedControl,
    former: Option<Underlay>,
) -> Result<Option<Underlay>> {
    let seeds = match config.underlay.address {
        UnderlaySelector::Auto => resolve_seeds(&config).await,
        // The seeds do not matter then.
        UnderlaySelector::Address(_)
        | UnderlaySelector::Interface(_)
        | UnderlaySelector::Cidr(_) => Vec::new(),
    };
    with(&control, move |control| {
        let mut chosen = match underlay::choose(&config.underlay.address, &seeds) {
            Ok(chosen) => chosen,
            // That the former one is gone is told already.
            Err(_) if former.is_some() => return Ok(None),
            Err(error) => {
                control.raise(Topic::Node(ProblemTopic::Underlay), error.to_string());
                return Ok(None);
            }
        };
        chosen.mtu = config.underlay.mtu.unwrap_or(chosen.mtu);
        let Underlay { address, interface, mtu } = &chosen;
        let about: [(&str, &dyn ToString); 3] =
            [("address", address), ("interface", interface), ("mtu", mtu)];
        match &former {
            // It has come back meanwhile.
            Some(former) if former.address == *address => return Ok(None),
            Some(former) => {
                let before: (&str, &dyn ToString) = ("before", &former.address);
                let about: Vec<_> = about.into_iter().chain([before]).collect();
                let text = "the underlay address has changed: this node goes on under the new one";
                control.events().emit(Code::UnderlayChanged, text, &about);
            }
            None => control.events().emit(Code::UnderlayChosen, "underlay", &about),
        }
        control.set_underlay(chosen.clone())?;
        Ok(Some(chosen))
    })
    .await?
}

/// Resolves all seeds at a time. Those that take too long are left out, and tried again with the next
/// choice.
async fn resolve_seeds(config: &NodeConfig) -> Vec<SocketAddr> {
    let mut lookups = JoinSet::new();
    for (host, port) in config.seed_endpoints() {
        let host = host.to_owned();
        lookups.spawn(async move {
            let found = timeout(RESOLVE_MAX, tokio::net::lookup_host((host.as_str(), port))).await;
            match found {
                Ok(Ok(addresses)) => addresses.collect(),
                Ok(Err(error)) => {
                    tracing::warn!(seed = host, %error, "the seed's name cannot be resolved");
                    Vec::new()
                }
                Err(_elapsed) => {
                    tracing::warn!(seed = host, "the seed's name is not resolved in time");
                    Vec::new()
                }
            }
        });
    }
    lookups.join_all().await.concat()
}

/// What became of the underlay address.
enum Look {
    Same,
    /// Its MTU has changed, and is taken up already.
    Resized(Underlay),
    Gone,
}

/// Looks whether the underlay is still as it was: the address may vanish, the MTU may change.
async fn look_after(
    config: &Arc<NodeConfig>,
    control: &SharedControl,
    known: Underlay,
) -> Result<Look> {
    let config = Arc::clone(config);
    with(control, move |control| {
        let topic = Topic::Node(ProblemTopic::Underlay);
        let Ok(mut found) = underlay::choose(&UnderlaySelector::Address(known.address), &[]) else {
            let then = match is_free_to_choose(&config) {
                true => "another one that fits `address` under [underlay] is taken as soon as there is one",
                false => "bring it back, or name another one under [underlay] and restart weftd",
            };
            let problem =
                format!("the underlay address {} is gone from this host: {then}", known.address);
            control.raise(topic, problem);
            return Ok(Look::Gone);
        };
        control.clear(&topic);
        found.mtu = config.underlay.mtu.unwrap_or(found.mtu);
        if found == known {
            return Ok(Look::Same);
        }
        let about: [(&str, &dyn ToString); 2] = [("mtu", &found.mtu), ("before", &known.mtu)];
        let text = "the underlay's MTU has changed";
        control.events().emit(Code::UnderlayChanged, text, &about);
        control.set_underlay(found.clone())?;
        Ok(Look::Resized(found))
    })
    .await?
}

async fn start_servers(
    config: &NodeConfig,
    control: &SharedControl,
    stopped: &watch::Receiver<bool>,
) -> Result<Vec<JoinHandle<std::io::Result<()>>>> {
    let socket = config.paths.socket();
    let listener = admin::bind(&socket)
        .with_context(|| format!("cannot open the admin socket {}", socket.display()))?;
    let mut servers = vec![tokio::spawn(admin::serve(listener, control.clone(), stopped.clone()))];
    if let MetricsListen::At(address) = config.metrics.listen {
        let listener = admin::bind_metrics(address).await.with_context(|| {
            format!(
                "cannot serve metrics on {address}: set listen under [metrics] to a free address, or to \"off\""
            )
        })?;
        let server = admin::serve_metrics(listener, control.clone(), stopped.clone());
        servers.push(tokio::spawn(server));
    }
    if let Some(resolver) = with(control, |control| control.dns().cloned()).await? {
        let names = serve_names(config.dns.clone(), resolver, control.clone(), stopped.clone());
        servers.push(tokio::spawn(names));
    }
    Ok(servers)
}

/// Serves names where they are to be served, until `stopped` says so. While an address is taken, it tries again:
/// pods have a network without it, too.
async fn serve_names(
    config: DnsConfig,
    resolver: Arc<Resolver>,
    control: SharedControl,
    mut stopped: watch::Receiver<bool>,
) -> std::io::Result<()> {
    let topic = || Topic::Node(ProblemTopic::Dns);
    let mut places =
        with(&control, |control| control.dns_addresses()).await.map_err(std::io::Error::other)?;
    let mut dns = Dns::start(&config, &resolver, dns::PORT, &stopped);
    loop {
        let addresses = places.borrow_and_update().clone();
        let problem = dns.listen(&addresses).err().map(|error| {
            format!(
                "pods' names are not answered, since port {} of {} cannot be listened on: {error}. Stop what has \
                 it (`ss -lpn sport = :53`), choose other addresses under [dns], or set enabled = false",
                dns::PORT,
                addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            )
        });
        let is_well = problem.is_none();
        with(&control, move |control| match problem {
            Some(problem) => control.raise(topic(), problem),
            None => control.clear(&topic()),
        })
        .await
        .map_err(std::io::Error::other)?;
        tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => break,
            changed = places.changed() => if changed.is_err() { break },
            () = tokio::time::sleep(LOOK), if !is_well => {}
        }
    }
    dns.stopped().await;
    Ok(())
}

/// The running gossip, and what has been taken up of it.
struct Gossip {
    agent: AgentHandle,
    map: watch::Receiver<Arc<SubnetMap>>,
    pods: watch::Receiver<Arc<PodMap>>,
    /// This node's own.
    own_pods: watch::Receiver<Vec<LocalPod>>,
    lease: watch::Receiver<LeaseState>,
    storage: watch::Receiver<Option<String>>,
    keys: watch::Receiver<Option<String>>,
    events: mpsc::Receiver<Event>,
    /// What was told last of pods and their addresses.
    told: Holdings,
}

/// Something new from the gossip.
enum News {
    Map(Arc<SubnetMap>),
    Pods(Arc<PodMap>),
    Lease(LeaseState),
    /// Why what must survive a restart cannot be written, or that it can.
    Storage(Option<String>),
    /// Why the key file cannot be used as it is now, or that it can.
    Keys(Option<String>),
    Event(Event),
    /// The gossip ended, which it never does by itself.
    Ended,
}

impl Gossip {
    async fn start(
        config: &NodeConfig,
        control: &SharedControl,
        underlay: &Underlay,
    ) -> Result<Self> {
        let identity = with(control, |control| control.identity().clone()).await?;
        let mut gossip = GossipConfig::new(&config.network, config.lease.clone());
        gossip.nodes_max = usize::try_from(config.overlay.nodes_max)?;
        gossip.pods_max = usize::try_from(config.overlay.pods_max)?;
        gossip.preset = config.overlay.preset;
        let local = LocalNode {
            id: identity.id,
            name: identity.name,
            underlay: underlay.address,
            gossip_port: config.overlay.gossip_port,
            vxlan_port: config.overlay.vxlan_port,
            underlay_mtu: underlay.mtu,
            software: concat!("weft/", env!("CARGO_PKG_VERSION")).to_owned(),
            has_seeds: !config.seeds.is_empty(),
            memory: Memory::default(),
        };
        let mut agent = Agent::spawn(AgentConfig {
            gossip,
            local,
            seeds: config.seeds.iter().map(ToString::to_string).collect(),
            state_file: config.paths.state.join("gossip.json"),
            key_file: (!config.overlay.insecure).then(|| config.overlay.key_file.clone()),
        })
        .await?;
        let mut own_pods = with(control, |control| {
            // How old pods are counts from now.
            control.tell_pods();
            control.told_pods()
        })
        .await?;
        own_pods.mark_changed();
        let (mut map, mut lease) = (agent.map(), agent.lease());
        let pods = agent.pods();
        map.mark_changed();
        lease.mark_changed();
        let (storage, keys) = (agent.storage(), agent.key_trouble());
        let events = agent.take_events().context("the events of a new agent are there")?;
        let told = Holdings::default();
        let mut gossip = Self { agent, map, pods, own_pods, lease, storage, keys, events, told };
        gossip.tell_holdings(control).await?;
        Ok(gossip)
    }
}

impl Gossip {
    /// Tells which addresses the pods here have, and which ones are left to others, if that has changed.
    async fn tell_holdings(&mut self, control: &SharedControl) -> Result<()> {
        let holdings = with(control, Control::holdings).await?;
        if holdings != self.told {
            self.agent.set_holdings(holdings.clone()).await;
            self.told = holdings;
        }
        Ok(())
    }

    /// Passes this node's pods on to the other nodes.
    fn tell_pods(&mut self) {
        let pods = self.own_pods.borrow_and_update().clone();
        if let Err(error) = self.agent.set_pods(pods) {
            tracing::error!("the control side tells what cannot be told: {error}");
        }
    }

    /// Says goodbye, within bounds: a stop must not hang on the network.
    async fn leave(self) {
        if timeout(LEAVE_MAX, self.agent.leave()).await.is_err() {
            tracing::warn!("the goodbye to the other nodes took too long");
        }
    }
}

/// Ends the gossip, with a goodbye.
async fn leave(gossip: &mut Option<Gossip>) {
    if let Some(gossip) = gossip.take() {
        gossip.leave().await;
    }
}

/// Reads the file again. What it says of leases is taken up by the control side, and returned for the gossip.
async fn reload(
    file: &Path,
    current: &Arc<NodeConfig>,
    control: &SharedControl,
) -> Result<Option<Arc<NodeConfig>>> {
    let (file, current) = (file.to_owned(), Arc::clone(current));
    with(control, move |control| {
        let read = match conf::load(&file) {
            Ok(read) => read,
            Err(errors) => {
                let text = format!(
                    "the file is not taken up, and what was read before stays in force: {errors}"
                );
                control.events().emit(Code::ConfigRefused, text, &[]);
                return None;
            }
        };
        let reload = Reload::new(&current, read);
        control.events().emit(Code::ConfigRead, reload.describe(), &[]);
        reload.is_new.then(|| {
            let config = Arc::new(reload.config);
            control.set_lease_config(Arc::clone(&config));
            config
        })
    })
    .await
}

/// Waits for news; for ever while there is no gossip.
async fn next_news(gossip: &mut Option<Gossip>) -> News {
    let Some(gossip) = gossip else {
        return std::future::pending().await;
    };
    loop {
        let news = tokio::select! {
            changed = gossip.map.changed() => match changed {
                Ok(()) => News::Map(Arc::clone(&gossip.map.borrow_and_update())),
                Err(_) => News::Ended,
            },
            changed = gossip.pods.changed() => match changed {
                Ok(()) => News::Pods(Arc::clone(&gossip.pods.borrow_and_update())),
                Err(_) => News::Ended,
            },
            changed = gossip.own_pods.changed() => match changed {
                Ok(()) => {
                    gossip.tell_pods();
                    continue;
                }
                Err(_) => News::Ended,
            },
            changed = gossip.lease.changed() => match changed {
                Ok(()) => News::Lease(gossip.lease.borrow_and_update().clone()),
                Err(_) => News::Ended,
            },
            changed = gossip.storage.changed() => match changed {
                Ok(()) => News::Storage(gossip.storage.borrow_and_update().clone()),
                Err(_) => News::Ended,
            },
            changed = gossip.keys.changed(), if gossip.keys.has_changed().is_ok() => match changed {
                Ok(()) => News::Keys(gossip.keys.borrow_and_update().clone()),
                Err(_) => std::future::pending().await,
            },
            event = gossip.events.recv() => event.map_or(News::Ended, News::Event),
        };
        return news;
    }
}

async fn take_up(control: &SharedControl, gossip: Option<&mut Gossip>, news: News) -> Result<()> {
    match news {
        News::Map(map) => {
            with(control, |control| control.set_map(map)).await?;
            tell_holdings(control, gossip).await
        }
        News::Pods(pods) => with(control, |control| control.set_pods(pods)).await,
        News::Lease(lease) => {
            with(control, move |control| set_lease(control, &lease)).await?;
            tell_holdings(control, gossip).await
        }
        News::Storage(problem) => {
            let topic = Topic::Node(ProblemTopic::Storage);
            with(control, move |control| match problem {
                Some(problem) => control.raise(topic, problem),
                None => control.clear(&topic),
            })
            .await
        }
        News::Keys(problem) => {
            let topic = Topic::Node(ProblemTopic::Keys);
            with(control, move |control| match problem {
                Some(problem) => control.raise(topic, problem),
                None => control.clear(&topic),
            })
            .await
        }
        News::Event(event) => {
            with(control, move |control| log_gossip(control.events(), &event)).await
        }
        News::Ended => bail!("the gossip ended by itself; the log above says why"),
    }
}

async fn tell_holdings(control: &SharedControl, gossip: Option<&mut Gossip>) -> Result<()> {
    match gossip {
        Some(gossip) => gossip.tell_holdings(control).await,
        None => Ok(()),
    }
}

fn set_lease(control: &mut Control, state: &LeaseState) {
    let (phase, problem) = match state {
        LeaseState::Held { prefixes } => return control.set_lease(HeldLease::new(prefixes)),
        LeaseState::Waiting => (LeasePhase::Waiting, None),
        LeaseState::Claiming { .. } => (LeasePhase::Claiming, None),
        LeaseState::Exhausted { ranges, .. } => {
            let ranges: Vec<_> = ranges.iter().map(ToString::to_string).collect();
            let problem = format!(
                "every subnet of {} belongs to another node: add a range under [lease], or remove nodes that \
                 will not return (`weft nodes`)",
                ranges.join(", ")
            );
            (LeasePhase::Exhausted, Some(problem))
        }
        LeaseState::Returning { .. } => (LeasePhase::Returning, None),
        LeaseState::Blocked { prefix, by, .. } => {
            let problem = format!(
                "the subnet {prefix} is fixed for this node and for node {by}, which has it: change `fixed` under \
                 [lease] in the configuration of one of them (`weft nodes` shows who that is)"
            );
            (LeasePhase::Blocked, Some(problem))
        }
        LeaseState::Suspended { other } => {
            let problem = format!(
                "the node at {other} has this node's identity, as after cloning a disk: stop weftd here, remove \
                 the file node-id in its state directory, and start it"
            );
            (LeasePhase::Suspended, Some(problem))
        }
        LeaseState::Left => (LeasePhase::Left, None),
    };
    control.set_no_lease(phase, problem);
}

/// Once a second: reports of the workers, totals of the gossip, repairs, health, watchdog.
async fn on_tick(control: &SharedControl, mut gossip: Option<&mut Gossip>) -> Result<()> {
    tell_holdings(control, gossip.as_deref_mut()).await?;
    let heard = gossip.map(|gossip| {
        let counters = gossip.agent.counters();
        let refused = counters.refused.iter().map(|(reason, n)| (reason.name().to_owned(), *n));
        (refused.collect(), gossip.agent.strangers(), counters.pods_learned)
    });
    let health = with(control, move |control| {
        if let Some((refused, strangers, learned)) = heard {
            control.set_gossip_refused(refused, strangers);
            control.set_pods_learned(learned);
        }
        control.collect_reports();
        control.repair();
        control.tidy_flows();
        control.health()
    })
    .await?;
    match health {
        Ok(()) => {
            sd_notify::notify(&[NotifyState::Watchdog]).context("cannot feed systemd's watchdog")
        }
        // Not fed, the watchdog restarts the daemon. Without one, this is the way to be restarted.
        Err(problem) => bail!("{problem}"),
    }
}
