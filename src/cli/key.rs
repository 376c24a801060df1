//! `weft key`: makes, lists and changes the keys of the network in the node's key file.
//!
//! Nothing here is secret but the keys themselves, which are shown by `list --secret` and `generate
//! --stdout` only. What would cut nodes off is refused: the daemon is asked what all nodes accept and use.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use overlay::seal::{ClusterKey, FileError, KeyFile, KeyId, KeyLine};
use overlay::subnet::MemberState;
use rustix::fs::{FlockOperation, flock};
use serde::Serialize;

use super::args::{KeyArgs, KeyCommand};
use super::table::Table;
use super::view::{join, print, target};
use crate::admin::api::NodeStatus;
use crate::lab::{self, Interrupt, Labs, Wait};

/// How long the own daemon may take to see a change of the file, or to hear of all nodes.
const SEEN_LIMIT: Duration = Duration::from_secs(15);

/// How long a daemon runs until its map is relied on.
const UPTIME_MIN_S: u64 = 10;

/// Fewest digits that name a key.
const PREFIX_LEN_MIN: usize = 4;

/// Most text that is read as keys to be added.
const INPUT_LEN_MAX: u64 = 64 * 1024;

pub(super) fn run(arguments: &KeyArgs, out: &mut impl Write) -> Result<()> {
    if let KeyCommand::Generate { stdout: true, comment } = &arguments.command {
        let comment = comment_or_host(comment.as_deref());
        let line = KeyLine { key: ClusterKey::generate()?, used: false, comment };
        writeln!(out, "{}", line.text())?;
        return Ok(());
    }
    let path = place(arguments)?;
    match &arguments.command {
        KeyCommand::Generate { comment, .. } => generate(&path, comment.as_deref(), out),
        KeyCommand::List { secret, key, output } => {
            let file = KeyFile::load(&path)?;
            if *secret {
                return reveal(&file, key.as_deref(), out);
            }
            let listing =
                listing(&path, &file, nodes(arguments).map_err(|error| format!("{error:#}")));
            print(&listing, output.output, out, |out| print_listing(&listing, out))
        }
        KeyCommand::Add { from } => add(&path, from.as_deref(), out),
        KeyCommand::Use { key, force } => put_in_use(arguments, &path, key, *force, out),
        KeyCommand::Remove { key, force } => remove(arguments, &path, key, *force, out),
    }
}

/// The file that the daemon reads.
fn place(arguments: &KeyArgs) -> Result<PathBuf> {
    if let Some(file) = &arguments.file {
        return Ok(file.clone());
    }
    if let Some(node) = &arguments.target.node {
        let labs = Labs::of_user();
        let name = arguments.target.lab.as_deref().unwrap_or("lab");
        labs.read(name)?.node(node)?;
        return Ok(lab::key_file(&labs.dir(name), node));
    }
    if !arguments.config.exists() {
        return Ok(overlay::config::Config::default().key_file);
    }
    let config = conf::load(&arguments.config).map_err(|errors| {
        anyhow::anyhow!(
            "{errors}\nThe key file is named there: mend it, or name the file with --file"
        )
    })?;
    Ok(config.overlay.key_file)
}

fn generate(path: &Path, comment: Option<&str>, out: &mut impl Write) -> Result<()> {
    let comment = comment_or_host(comment);
    let key = ClusterKey::generate()?;
    let id = key.id();
    let _lock = lock(path)?;
    match KeyFile::load(path) {
        Err(FileError::Missing { .. }) => {
            KeyFile::new(key, &comment).save(path)?;
            writeln!(out, "{id} is the first key, and in use. It is in {}.", path.display())?;
            writeln!(out, "Take it to each other node:")?;
            writeln!(out, "  weft key list --secret | ssh NODE weft key add")?;
        }
        file => {
            let mut file = file?;
            file.add(key, &comment)?;
            file.save(path)?;
            writeln!(out, "{id} is accepted here, and not in use yet. To go over to it:")?;
            write_rotation(id, out)?;
        }
    }
    Ok(())
}

fn write_rotation(id: KeyId, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "  1. weft key list --secret {id} | ssh NODE weft key add     to each other node"
    )?;
    writeln!(out, "  2. weft key use {id}                                   on each node")?;
    writeln!(out, "  3. weft key remove FORMER_KEY                                    on each node")
}

fn reveal(file: &KeyFile, key: Option<&str>, out: &mut impl Write) -> Result<()> {
    let chosen = key.map(|key| find(file, key)).transpose()?;
    for line in file.keys().filter(|line| chosen.is_none_or(|id| line.key.id() == id)) {
        writeln!(out, "{}", line.text())?;
    }
    Ok(())
}

