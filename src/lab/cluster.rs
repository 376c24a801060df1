//! The lab itself: what stands, and everything that can be done to it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use overlay::seal::{ClusterKey, KeyFile};
use rustix::process::Signal;

use super::admin::Admin;
use super::config::{Family, LabConfig, NODES_MAX, Plan};
use super::namespace::{self, Namespace};
use super::netlink::{self, End};
use super::process::{self, ProcessId};
use super::state::{self, LabState, Labs, NodeState, PodState};
use super::wait::{Interrupt, Interrupted, Wait};
use super::{daemon, hosts, plugin};

/// Name of the namespace with the bridge between the nodes.
pub const UNDERLAY: &str = "underlay";

/// Name of the namespace that stands for the world outside.
pub const WORLD: &str = "world";

/// The bridge of those nodes that were divided from the others.
const SECOND_BRIDGE: &str = "divided";

/// The bridge in the underlay.
const BRIDGE: &str = "br0";

/// A node's link to the underlay, in the node.
const NODE_LINK: &str = "eth0";

/// Longest path that a Unix socket can have (`sun_path`, unix(7)), without its final zero.
const SOCKET_PATH_LEN_MAX: usize = 107;

/// How long a daemon may take until pods can be attached.
const READY_LIMIT: Duration = Duration::from_secs(20);

/// How long a daemon may take to stop before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How long a killed process may take to end.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A running lab.
///
/// One that is not to be kept is removed when this is dropped; better is [`Lab::down`], which tells what
/// went wrong. Daemons of such a lab also end with the thread that started them, so all daemons should be
/// started by a thread that lives as long as the lab.
#[derive(Debug)]
pub struct Lab {
    state: LabState,
    dir: PathBuf,
    interrupt: Interrupt,
    /// Daemons that this process started, to collect when they end.
    children: BTreeMap<String, Child>,
    remove_on_drop: bool,
    /// Held for its lock.
    _lock: File,
}

/// Making and finding.
impl Lab {
    /// Makes a whole lab: the network between the nodes, the nodes with their daemons, the pods.
    ///
    /// # Errors
    /// When any part fails; all of it is removed then.
    pub fn up(labs: &Labs, config: LabConfig) -> Result<Self> {
        let (nodes, pods_per_node) = (config.nodes, config.pods_per_node);
        let mut lab = Self::create(labs, config, Interrupt::default(), None)?;
        lab.add_nodes(nodes)?;
        let nodes: Vec<String> = lab.state.nodes.iter().map(|node| node.name.clone()).collect();
        for node in nodes {
            for _ in 0..pods_per_node {
                lab.add_pod(&node)?;
            }
        }
        lab.finish_up()?;
        Ok(lab)
    }

    /// Makes a lab without nodes: only the network between them. `holder` is the process that keeps the
    /// namespaces which this process is in, if they are not the machine's own. What waits ends when
    /// `interrupt` is set.
    ///
    /// Until [`Lab::finish_up`], the lab is removed when this is dropped, also one that is to be kept.
    ///
    /// # Errors
    /// When there is a lab of that name, or the network cannot be made.
    pub fn create(
        labs: &Labs,
        config: LabConfig,
        interrupt: Interrupt,
        holder: Option<ProcessId>,
    ) -> Result<Self> {
        config.check()?;
        if labs.read(&config.name).is_ok_and(|state| state.is_abandoned()) {
            Self::remove(labs, &config.name)?;
        }
        let longest = daemon::socket(&labs.dir(&config.name), &format!("n{NODES_MAX}"));
        ensure!(
            longest.as_os_str().len() <= SOCKET_PATH_LEN_MAX,
            "{} is too long for the path of a socket: give the lab a shorter name, or set WEFT_LAB_DIR \
             to a shorter directory",
            longest.display()
        );
        let owner = if config.keep { None } else { Some(ProcessId::own()?) };
        let dir = labs.create(&config.name)?;
        let lock = state::lock(&dir)?;
        let lab = Self {
            state: LabState { config, owner, holder, next_number: 1, nodes: Vec::new() },
            dir,
            interrupt,
            children: BTreeMap::new(),
            remove_on_drop: true,
            _lock: lock,
        };
        fs::create_dir(lab.manifests())
            .with_context(|| format!("cannot make {}", lab.manifests().display()))?;
        lab.save()?;
        lab.lay_out()?;
        Ok(lab)
    }

