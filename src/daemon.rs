//! The node daemon: builds every part, keeps them going, and stops them in reverse order.
//!
//! Start: state → switch → underlay → pods of the last run → admin socket → gossip → lease.
//! So pods that were there before talk to each other before any other node is asked for anything.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::Parser;
use conf::{MetricsListen, NodeConfig};
use ipam::Ipam;
use overlay::agent::{Agent, AgentConfig, AgentHandle};
use overlay::gossip::{Event, GossipConfig, LeaseState, LocalNode, Memory};
use overlay::node_id::NodeId;
use overlay::subnet::SubnetMap;
use overlay::underlay::{self, Underlay};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, interval, timeout_at};

use crate::admin;
use crate::control::{Control, HeldLease, Identity, LeasePhase, SharedControl, Topic};
use crate::{events, uninstall};

/// How often the daemon looks at its own health, takes up reports, and feeds the watchdog.
const TICK: Duration = Duration::from_secs(1);

/// How often an underlay address is looked for while there is none.
const UNDERLAY_RETRY: Duration = Duration::from_secs(2);

/// How long a stop may take for the servers to finish what they answer.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// The daemon of a Weft node.
///
/// It gives pods their network interfaces, carries their traffic between nodes in VXLAN, and learns from
/// gossip which node owns which subnet. Two lines of configuration are enough:
///
///     network = "prod"
///     seeds = ["192.168.10.11"]
#[derive(Debug, Parser)]
#[command(name = "weftd", version, verbatim_doc_comment)]
struct Options {
    /// The configuration file.
    #[arg(long, value_name = "FILE", default_value = "/etc/weft/weft.toml")]
    config: PathBuf,

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

/// Runs the daemon with these arguments, of which the first is the program's name.
///
/// Exit codes: 0 after a clean stop, 1 when something failed, 2 when the arguments or the configuration
/// are wrong.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(error) => error.exit(),
    };
    let config = match conf::load(&options.config) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(2);
        }
    };
    if options.check {
        eprintln!("{}: no errors", options.config.display());
        return ExitCode::SUCCESS;
    }
    if options.uninstall {
        return report(&uninstall::uninstall(&config, options.files));
    }
    start_logging(&config);
    match run(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn report(problems: &[String]) -> ExitCode {
    for problem in problems {
        eprintln!("not removed: {problem}");
    }
    if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Logs to standard error: systemd's journal takes it from there, with its own time stamps.
fn start_logging(config: &NodeConfig) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("WEFT_LOG")
        .unwrap_or_else(|_unset| config.log.level.as_str().into());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let log = log.with_ansi(false).with_target(false);
    if std::env::var_os("JOURNAL_STREAM").is_some() {
        log.without_time().init();
    } else {
        log.init();
    }
}

fn run(config: NodeConfig) -> Result<()> {
    raise_file_limit()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the control threads")?;
    runtime.block_on(serve(Arc::new(config)))
}

/// A port takes a descriptor, and the usual soft limit of 1024 is there for programs that use select(2).
fn raise_file_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    setrlimit(Resource::Nofile, raised).context("cannot raise the limit of open files")
}