fn add(path: &Path, from: Option<&Path>, out: &mut impl Write) -> Result<()> {
    let (name, text) = match from {
        Some(file) => (
            file.to_owned(),
            std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?,
        ),
        None => {
            let input = io::stdin();
            if input.is_terminal() {
                eprintln!("paste lines of `weft key list --secret`, then press ctrl-D:");
            }
            let mut text = String::new();
            input
                .take(INPUT_LEN_MAX)
                .read_to_string(&mut text)
                .context("reading standard input")?;
            (PathBuf::from("standard input"), text)
        }
    };
    let given = KeyFile::parse_lines(&name, &text)?;
    ensure!(
        given.keys().next().is_some(),
        "{}: no key in it: give lines as `weft key list --secret` prints them",
        name.display()
    );
    let _lock = lock(path)?;
    let mut file = match KeyFile::load(path) {
        Err(FileError::Missing { .. }) => None,
        file => Some(file?),
    };
    let used = given.keys().find(|line| line.used).or_else(|| given.keys().next());
    let mut told = Vec::new();
    for line in used.into_iter().chain(given.keys()) {
        let id = line.key.id();
        match &mut file {
            None => {
                file = Some(KeyFile::new(line.key.clone(), &line.comment));
                told.push(format!("{id} is in use: it is the first key of this node"));
            }
            Some(file) => {
                if file.add(line.key.clone(), &line.comment)? {
                    told.push(format!("{id} is accepted"));
                }
            }
        }
    }
    if let Some(file) = file {
        file.save(path)?;
    }
    if told.is_empty() {
        told.push("nothing to do: all these keys were there already".to_owned());
    }
    for line in told {
        writeln!(out, "{line}")?;
    }
    Ok(())
}

fn put_in_use(
    arguments: &KeyArgs,
    path: &Path,
    key: &str,
    force: bool,
    out: &mut impl Write,
) -> Result<()> {
    let _lock = lock(path)?;
    let mut file = KeyFile::load(path)?;
    let id = find(&file, key)?;
    if !force {
        let nodes = nodes_that_see(arguments, id)?;
        let lacking = lacking(&nodes, id);
        ensure!(
            lacking.is_empty(),
            "{} would not understand this node any more: {} not accept the key {id}. Give it to them first \
             (`weft key list --secret {id} | ssh NODE weft key add`); they tell within seconds that they \
             have it. --force overrides",
            join(&lacking),
            if lacking.len() == 1 { "it does" } else { "they do" },
        );
        for node in away_without(&nodes, id) {
            eprintln!(
                "note: {node} is away and does not have this key. It returns by itself as long as the key that \
                 it has stays listed here"
            );
        }
    }
    file.put_in_use(id);
    file.save(path)?;
    writeln!(out, "{id} is in use")?;
    Ok(())
}

fn remove(
    arguments: &KeyArgs,
    path: &Path,
    key: &str,
    force: bool,
    out: &mut impl Write,
) -> Result<()> {
    let _lock = lock(path)?;
    let mut file = KeyFile::load(path)?;
    let id = find(&file, key)?;
    ensure!(
        !file.keys().any(|line| line.used && line.key.id() == id),
        "{id} is in use here: put another one in use first (`weft key use KEY`)"
    );
    if !force {
        let nodes = nodes_that_see(arguments, id)?;
        let using = using(&nodes, id);
        ensure!(
            using.is_empty(),
            "{} still use{} {id}, and would be locked out: `weft key use` another key there first. --force \
             overrides",
            join(&using),
            if using.len() == 1 { "s" } else { "" },
        );
        let left: Vec<_> =
            file.keys().map(|line| line.key.id()).filter(|left| *left != id).collect();
        for node in away_with_none_of(&nodes, &left) {
            eprintln!(
                "note: {node} is away and has none of the other keys. It will not return by itself"
            );
        }
    }
    file.remove(id);
    file.save(path)?;
    writeln!(out, "{id} is removed: this node hears nobody any more who seals with it")?;
    Ok(())
}

/// Keeps other commands from changing the file at the same time.
fn lock(path: &Path) -> Result<File> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or_else(|| Path::new("."));
    std::fs::create_dir_all(directory)
        .with_context(|| format!("making the directory {}", directory.display()))?;
    let lock = File::open(directory)
        .with_context(|| format!("opening the directory {}", directory.display()))?;
    flock(&lock, FlockOperation::LockExclusive)
        .with_context(|| format!("waiting for another command on {}", path.display()))?;
    Ok(lock)
}