    /// Opens a lab that another process made. It stays when this is dropped.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn open(labs: &Labs, name: &str) -> Result<Self> {
        labs.read(name)?;
        let dir = labs.dir(name);
        let lock = state::lock(&dir)?;
        Ok(Self {
            // Read again: another command may have changed it before it gave up the lock.
            state: labs.read(name)?,
            dir,
            interrupt: Interrupt::default(),
            children: BTreeMap::new(),
            remove_on_drop: false,
            _lock: lock,
        })
    }

    /// Removes the lab `name`, also one whose state cannot be read.
    ///
    /// # Errors
    /// When there is none, or a part of it cannot be removed; the rest is.
    pub fn remove(labs: &Labs, name: &str) -> Result<()> {
        let dir = labs.dir(name);
        if labs.read(name).is_ok() || !dir.is_dir() {
            return Self::open(labs, name)?.down();
        }
        let lab = Self {
            state: LabState {
                config: LabConfig::new(name),
                owner: None,
                holder: None,
                next_number: 1,
                nodes: Vec::new(),
            },
            _lock: state::lock(&dir)?,
            dir,
            interrupt: Interrupt::default(),
            children: BTreeMap::new(),
            remove_on_drop: false,
        };
        lab.down()
    }

    /// Ends the making: from here on, a lab that is to be kept stays.
    ///
    /// # Errors
    /// When the state cannot be written.
    pub fn finish_up(&mut self) -> Result<()> {
        self.save()?;
        if self.state.config.keep {
            self.remove_on_drop = false;
        }
        Ok(())
    }

    /// The bridge, the router on it, and the world behind it.
    fn lay_out(&self) -> Result<()> {
        for name in ["ns", "bin", "nodes"] {
            fs::create_dir(self.dir.join(name))?;
        }
        let key = ClusterKey::generate()?;
        KeyFile::new(key, "made for this lab").save(&self.dir.join(daemon::KEYS))?;
        let program = match &self.state.config.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().context("looking for the own program")?,
        };
        for name in ["weft", "weftd", "weft-cni"] {
            symlink(&program, self.dir.join("bin").join(name))?;
        }
        hosts::write_resolv_conf(&self.dir).context("writing pods' resolv.conf")?;
        namespace::make_private(&self.dir.join("ns")).context("making a place for namespaces")?;
        let mtu = self.state.config.underlay_mtu;
        let underlay = self.make_namespace(UNDERLAY)?;
        netlink::enable_forwarding(&underlay)?;
        netlink::add_bridge(&underlay, BRIDGE, mtu)?;
        let world = self.make_namespace(WORLD)?;
        let near = End { namespace: &underlay, name: WORLD };
        netlink::add_veth(&near, &End { namespace: &world, name: NODE_LINK }, mtu)?;
        for family in Self::families()? {
            netlink::add_address(&underlay, BRIDGE, Plan::router(family))?;
            netlink::add_address(&underlay, WORLD, Plan::world_router(family))?;
            netlink::add_address(&world, NODE_LINK, Plan::world(family))?;
            let gateway = Plan::world_router(family).ip();
            netlink::add_route(&world, NODE_LINK, Plan::router(family), gateway)?;
        }
        Ok(())
    }

    fn make_namespace(&self, name: &str) -> Result<Namespace> {
        let namespace = Namespace::create(self.dir.join("ns").join(name))
            .with_context(|| format!("making namespace {name}"))?;
        netlink::prepare(&namespace)?;
        Ok(namespace)
    }

    /// The protocols that the kernel has.
    fn families() -> Result<impl Iterator<Item = Family>> {
        let has_v6 = fs::exists("/proc/sys/net/ipv6")?;
        Ok(Family::ALL.into_iter().filter(move |family| *family == Family::V4 || has_v6))
    }
}