async fn serve(config: Arc<NodeConfig>) -> Result<()> {
    // Before anything that takes time, so that a stop is always a clean one.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let control = SharedControl::new(build(&config)?);
    let mut underlay = choose_underlay(&config, &control).await?;
    with(&control, Control::reattach).await??;

    let (stop, stopped) = watch::channel(false);
    let mut servers = start_servers(&config, &control, &stopped).await?;
    sd_notify::notify(&[NotifyState::Ready]).context("cannot tell systemd that weftd is ready")?;
    tracing::info!(network = config.network, "weftd runs");

    let mut gossip = None;
    let mut tick = interval(TICK);
    let mut retry = interval(UNDERLAY_RETRY);
    loop {
        if let (None, Some(underlay)) = (&gossip, &underlay) {
            gossip = Some(Gossip::start(&config, &control, underlay).await?);
        }
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = tick.tick() => on_tick(&control, gossip.as_ref()).await?,
            _ = retry.tick(), if underlay.is_none() => {
                underlay = choose_underlay(&config, &control).await?;
            }
            news = next_news(&mut gossip) => take_up(&control, news).await?,
        }
    }

    tracing::info!("stopping: pods keep their interfaces and addresses");
    sd_notify::notify(&[NotifyState::Stopping]).context("cannot tell systemd that weftd stops")?;
    if let Some(gossip) = gossip {
        gossip.agent.leave().await;
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
    match control.into_inner() {
        Some(control) => control.stop(),
        // An answer is still being made; the end of the process stops the workers.
        None => Ok(()),
    }
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

/// Looks for the underlay address and opens the tunnel there. `None` when there is none yet.
async fn choose_underlay(
    config: &Arc<NodeConfig>,
    control: &SharedControl,
) -> Result<Option<Underlay>> {
    let mut seeds = Vec::new();
    for (host, port) in config.seed_endpoints() {
        match tokio::net::lookup_host((host, port)).await {
            Ok(addresses) => seeds.extend(addresses),
            Err(error) => tracing::warn!(seed = host, %error, "the seed's name cannot be resolved"),
        }
    }
    let config = Arc::clone(config);
    with(control, move |control| {
        let mut chosen = match underlay::choose(&config.underlay.address, &seeds) {
            Ok(chosen) => chosen,
            Err(error) => {
                control.raise(Topic::Underlay, error.to_string());
                return Ok(None);
            }
        };
        chosen.mtu = config.underlay.mtu.unwrap_or(chosen.mtu);
        tracing::info!(address = %chosen.address, interface = chosen.interface, mtu = chosen.mtu, "underlay");
        control.set_underlay(chosen.clone())?;
        Ok(Some(chosen))
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
    Ok(servers)
}

/// The running gossip, and what has been taken up of it.
struct Gossip {
    agent: AgentHandle,
    map: watch::Receiver<Arc<SubnetMap>>,
    lease: watch::Receiver<LeaseState>,
    events: mpsc::Receiver<Event>,
}

/// Something new from the gossip.
enum News {
    Map(Arc<SubnetMap>),
    Lease(LeaseState),
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
        let local = LocalNode {
            id: identity.id,
            name: identity.name,
            underlay: underlay.address,
            gossip_port: config.overlay.gossip_port,
            vxlan_port: config.overlay.vxlan_port,
            underlay_mtu: underlay.mtu,
            has_seeds: !config.seeds.is_empty(),
            memory: Memory::default(),
        };
        let mut agent = Agent::spawn(AgentConfig {
            gossip,
            local,
            seeds: config.seeds.iter().map(ToString::to_string).collect(),
            state_file: config.paths.state.join("gossip.json"),
        })
        .await?;
        let (mut map, mut lease) = (agent.map(), agent.lease());
        map.mark_changed();
        lease.mark_changed();
        let events = agent.take_events().context("the events of a new agent are there")?;
        Ok(Self { agent, map, lease, events })
    }
}

/// Waits for news; for ever while there is no gossip.
async fn next_news(gossip: &mut Option<Gossip>) -> News {
    let Some(gossip) = gossip else {
        return std::future::pending().await;
    };
    tokio::select! {
        changed = gossip.map.changed() => match changed {
            Ok(()) => News::Map(Arc::clone(&gossip.map.borrow_and_update())),
            Err(_) => News::Ended,
        },
        changed = gossip.lease.changed() => match changed {
            Ok(()) => News::Lease(gossip.lease.borrow_and_update().clone()),
            Err(_) => News::Ended,
        },
        event = gossip.events.recv() => event.map_or(News::Ended, News::Event),
    }
}

async fn take_up(control: &SharedControl, news: News) -> Result<()> {
    match news {
        News::Map(map) => with(control, |control| control.set_map(map)).await,
        News::Lease(lease) => with(control, move |control| set_lease(control, &lease)).await,
        News::Event(event) => {
            events::log(&event);
            Ok(())
        }
        News::Ended => bail!("the gossip ended by itself; the log above says why"),
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

/// Once a second: reports of the workers, totals of the gossip, health, watchdog.
async fn on_tick(control: &SharedControl, gossip: Option<&Gossip>) -> Result<()> {
    let refused = gossip.map(|gossip| {
        let counters = gossip.agent.counters();
        counters.refused.iter().map(|(reason, n)| (reason.name().to_owned(), *n)).collect()
    });
    let health = with(control, move |control| {
        if let Some(refused) = refused {
            control.set_gossip_refused(refused);
        }
        control.collect_reports();
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