/// The key whose name begins with `text`.
fn find(file: &KeyFile, text: &str) -> Result<KeyId> {
    let text = text.to_ascii_lowercase();
    let known: Vec<KeyId> = file.keys().map(|line| line.key.id()).collect();
    let found: Vec<_> = known.iter().filter(|id| id.to_string().starts_with(&text)).collect();
    match found[..] {
        _ if text.len() < PREFIX_LEN_MIN => {
            bail!("`{text}` is too short: write at least {PREFIX_LEN_MIN} digits of the key's name")
        }
        [id] => Ok(*id),
        [] => bail!("there is no key `{text}`, but {}", join(&known)),
        [..] => bail!("`{text}` may be {}: write more digits", join(&found)),
    }
}

fn comment_or_host(comment: Option<&str>) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let comment = comment.map_or_else(|| format!("made on {}", host.trim()), str::to_owned);
    comment.replace(['\n', '\r'], " ")
}

/// What the daemon knows of all nodes.
fn nodes(arguments: &KeyArgs) -> Result<Vec<NodeStatus>> {
    target(&arguments.target)?.nodes()
}

/// The same, once this node's own daemon has seen that `id` is in the file, and had the time to hear of all
/// other nodes.
fn nodes_that_see(arguments: &KeyArgs, id: KeyId) -> Result<Vec<NodeStatus>> {
    let seen = Interrupt::default().wait_for(SEEN_LIMIT, || {
        let up_s = target(&arguments.target)?.status()?.uptime_s;
        if up_s < UPTIME_MIN_S {
            let text =
                format!("the daemon has been running for {up_s} s, and may not know all nodes yet");
            return Ok(Wait::NotYet(text));
        }
        let nodes = nodes(arguments)?;
        let has = nodes.iter().any(|node| node.this_node && node.keys.contains(&id));
        if has {
            return Ok(Wait::Done(nodes));
        }
        Ok(Wait::NotYet(format!(
            "the daemon of this node has not taken up {id}: see `weft status`"
        )))
    });
    seen.context(
        "what other nodes accept and use cannot be found out. --force goes on without, and may cut nodes off",
    )
}

/// Live nodes that do not accept a key.
fn lacking(nodes: &[NodeStatus], id: KeyId) -> Vec<String> {
    let lacking = nodes.iter().filter(|node| node.state.is_active() && !node.keys.contains(&id));
    lacking.map(title).collect()
}

/// Live nodes other than this one that use a key.
fn using(nodes: &[NodeStatus], id: KeyId) -> Vec<String> {
    let using = nodes
        .iter()
        .filter(|node| node.state.is_active() && !node.this_node && node.keys.first() == Some(&id));
    using.map(title).collect()
}

/// Nodes that are away, and had not this key.
fn away_without(nodes: &[NodeStatus], id: KeyId) -> Vec<String> {
    nodes.iter().filter(|node| is_away(node) && !node.keys.contains(&id)).map(title).collect()
}

/// Nodes that are away, and had none of these keys.
fn away_with_none_of(nodes: &[NodeStatus], ids: &[KeyId]) -> Vec<String> {
    let without = |node: &&NodeStatus| !node.keys.iter().any(|id| ids.contains(id));
    nodes.iter().filter(|node| is_away(node)).filter(without).map(title).collect()
}

fn is_away(node: &NodeStatus) -> bool {
    matches!(node.state, MemberState::Dead | MemberState::Left)
}

fn title(node: &NodeStatus) -> String {
    format!("{} ({})", node.name, node.underlay)
}

/// The keys of a node, and who has them.
#[derive(Debug, Serialize)]
struct Listing {
    file: PathBuf,
    keys: Vec<Listed>,
    /// Why the other nodes are not known.
    daemon: Option<String>,
}

#[derive(Debug, Serialize)]
struct Listed {
    id: KeyId,
    used: bool,
    comment: String,
    /// Live nodes, by name: which accept it, which seal with it, and which do not have it.
    accepted_by: Option<Vec<String>>,
    used_by: Option<Vec<String>>,
    missing_at: Option<Vec<String>>,
}

fn listing(path: &Path, file: &KeyFile, nodes: Result<Vec<NodeStatus>, String>) -> Listing {
    let alive = nodes
        .as_ref()
        .ok()
        .map(|nodes| nodes.iter().filter(|node| node.state.is_active()).collect::<Vec<_>>());
    let names = |test: &dyn Fn(&NodeStatus) -> bool| {
        alive.as_ref().map(|alive| {
            alive.iter().filter(|node| test(node)).map(|node| node.name.clone()).collect()
        })
    };
    let keys = file.keys().map(|line| {
        let id = line.key.id();
        Listed {
            id,
            used: line.used,
            comment: line.comment.clone(),
            accepted_by: names(&|node| node.keys.contains(&id)),
            used_by: names(&|node| node.keys.first() == Some(&id)),
            missing_at: names(&|node| !node.keys.contains(&id)),
        }
    });
    Listing { file: path.to_owned(), keys: keys.collect(), daemon: nodes.err() }
}