/// Looking at it.
impl Lab {
    /// What stands.
    pub fn state(&self) -> &LabState {
        &self.state
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of manifests that all nodes watch.
    pub fn manifests(&self) -> PathBuf {
        self.dir.join(daemon::MANIFESTS)
    }

    /// The nodes, in the order of their numbers.
    pub fn nodes(&self) -> &[NodeState] {
        &self.state.nodes
    }

    /// The namespace of a node or a pod, [`UNDERLAY`] or [`WORLD`].
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn namespace(&self, name: &str) -> Result<Namespace> {
        namespace_in(&self.dir, &self.state, name)
    }

    /// The admin socket of a node's daemon.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn admin(&self, node: &str) -> Result<Admin> {
        self.state.node(node)?;
        Ok(Admin::new(daemon::socket(&self.dir, node)))
    }

    /// A command that will run in the namespace `name`; in a pod, with the name servers and search path that
    /// a kubelet gives to pods.
    ///
    /// # Errors
    /// When there is no such namespace.
    pub fn command(&self, name: &str, program: &str) -> Result<Command> {
        let mut command = Command::new(program);
        self.namespace(name)?.start_inside(&mut command, false)?;
        if self.state.pod(name).is_ok() {
            Namespace::show_resolv_conf(&mut command, &hosts::resolv_conf(&self.dir))?;
        }
        Ok(command)
    }

    /// The file with the keys of a node. It is there once the node was started; new nodes get those of the
    /// file `keys` in the lab's directory.
    pub fn key_file(&self, node: &str) -> PathBuf {
        daemon::key_file(&self.dir, node)
    }

    /// The log of a node's daemon, all starts of it.
    pub fn log_path(&self, node: &str) -> PathBuf {
        daemon::dir(&self.dir, node).join("weftd.log")
    }

    /// Waits until every running daemon sees exactly the nodes `alive` alive.
    ///
    /// # Errors
    /// When that is not so within `limit`.
    pub fn wait_for_map(&self, alive: &[&str], limit: Duration) -> Result<Duration> {
        let start = Instant::now();
        let running = self.state.nodes.iter().filter(|node| node.daemon.is_some() && !node.cut);
        let running: Vec<_> = running.filter(|node| alive.contains(&node.name.as_str())).collect();
        self.interrupt.wait_for(limit, || {
            for node in &running {
                self.check_daemon(node)?;
                let seen = match self.admin(&node.name)?.nodes() {
                    Ok(seen) => seen,
                    Err(error) => return Ok(Wait::NotYet(format!("{}: {error:#}", node.name))),
                };
                let mut names: Vec<_> = seen
                    .iter()
                    .filter(|seen| seen.state.is_active() && !seen.leases.is_empty())
                    .map(|seen| seen.name.as_str())
                    .collect();
                names.sort_unstable();
                let mut wanted = alive.to_vec();
                wanted.sort_unstable();
                if names != wanted {
                    let text = format!("{} sees {} alive", node.name, names.join(", "));
                    return Ok(Wait::NotYet(text));
                }
            }
            Ok(Wait::Done(()))
        })?;
        Ok(start.elapsed())
    }

    /// Fails with the end of its log if a daemon that should run does not.
    fn check_daemon(&self, node: &NodeState) -> Result<()> {
        if node.daemon.is_some_and(ProcessId::is_alive) {
            return Ok(());
        }
        bail!(
            "the daemon of {} is not running; its log ends with\n{}",
            node.name,
            daemon::log_tail(&self.log_path(&node.name))
        )
    }
}

/// The namespace called `name` in the lab with `state` in `dir`.
///
/// # Errors
/// When there is none.
pub fn namespace_in(dir: &Path, state: &LabState, name: &str) -> Result<Namespace> {
    let mut names: Vec<&str> = vec![UNDERLAY, WORLD];
    names.extend(state.nodes.iter().map(|node| node.name.as_str()));
    names.extend(state.pods().map(|(_, pod)| pod.name.as_str()));
    if !names.contains(&name) {
        bail!("lab `{}` has no `{name}`, but {}", state.config.name, names.join(", "));
    }
    Ok(Namespace::at(dir.join("ns").join(name)))
}

/// Changing it.
impl Lab {
    /// Adds `count` nodes and waits until all their daemons take pods.
    ///
    /// # Errors
    /// When a node cannot be made or its daemon does not get ready.
    pub fn add_nodes(&mut self, count: u8) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for _ in 0..count {
            names.push(self.add_node_link()?);
        }
        for name in &names {
            self.launch(name)?;
        }
        for name in &names {
            self.wait_until_ready(name)?;
        }
        Ok(names)
    }

    /// Adds one node; see [`Lab::add_nodes`].
    ///
    /// # Errors
    /// As there.
    pub fn add_node(&mut self) -> Result<String> {
        let names = self.add_nodes(1)?;
        names.into_iter().next().context("no node was added")
    }

    /// Adds a machine on the underlay on which no daemon runs: for what is not Weft. [`Lab::start`] makes
    /// a node like the others of it.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn add_idle_node(&mut self) -> Result<String> {
        self.add_node_link()
    }

    /// Makes a node without starting its daemon.
    fn add_node_link(&mut self) -> Result<String> {
        let number = self.state.next_number;
        if number > NODES_MAX {
            bail!("this lab has given out all its {NODES_MAX} node numbers");
        }
        self.interrupt.check()?;
        let name = format!("n{number}");
        let config = &self.state.config;
        let mtu = config.underlay_mtu;
        self.state.next_number += 1;
        self.state.nodes.push(NodeState {
            name: name.clone(),
            number,
            underlay: Plan::node(config.underlay, number).ip(),
            mtu,
            cut: false,
            daemon: None,
            next_pod: 1,
            pods: Vec::new(),
        });
        self.save()?;

        let underlay = self.namespace(UNDERLAY)?;
        let node = self.make_namespace(&name)?;
        let near = End { namespace: &underlay, name: &name };
        netlink::add_veth(&near, &End { namespace: &node, name: NODE_LINK }, mtu)?;
        netlink::join_bridge(&underlay, &name, BRIDGE)?;
        for family in Self::families()? {
            netlink::add_address(&node, NODE_LINK, Plan::node(family, number))?;
            let gateway = Plan::router(family).ip();
            netlink::add_route(&node, NODE_LINK, Plan::anywhere(family), gateway)?;
        }
        Ok(name)
    }

    /// Removes a node with its pods, as when its machine is switched off.
    ///
    /// # Errors
    /// When there is no such node, or a part of it cannot be removed; the rest is.
    pub fn remove_node(&mut self, name: &str) -> Result<()> {
        let node = self.state.node(name)?.clone();
        let mut errors = Errors::default();
        errors.note(self.kill(name));
        for pod in &node.pods {
            errors.note(self.tear_down_namespace(&pod.name));
        }
        errors.note(self.tear_down_namespace(name));
        errors.note(netlink::remove_link(&self.namespace(UNDERLAY)?, name));
        errors.note(fs::remove_dir_all(daemon::dir(&self.dir, name)).map_err(Into::into));
        self.state.nodes.retain(|node| node.name != name);
        errors.note(self.save());
        errors.into_result()
    }

    /// Adds a pod on `node` through the CNI plugin.
    ///
    /// # Errors
    /// When there is no such node, or the plugin refuses; nothing is left of the pod then.
    pub fn add_pod(&mut self, node: &str) -> Result<String> {
        self.add_pod_as(node, plugin::NAMESPACE, BTreeMap::new())
    }

    /// Adds a pod of a Kubernetes namespace, with labels beside those of every pod.
    ///
    /// # Errors
    /// As [`Lab::add_pod`].
    pub fn add_pod_as(
        &mut self,
        node: &str,
        namespace: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<String> {
        self.interrupt.check()?;
        let state = self.state.node_mut(node)?;
        let name = format!("{node}-p{}", state.next_pod);
        state.next_pod += 1;
        let container_id = format!("{}-{name}", self.state.config.name);
        let pod = PodState {
            name: name.clone(),
            namespace: namespace.to_owned(),
            labels,
            container_id,
            addresses: Vec::new(),
            mac: None,
        };
        self.state.node_mut(node)?.pods.push(pod.clone());
        self.save()?;

        let given = match self.attach(node, &pod) {
            Ok(given) => given,
            Err(error) => return Err(self.undo_pod(node, &pod, error)),
        };
        let pods = &mut self.state.node_mut(node)?.pods;
        if let Some(pod) = pods.iter_mut().find(|pod| pod.name == name) {
            (pod.addresses, pod.mac) = (given.addresses, given.mac);
        }
        self.save()?;
        Ok(name)
    }

    /// Removes what is left of a pod that could not be attached, as a runtime does; gives `error` with what
    /// else failed.
    fn undo_pod(&mut self, node: &str, pod: &PodState, error: anyhow::Error) -> anyhow::Error {
        // What made ADD fail mostly makes DEL fail too, and need not be told twice.
        let detached =
            self.detach(node, pod).map_err(|_| "DEL after that failed as well".to_owned());
        let dropped = self.drop_pod(node, &pod.name).map_err(|error| format!("{error:#}"));
        let failed: Vec<String> = [detached, dropped].into_iter().filter_map(Result::err).collect();
        if failed.is_empty() { error } else { anyhow!("{error:#}; {}", failed.join("; ")) }
    }

    fn attach(&self, node: &str, pod: &PodState) -> Result<plugin::Given> {
        let namespace = self.make_namespace(&pod.name)?;
        let call = plugin::Call::new(&self.dir, self.namespace(node)?, node, pod, &namespace);
        call.add().with_context(|| format!("attaching pod {}", pod.name))
    }

    /// Removes a pod through the CNI plugin.
    ///
    /// # Errors
    /// When there is no such pod, or a part cannot be removed; the rest is.
    pub fn remove_pod(&mut self, name: &str) -> Result<()> {
        let (node, pod) = self.state.pod(name)?;
        let (node, pod) = (node.name.clone(), pod.clone());
        let mut errors = Errors::default();
        errors.note(self.detach(&node, &pod));
        errors.note(self.drop_pod(&node, name));
        errors.into_result()
    }

    fn detach(&self, node: &str, pod: &PodState) -> Result<()> {
        let namespace = self.namespace(&pod.name)?;
        let call = plugin::Call::new(&self.dir, self.namespace(node)?, node, pod, &namespace);
        call.del().with_context(|| format!("detaching pod {}", pod.name))
    }

    /// Removes a pod's namespace and forgets the pod.
    fn drop_pod(&mut self, node: &str, name: &str) -> Result<()> {
        let mut errors = Errors::default();
        errors.note(self.tear_down_namespace(name));
        self.state.node_mut(node)?.pods.retain(|pod| pod.name != name);
        errors.note(self.save());
        errors.into_result()
    }

    /// Calls the plugin's CHECK for a pod.
    ///
    /// # Errors
    /// When there is no such pod, or the plugin finds something amiss.
    pub fn check_pod(&self, name: &str) -> Result<()> {
        let (node, pod) = self.state.pod(name)?;
        let namespace = self.namespace(name)?;
        let of_node = self.namespace(&node.name)?;
        plugin::Call::new(&self.dir, of_node, &node.name, pod, &namespace).check()
    }

    /// Cuts a node's link to the underlay: the carrier is gone on both ends.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn cut(&mut self, node: &str) -> Result<()> {
        self.set_cut(node, true)
    }

    /// Heals a link that was cut.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn heal(&mut self, node: &str) -> Result<()> {
        self.set_cut(node, false)
    }

    fn set_cut(&mut self, node: &str, cut: bool) -> Result<()> {
        self.state.node_mut(node)?.cut = cut;
        netlink::set_up(&self.namespace(UNDERLAY)?, node, !cut)?;
        self.save()
    }

    /// Divides the underlay: `nodes` still reach each other, and neither the other nodes nor the router. Their
    /// links stay up.
    ///
    /// # Errors
    /// When there is no such node, or the underlay is divided already.
    pub fn divide(&self, nodes: &[&str]) -> Result<()> {
        let underlay = self.namespace(UNDERLAY)?;
        netlink::add_bridge(&underlay, SECOND_BRIDGE, self.state.config.underlay_mtu)?;
        self.move_to(&underlay, nodes, SECOND_BRIDGE)
    }

    /// Makes a divided underlay one again.
    ///
    /// # Errors
    /// When a link cannot be moved.
    pub fn unite(&self) -> Result<()> {
        let underlay = self.namespace(UNDERLAY)?;
        let nodes: Vec<_> = self.state.nodes.iter().map(|node| node.name.as_str()).collect();
        self.move_to(&underlay, &nodes, BRIDGE)?;
        netlink::remove_link(&underlay, SECOND_BRIDGE)
    }

    fn move_to(&self, underlay: &Namespace, nodes: &[&str], bridge: &str) -> Result<()> {
        for node in nodes {
            self.state.node(node)?;
            netlink::join_bridge(underlay, node, bridge)
                .with_context(|| format!("moving {node} to {bridge}"))?;
        }
        Ok(())
    }

    /// Sets the MTU of a node's link, on both ends. The router's and the other nodes' stay.
    ///
    /// # Errors
    /// When there is no such node, or the kernel refuses the MTU.
    pub fn set_mtu(&mut self, node: &str, mtu: u16) -> Result<()> {
        self.state.node_mut(node)?.mtu = mtu;
        netlink::set_mtu(&self.namespace(node)?, NODE_LINK, mtu)?;
        let underlay = self.namespace(UNDERLAY)?;
        netlink::set_mtu(&underlay, node, mtu)?;
        // A bridge takes the smallest of its ports' until it has been given one.
        netlink::set_mtu(&underlay, BRIDGE, self.state.config.underlay_mtu)?;
        self.save()
    }

    /// Kills a node's daemon: it has no chance to say goodbye.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn kill(&mut self, node: &str) -> Result<()> {
        self.end_daemon(node, Signal::KILL, KILL_LIMIT)
    }

    /// Stops a node's daemon in order.
    ///
    /// # Errors
    /// When there is no such node, or the daemon does not stop and has to be killed.
    pub fn stop(&mut self, node: &str) -> Result<()> {
        let stopped = self.end_daemon(node, Signal::TERM, STOP_LIMIT);
        if stopped.is_err() {
            self.kill(node)?;
        }
        stopped.with_context(|| format!("the daemon of {node} had to be killed"))
    }

    fn end_daemon(&mut self, node: &str, signal: Signal, limit: Duration) -> Result<()> {
        let Some(daemon) = self.state.node(node)?.daemon else { return Ok(()) };
        daemon.signal(signal).with_context(|| format!("signalling the daemon of {node}"))?;
        daemon.wait_for_end(limit)?;
        if let Some(mut child) = self.children.remove(node) {
            child.wait()?;
        }
        self.state.node_mut(node)?.daemon = None;
        self.save()
    }

    /// Starts a node's daemon and waits until it takes pods. It is no error if it runs.
    ///
    /// # Errors
    /// When there is no such node, or the daemon does not get ready.
    pub fn start(&mut self, node: &str) -> Result<()> {
        if self.state.node(node)?.daemon.is_none_or(|daemon| !daemon.is_alive()) {
            self.launch(node)?;
        }
        self.wait_until_ready(node)
    }

    /// Starts a node's daemon without waiting for anything.
    ///
    /// # Errors
    /// When there is no such node, or the program cannot be started.
    pub fn launch(&mut self, node: &str) -> Result<()> {
        let namespace = self.namespace(node)?;
        let child = daemon::launch(&self.dir, &self.state, self.state.node(node)?, &namespace)
            .with_context(|| format!("starting the daemon of {node}"))?;
        self.state.node_mut(node)?.daemon = Some(ProcessId::of(child.id())?);
        self.children.insert(node.to_owned(), child);
        self.save()
    }

    /// Waits until a node's daemon takes pods.
    ///
    /// # Errors
    /// When it ends, with the end of its log, or takes too long.
    pub fn wait_until_ready(&self, node: &str) -> Result<()> {
        let state = self.state.node(node)?;
        let admin = self.admin(node)?;
        let ready = self.interrupt.wait_for(READY_LIMIT, || {
            self.check_daemon(state)?;
            Ok(match admin.status() {
                Ok(status) if status.ready => Wait::Done(()),
                Ok(status) => {
                    let problems: Vec<_> = status.problems.into_iter().map(|p| p.text).collect();
                    let lease = status.lease_state.name();
                    Wait::NotYet(format!("lease {lease}, {}", problems.join(", ")))
                }
                Err(error) => Wait::NotYet(format!("{error:#}")),
            })
        });
        ready.map_err(|error| {
            if error.is::<Interrupted>() || self.check_daemon(state).is_err() {
                return error;
            }
            let tail = daemon::log_tail(&self.log_path(node));
            error.context(format!(
                "the daemon of {node} does not get ready; its log ends with\n{tail}"
            ))
        })
    }

    fn save(&self) -> Result<()> {
        self.state.write(&self.dir)?;
        hosts::write(&self.dir, &self.state).context("writing the names of nodes and pods")
    }
}