fn print_listing(listing: &Listing, out: &mut impl Write) -> io::Result<()> {
    let count = |names: &Option<Vec<String>>| {
        names.as_ref().map_or_else(|| "?".to_owned(), |names| names.len().to_string())
    };
    let mut table = Table::new(["KEY", "HERE", "ACCEPTED BY", "USED BY", "MISSING AT", "COMMENT"])
        .right([2, 3]);
    for key in &listing.keys {
        let missing = key.missing_at.as_deref().map_or_else(|| "?".to_owned(), join);
        table.row([
            key.id.to_string(),
            if key.used { "in use" } else { "accepted" }.to_owned(),
            count(&key.accepted_by),
            count(&key.used_by),
            if missing.is_empty() { "-".to_owned() } else { missing },
            key.comment.clone(),
        ]);
    }
    write!(out, "{table}")?;
    match &listing.daemon {
        Some(why) => writeln!(out, "\nWhat other nodes have is not known: {why}"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use overlay::gossip::sim::Network;
    use vswitch::mac::Mac;

    use super::*;

    fn node(name: &str, state: MemberState, keys: &[KeyId]) -> NodeStatus {
        NodeStatus {
            name: name.to_owned(),
            node_id: "00ff".to_owned(),
            state,
            this_node: name == "n1",
            underlay: [192, 0, 2, 1].into(),
            underlay_mtu: 1500,
            vtep_mac: Mac([2, 0, 0, 0, 0, 1]),
            leases: Vec::new(),
            version: 1,
            since_s: 0,
            software: String::new(),
            keys: keys.to_vec(),
            path: None,
        }
    }

    fn ids() -> (KeyId, KeyId) {
        (Network::key(0).id(), Network::key(1).id())
    }

    #[test]
    fn what_would_cut_nodes_off_is_named() {
        let (old, new) = ids();
        let nodes = [
            node("n1", MemberState::Alive, &[old, new]),
            node("n2", MemberState::Suspect, &[old]),
            node("n3", MemberState::Alive, &[new, old]),
            node("n4", MemberState::Dead, &[old]),
        ];
        let names =
            |titles: Vec<String>| titles.iter().map(|t| t[..2].to_owned()).collect::<Vec<_>>();
        assert_eq!(names(lacking(&nodes, new)), ["n2"]);
        assert_eq!(names(using(&nodes, old)), ["n2"], "this node itself is changed with its file");
        assert_eq!(names(away_without(&nodes, new)), ["n4"]);
        assert_eq!(names(away_with_none_of(&nodes, &[new])), ["n4"]);
        assert!(lacking(&nodes, old).is_empty());
    }

    #[test]
    fn a_key_is_named_by_its_first_digits() {
        let mut file = KeyFile::new(Network::key(0), "");
        file.add(Network::key(1), "").unwrap();
        let (old, new) = ids();
        assert_eq!(find(&file, &old.to_string()[..4]).unwrap(), old);
        assert_eq!(find(&file, &new.to_string().to_uppercase()).unwrap(), new);
        assert!(find(&file, "0").unwrap_err().to_string().contains("too short"));
        let unknown = find(&file, "zzzz").unwrap_err().to_string();
        assert!(unknown.contains(&old.to_string()), "{unknown}");
    }

    #[test]
    fn a_list_shows_who_has_what() {
        let (old, new) = ids();
        let mut file = KeyFile::new(Network::key(0), "first");
        file.add(Network::key(1), "second").unwrap();
        let nodes = vec![
            node("n1", MemberState::Alive, &[old, new]),
            node("n2", MemberState::Alive, &[old]),
            node("n3", MemberState::Dead, &[]),
        ];
        let mut text = Vec::new();
        let listed = listing(Path::new("/k"), &file, Ok(nodes));
        print_listing(&listed, &mut text).unwrap();
        let text = String::from_utf8(text).unwrap();
        let expected = format!(
            "KEY               HERE      ACCEPTED BY  USED BY  MISSING AT  COMMENT\n\
             {old}  in use              2        2  -           first\n\
             {new}  accepted            1        0  n2          second\n"
        );
        assert_eq!(text, expected);
        let mut text = Vec::new();
        print_listing(&listing(Path::new("/k"), &file, Err("it is down".into())), &mut text)
            .unwrap();
        assert!(String::from_utf8(text).unwrap().ends_with("is not known: it is down\n"));
    }
}