/// Removing it.
impl Lab {
    /// Removes everything: processes, namespaces, mounts, files.
    ///
    /// # Errors
    /// All that went wrong; what could be removed is.
    pub fn down(mut self) -> Result<()> {
        self.remove_on_drop = false;
        self.tear_down()
    }

    fn tear_down(&mut self) -> Result<()> {
        let mut errors = Errors::default();
        let daemons: Vec<_> = self.state.nodes.iter().filter_map(|node| node.daemon).collect();
        for daemon in &daemons {
            errors.note(daemon.signal(Signal::TERM).context("stopping a daemon"));
        }
        let deadline = Instant::now() + STOP_LIMIT;
        for daemon in &daemons {
            // One that does not stop is killed with everything else below.
            let _ = daemon.wait_for_end(deadline.saturating_duration_since(Instant::now()));
        }
        let names = fs::read_dir(self.dir.join("ns")).into_iter().flatten().flatten();
        let paths: Vec<_> = names.map(|entry| entry.path()).collect();
        let namespaces: Vec<_> = paths.into_iter().map(Namespace::at).collect();
        errors.note(kill_all_in(&namespaces));
        for child in self.children.values_mut() {
            errors.note(child.wait().map(drop).context("collecting a daemon"));
        }
        for namespace in &namespaces {
            let context = || format!("removing namespace {}", namespace.path().display());
            errors.note(namespace.remove().with_context(context));
        }
        let unmounted = namespace::unmake_private(&self.dir.join("ns"));
        errors.note(unmounted.context("unmounting the namespaces' directory"));
        let context = || format!("removing {}", self.dir.display());
        errors.note(fs::remove_dir_all(&self.dir).with_context(context));
        errors.note(state::remove_base_if_empty(&self.dir));
        if let Some(holder) = self.state.holder {
            errors.note(holder.signal(Signal::KILL).context("ending the holder of the namespaces"));
        }
        errors.into_result()
    }

    fn tear_down_namespace(&self, name: &str) -> Result<()> {
        let namespace = self.namespace(name)?;
        let mut errors = Errors::default();
        errors.note(kill_all_in(std::slice::from_ref(&namespace)));
        let context = || format!("removing namespace {name}");
        errors.note(namespace.remove().with_context(context));
        errors.into_result()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if !self.remove_on_drop {
            return;
        }
        if let Err(error) = self.tear_down() {
            eprintln!("removing lab {}: {error:#}", self.state.config.name);
        }
    }
}

/// Kills every process in these namespaces and waits for their ends.
fn kill_all_in(namespaces: &[Namespace]) -> Result<()> {
    let inodes: Vec<u64> = namespaces.iter().filter_map(|ns| ns.inode().ok()).collect();
    let mut errors = Errors::default();
    let processes = process::inside(&inodes);
    for process in &processes {
        let context = || format!("killing process {}", process.pid);
        errors.note(process.signal(Signal::KILL).with_context(context));
    }
    for process in &processes {
        errors.note(process.wait_for_end(KILL_LIMIT));
    }
    errors.into_result()
}

/// Collects what goes wrong in work that goes on regardless.
#[derive(Debug, Default)]
struct Errors(Vec<anyhow::Error>);

impl Errors {
    fn note(&mut self, result: Result<()>) {
        self.0.extend(result.err());
    }

    fn into_result(mut self) -> Result<()> {
        if self.0.len() > 1 {
            let texts: Vec<String> = self.0.iter().map(|error| format!("{error:#}")).collect();
            bail!(texts.join("; "));
        }
        self.0.pop().map_or(Ok(()), Err)
    }
}

/// The first of `addresses` with the family of `like`, or any family when `like` is none.
pub fn address_of(addresses: &[IpAddr], family: Family) -> Option<IpAddr> {
    addresses.iter().copied().find(|address| address.is_ipv4() == (family == Family::V4))
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::lab::probe::{self, Amount, EchoServer, Ping, Transfer};
    use crate::lab::sandbox;

    #[test]
    fn links_carry_are_cut_and_heal_and_nothing_stays_behind() {
        if !sandbox::is_privileged() {
            eprintln!("skipped: needs root, to make network namespaces");
            return;
        }
        let base = std::env::temp_dir().join(format!("weft-cluster-{}", std::process::id()));
        let labs = Labs::under(&base);
        let config = LabConfig::new("links");
        let mut lab = Lab::create(&labs, config, Interrupt::default(), None).unwrap();
        assert_eq!(lab.add_node_link().unwrap(), "n1");
        assert_eq!(lab.add_node_link().unwrap(), "n2");
        let (n1, n2) = (lab.namespace("n1").unwrap(), lab.namespace("n2").unwrap());
        for family in Lab::families().unwrap() {
            let target = Plan::node(family, 2).ip();
            assert!(Ping::new(target).run(&n1).unwrap().is_ok(), "{target}");
            let world = Plan::world(family).ip();
            assert!(Ping::new(world).run(&n1).unwrap().is_ok(), "{world}");

            let server = EchoServer::start(&n2, target).unwrap();
            let address = SocketAddr::new(target, server.port());
            let own = Plan::node(family, 1).ip();
            let seen = probe::tcp_seen_as(&n1, address).unwrap();
            assert!(seen.seen.ip() == own && !seen.is_rewritten(), "{seen:?}");
            assert!(!probe::udp_seen_as(&n1, address, 8192).unwrap().is_rewritten());

            let transfer = Transfer { amount: Amount::Bytes(10_000_000), verify: true };
            assert_eq!(transfer.run(&n1, &n2, target).unwrap().bytes, 10_000_000);
        }

        let target = Plan::node(Family::V4, 2).ip();
        let patience = Duration::from_millis(100);
        let ping = Ping { count: 1, patience, ..Ping::new(target) };
        lab.cut("n2").unwrap();
        assert_eq!(ping.run(&n1).unwrap().received, 0);
        lab.heal("n2").unwrap();
        let healed =
            || Ok(if ping.run(&n1)?.is_ok() { Wait::Done(()) } else { Wait::NotYet("cut".into()) });
        Interrupt::default().wait_for(Duration::from_secs(10), healed).unwrap();

        lab.set_mtu("n1", 1400).unwrap();
        let full = Ping { payload_len: 1472, dont_fragment: true, ..ping };
        let refused = full.run(&n1).unwrap();
        assert!(refused.received == 0 && refused.error.is_some(), "{refused:?}");
        let fits = Ping { payload_len: 1372, ..full };
        assert!(fits.run(&n1).unwrap().is_ok());

        let mut orphan = lab.command("n2", "cat").unwrap();
        let mut orphan = orphan.stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert!(lab.namespace("n3").unwrap_err().to_string().contains("underlay, world, n1, n2"));
        lab.down().unwrap();
        assert!(!orphan.wait().unwrap().success());
        assert!(labs.names().unwrap().is_empty());
        assert!(!base.exists(), "the directory of the last lab stays");
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(&*base.to_string_lossy()), "{mounts}");
    }
}
