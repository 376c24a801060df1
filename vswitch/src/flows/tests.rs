//! The table of flows against a model that has no limits and no tricks, and from many threads at once.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::wire::tcp::flag::{ACK, FIN, RST, SYN};

const SERVICE: u64 = 77;

fn table(flows_max: u32) -> FlowTable {
    FlowTable::new(flows_max, 5, Instant::now())
}

fn address(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

fn original(client: u8, port: u16) -> Tuple {
    Tuple {
        source: (address(client), port),
        destination: (IpAddr::from([10, 96, 0, 1]), 80),
        protocol: FlowProtocol::Tcp,
    }
}

fn new(original: Tuple, endpoint: u8, masquerade: Option<u8>) -> NewFlow {
    NewFlow {
        original,
        endpoint: (address(endpoint), 8080),
        masquerade: masquerade.map(address),
        service: SERVICE,
        generation: 1,
        admitted: None,
    }
}

/// What the endpoint sends back, for a flow that was just entered.
fn reply_of(hit: &Hit) -> Tuple {
    hit.to().inverse()
}

#[test]
fn both_directions_find_the_flow_and_say_where_the_other_side_is() {
    let table = table(1024);
    let flow = original(1, 40_000);
    assert_eq!(table.find(&flow, Ticks(0)), None);
    let hit = table.insert(&new(flow, 9, None), Ticks(0)).unwrap();
    assert_eq!(hit.direction, Direction::Original);
    assert_eq!(hit.to().source, flow.source);
    assert_eq!(hit.to().destination, (address(9), 8080));
    assert_eq!(table.find(&flow, Ticks(0)), Some(hit));
    let back = table.find(&reply_of(&hit), Ticks(0)).unwrap();
    assert_eq!(back.direction, Direction::Reply);
    assert_eq!(back.to(), flow.inverse());
    assert_eq!((back.service, table.len()), (SERVICE, 1));
    assert!(hit.is_checked(1) && !hit.is_checked(2));
    table.set_checked(&hit, 2);
    assert!(table.find(&flow, Ticks(0)).unwrap().is_checked(2));
    table.remove(&hit);
    assert_eq!(table.find(&flow, Ticks(0)), None);
    assert_eq!(table.find(&reply_of(&hit), Ticks(0)), None);
    assert!(table.is_empty());
}

#[test]
fn a_masquerading_client_keeps_its_port_if_that_is_free_and_not_a_low_one() {
    let table = table(1024);
    let first = table.insert(&new(original(1, 40_000), 9, Some(50)), Ticks(0)).unwrap();
    assert_eq!(first.to().source, (address(50), 40_000));
    let second = table.insert(&new(original(2, 40_000), 9, Some(50)), Ticks(0)).unwrap();
    assert_eq!(second.to().source.0, address(50));
    assert_ne!(second.to().source.1, 40_000);
    let low = table.insert(&new(original(3, 22), 9, Some(50)), Ticks(0)).unwrap();
    assert!(low.to().source.1 >= PORT_MIN);
    let elsewhere = table.insert(&new(original(4, 40_000), 8, Some(50)), Ticks(0)).unwrap();
    assert_eq!(elsewhere.to().source.1, 40_000, "towards another endpoint it is free");
}

#[test]
fn after_a_restart_a_flow_gets_the_port_that_it_had() {
    let ports = |seed| {
        let table = FlowTable::new(1024, seed, Instant::now());
        let flows = (1..20).map(|client| new(original(client, 40_000), 9, Some(50)));
        flows.map(|flow| table.insert(&flow, Ticks(0)).unwrap().to().source.1).collect::<Vec<_>>()
    };
    assert_eq!(ports(1), ports(2));
}

#[test]
fn replies_that_could_not_be_told_apart_get_ports_of_their_own() {
    let table = table(1024);
    let by_one_address = original(1, 40_000);
    let by_another = Tuple { destination: (IpAddr::from([10, 96, 0, 2]), 53), ..by_one_address };
    let first = table.insert(&new(by_one_address, 9, None), Ticks(0)).unwrap();
    let second = table.insert(&new(by_another, 9, None), Ticks(0)).unwrap();
    assert_ne!(first.to(), second.to());
    assert_eq!(second.to().source.0, address(1), "the address is the client's own");
    assert_eq!(table.find(&reply_of(&second), Ticks(0)).unwrap().to(), by_another.inverse());
}

#[test]
fn ports_run_out_with_a_name() {
    let table = table(200_000);
    let outcome = (0..u32::from(u16::MAX)).find_map(|n| {
        let [_, a, b, c] = n.to_be_bytes();
        let client = (IpAddr::from([10, a, b, c]), 40_000);
        let flow = Tuple { source: client, ..original(1, 1) };
        table.insert(&new(flow, 9, Some(50)), Ticks(0)).err()
    });
    assert_eq!(outcome, Some(Refused::NoPort));
    assert!(table.len() > 50_000, "only {} of 64512", table.len());
}

#[test]
fn states_choose_how_long_a_flow_is_remembered() {
    let table = table(1024);
    let flow = original(1, 40_000);
    let hit = table.insert(&new(flow, 9, None), Ticks(0)).unwrap();
    let reply = table.find(&reply_of(&hit), Ticks(0)).unwrap();
    let lives_until = |from: u32| {
        (from..)
            .step_by(10)
            .find(|now| table.find(&flow, Ticks(*now)).is_none())
            .map(|now| now / 10)
    };
    table.note(&hit, Ticks(0), 1, 60, SYN);
    assert_eq!(lives_until(0), Some(121));
    table.note(&reply, Ticks(0), 1, 60, SYN | ACK);
    assert_eq!(lives_until(0), Some(61));
    table.note(&hit, Ticks(0), 1, 60, ACK);
    assert!(table.find(&flow, Ticks::from_secs(86_000)).is_some());
    table.note(&hit, Ticks(100), 1, 60, FIN | ACK);
    table.note(&reply, Ticks(100), 1, 60, FIN | ACK);
    assert!(table.find(&flow, Ticks(100)).unwrap().is_closing());
    assert_eq!(lives_until(100), Some(131));
    table.note(&reply, Ticks(100), 1, 60, RST);
    assert_eq!(lives_until(100), Some(21));
    assert!(table.find(&reply_of(&hit), Ticks(400)).is_none(), "both directions end together");
}

#[test]
fn expired_flows_give_their_slots_back() {
    let table = table(64);
    for port in 0..64 {
        table.insert(&new(original(1, 1000 + port), 9, None), Ticks(0)).unwrap();
    }
    assert_eq!(table.len(), 64);
    let late = Ticks::from_secs(500);
    table.sweep(late, 0, 1);
    assert_eq!(table.len(), 0);
    for port in 0..64 {
        table.insert(&new(original(2, 1000 + port), 9, None), late).unwrap();
    }
    assert_eq!(table.len(), 64);
}

#[test]
fn at_the_limit_unanswered_flows_give_way_and_answered_ones_do_not() {
    let table = table(64);
    let mut hits = Vec::new();
    for port in 0..64 {
        let now = Ticks(u32::from(port));
        hits.push(table.insert(&new(original(1, 1000 + port), 9, None), now).unwrap());
    }
    // Half of them are answered.
    for hit in hits.iter().step_by(2) {
        let reply = table.find(&reply_of(hit), Ticks(100)).unwrap();
        table.note(&reply, Ticks(100), 1, 60, SYN | ACK);
        table.note(hit, Ticks(100), 1, 60, ACK);
    }
    let mut refused = 0;
    for port in 0..200 {
        refused +=
            u32::from(table.insert(&new(original(2, 1000 + port), 9, None), Ticks(101)).is_err());
    }
    assert!(table.len() <= 64);
    let kept =
        (0..64).step_by(2).filter(|n| table.find(&original(1, 1000 + n), Ticks(101)).is_some());
    assert_eq!(kept.count(), 32, "no answered flow was lost");
    assert_eq!(refused, 0, "a newer unanswered one always takes an older one's place");
    for port in 0..200 {
        let flow = original(2, 1000 + port);
        if let Some(hit) = table.find(&flow, Ticks(101)) {
            let reply = table.find(&reply_of(&hit), Ticks(101)).unwrap();
            table.note(&reply, Ticks(101), 1, 60, ACK);
            table.note(&hit, Ticks(101), 1, 60, ACK);
        }
    }
    let full = (0..200).filter(|port| {
        let flow = new(original(3, 1000 + port), 9, None);
        table.insert(&flow, Ticks(102)) == Err(Refused::Full)
    });
    assert!(full.count() > 0, "nobody gives way any more");
}

#[test]
fn connections_are_counted_until_they_are_over() {
    let table = table(1024);
    let endpoint = (address(9), 8080);
    let hits: Vec<Hit> = (0..3)
        .map(|port| table.insert(&new(original(1, 1000 + port), 9, None), Ticks(0)).unwrap())
        .collect();
    assert_eq!(table.connections(endpoint), 3);
    table.note(&hits[0], Ticks(0), 1, 60, RST);
    assert_eq!(table.connections(endpoint), 2);
    table.remove(&hits[0]);
    table.remove(&hits[1]);
    table.remove(&hits[1]);
    assert_eq!(table.connections(endpoint), 1);
    table.sweep(Ticks::from_secs(1000), 0, 1);
    assert_eq!(table.connections(endpoint), 0);
}

#[test]
fn a_view_shows_who_what_and_how_much() {
    let start = Instant::now();
    let table = FlowTable::new(64, 5, start);
    let hit = table.insert(&new(original(1, 40_000), 9, Some(50)), Ticks(0)).unwrap();
    let reply = table.find(&reply_of(&hit), Ticks(0)).unwrap();
    table.note(&hit, Ticks(10), 2, 120, SYN);
    table.note(&reply, Ticks(20), 3, 4500, SYN | ACK);
    let now = start + Duration::from_secs(5);
    let view = table.view(now, 10, |_| true);
    assert_eq!(
        view,
        [FlowView {
            protocol: FlowProtocol::Tcp,
            client: (address(1), 40_000),
            frontend: (IpAddr::from([10, 96, 0, 1]), 80),
            endpoint: (address(9), 8080),
            seen_as: (address(50), 40_000),
            service: SERVICE,
            state: "SYN_RECV",
            age: Duration::from_secs(5),
            idle: Duration::from_secs(3),
            expires: Duration::from_secs(57),
            packets_original: 2,
            bytes_original: 120,
            packets_reply: 3,
            bytes_reply: 4500,
        }]
    );
    assert_eq!(table.view(now, 10, |flow| flow.client.1 == 1), []);
    table.insert(&new(original(2, 1), 9, None), Ticks(0)).unwrap();
    assert_eq!(table.view(now, 1, |_| true).len(), 1, "bounded");
    assert!(table.view(start + Duration::from_secs(500), 10, |_| true).is_empty());
}

/// What the table must agree with: every flow that is alive, by what its packets look like.
#[derive(Default)]
struct Model {
    flows: HashMap<Tuple, (Tuple, Seen, Ticks)>,
}

impl Model {
    fn expire(&mut self, now: Ticks) {
        self.flows
            .retain(|tuple, (_, seen, last)| now.since(*last) <= seen.timeout(tuple.protocol));
    }

    /// The client's tuple of the flow that a packet with `tuple` is of.
    fn find(&self, tuple: &Tuple) -> Option<(Tuple, Direction)> {
        if self.flows.contains_key(tuple) {
            return Some((*tuple, Direction::Original));
        }
        let mut all = self.flows.iter();
        let (original, _) = all.find(|(_, (reply, ..))| reply == tuple)?;
        Some((*original, Direction::Reply))
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A client sends, and a flow begins if there is none.
    Send {
        client: u8,
        port: u16,
        frontend: u8,
        endpoint: u8,
        masquerade: bool,
        mark: u8,
    },
    /// An endpoint answers a flow, of those that there are.
    Answer {
        which: prop::sample::Index,
        mark: u8,
    },
    /// A flow is forgotten.
    Forget {
        which: prop::sample::Index,
    },
    Wait {
        seconds: u32,
    },
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let mark = || prop::sample::select(&[SYN, ACK, ACK, ACK, FIN | ACK, RST][..]);
    let send = (0_u8..4, 0_u16..6, 1_u8..4, 1_u8..4, any::<bool>(), mark()).prop_map(
        |(client, port, frontend, endpoint, masquerade, mark)| Step::Send {
            client,
            port: if port == 0 { 22 } else { 40_000 + port },
            frontend,
            endpoint,
            masquerade,
            mark,
        },
    );
    let which = || any::<prop::sample::Index>();
    let step = prop_oneof![
        8 => send,
        4 => (which(), mark()).prop_map(|(which, mark)| Step::Answer { which, mark }),
        1 => which().prop_map(|which| Step::Forget { which }),
        2 => prop_oneof![1_u32..20, 50_u32..200].prop_map(|seconds| Step::Wait { seconds }),
        1 => Just(Step::Sweep),
    ];
    prop::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn the_table_is_what_the_model_says(steps in steps(), seed in any::<u64>()) {
        let table = FlowTable::new(4096, seed, Instant::now());
        let mut model = Model::default();
        let mut now = Ticks(0);
        for step in steps {
            model.expire(now);
            match step {
                Step::Send { client, port, frontend, endpoint, masquerade, mark } => {
                    let tuple = Tuple {
                        destination: (IpAddr::from([10, 96, 0, frontend]), 80),
                        ..original(client, port)
                    };
                    let known = model.find(&tuple).map(|(original, _)| model.flows[&original].0);
                    let found = table.find(&tuple, now);
                    prop_assert_eq!(found.map(|hit| hit.to().inverse()), known);
                    let hit = match found {
                        Some(hit) => hit,
                        None => {
                            let flow = new(tuple, 100 + endpoint, masquerade.then_some(50));
                            let hit = table.insert(&flow, now).unwrap();
                            let reply = hit.to().inverse();
                            prop_assert_eq!(reply.source, flow.endpoint);
                            prop_assert!(model.find(&reply).is_none(), "{:?} is somebody's", reply);
                            let seen = Seen::LIVE.with(Seen::COUNTED);
                            model.flows.insert(tuple, (reply, seen, now));
                            hit
                        }
                    };
                    table.note(&hit, now, 1, 60, mark);
                    let (_, seen, last) = model.flows.get_mut(&tuple).unwrap();
                    *seen = seen.after(FlowProtocol::Tcp, Direction::Original, mark);
                    *last = now;
                }
                Step::Answer { which, mark } => {
                    let mut all: Vec<Tuple> = model.flows.keys().copied().collect();
                    all.sort_unstable();
                    if all.is_empty() { continue }
                    let tuple = all[which.index(all.len())];
                    let (reply, seen, last) = model.flows.get_mut(&tuple).unwrap();
                    let hit = table.find(reply, now).unwrap();
                    prop_assert_eq!((hit.direction, hit.to()), (Direction::Reply, tuple.inverse()));
                    table.note(&hit, now, 1, 60, mark);
                    *seen = seen.after(FlowProtocol::Tcp, Direction::Reply, mark);
                    *last = now;
                }
                Step::Forget { which } => {
                    let mut all: Vec<Tuple> = model.flows.keys().copied().collect();
                    all.sort_unstable();
                    if all.is_empty() { continue }
                    let tuple = all[which.index(all.len())];
                    table.remove(&table.find(&tuple, now).unwrap());
                    model.flows.remove(&tuple);
                }
                Step::Wait { seconds } => now = Ticks(now.0 + seconds * Ticks::PER_S),
                Step::Sweep => {
                    table.sweep(now, 0, 1);
                    prop_assert_eq!(table.len(), model.flows.len());
                }
            }
        }
        model.expire(now);
        for (tuple, (reply, ..)) in &model.flows {
            prop_assert_eq!(table.find(tuple, now).unwrap().to(), reply.inverse());
            prop_assert_eq!(table.find(reply, now).unwrap().to(), tuple.inverse());
        }
        let counted = model.flows.values().filter(|(_, seen, _)| seen.has(Seen::COUNTED)).count();
        table.sweep(now, 0, 1);
        let connections: u32 =
            table.connections.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        prop_assert_eq!(usize::try_from(connections).unwrap(), counted);
    }
}

/// Threads enter and forget flows that share clients' tuples and ports of the switch's own address. Whatever one
/// finds is whole, and no two clients are ever the same to an endpoint.
#[test]
fn threads_never_share_a_tuple_by_mistake() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 20_000;
    let table = Arc::new(table(256));
    let work = |thread: u64, table: &FlowTable| {
        let mut refused = 0;
        for round in 0..ROUNDS {
            let draw = stable_hash(thread, &[round]);
            let [a, b, c, ..] = draw.to_be_bytes();
            // Some clients are this thread's own.
            let client = if a % 2 == 0 { 200 + u8::try_from(thread).unwrap() } else { a % 8 };
            let tuple = original(client, 40_000 + u16::from(b % 16));
            let now = Ticks(u32::try_from(round / 1000).unwrap());
            let flow = new(tuple, 100 + c % 2, (c & 4 == 0).then_some(50));
            match table.insert(&flow, now) {
                Ok(hit) => {
                    // It may be another thread's, and gone again.
                    assert_eq!(hit.to().destination.1, 8080);
                    let reply = hit.to().inverse();
                    if let Some(back) = table.find(&reply, now) {
                        assert_eq!(back.direction, Direction::Reply);
                        if client >= 200 && c & 4 != 0 {
                            assert_eq!(
                                back.to(),
                                tuple.inverse(),
                                "only this thread has this client"
                            );
                        }
                        assert_eq!(back.to().source, tuple.destination, "a torn read");
                        table.note(&back, now, 1, 60, ACK);
                    }
                    if c & 8 == 0 {
                        table.remove(&hit);
                    }
                }
                Err(_) => refused += 1,
            }
        }
        refused
    };
    let refused: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let table = Arc::clone(&table);
                scope.spawn(move || work(thread, &table))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert!(refused < THREADS * ROUNDS / 2, "{refused}");
    // No two flows that are alive look alike in either direction.
    let start = table.start;
    let view = table.view(start + Duration::from_secs(2), usize::MAX, |_| true);
    let clients: BTreeSet<_> = view.iter().map(|flow| (flow.client, flow.frontend)).collect();
    let endpoints: BTreeSet<_> = view.iter().map(|flow| (flow.endpoint, flow.seen_as)).collect();
    assert_eq!((clients.len(), endpoints.len()), (view.len(), view.len()));
    assert_eq!(view.len(), table.len());
    table.sweep(Ticks::from_secs(1_000_000), 0, 1);
    assert!(table.is_empty());
    assert!(table.connections.iter().all(|count| count.load(Ordering::Relaxed) == 0));
    for shard in &table.shards {
        let shard = lock(shard);
        let free: BTreeSet<u32> = shard.free.iter().copied().collect();
        assert_eq!(
            (shard.free.len(), free.len()),
            (shard.used, shard.used),
            "every slot is back, once"
        );
    }
}

#[test]
fn a_flow_that_is_not_translated_keeps_its_port_and_counts_for_nobody() {
    let table = table(1024);
    let flow = Tuple {
        source: (address(1), 40_000),
        destination: (address(9), 8080),
        protocol: FlowProtocol::Tcp,
    };
    let hit = table.insert(&NewFlow::plain(flow, 1, 7), Ticks(0)).unwrap();
    assert_eq!((hit.to(), hit.is_plain()), (flow, true));
    assert!(hit.is_admitted(7) && !hit.is_admitted(8));
    let back = table.find(&flow.inverse(), Ticks(0)).unwrap();
    assert_eq!((back.to(), back.direction), (flow.inverse(), Direction::Reply));
    assert_eq!(table.connections((address(9), 8080)), 0);
    table.set_admitted(&back, 8);
    assert!(table.find(&flow, Ticks(0)).unwrap().is_admitted(8));

    // Towards a Service the same port is taken, and so the flow gets another one.
    let served = table.insert(&new(original(1, 40_000), 9, None), Ticks(0)).unwrap();
    assert_ne!(served.to().source.1, 40_000);
    assert!(!served.was_admitted() && !served.is_plain());
    // The other way around there is none to be had.
    let other = Tuple { source: (address(1), served.to().source.1), ..flow };
    let refused = table.insert(&NewFlow::plain(other, 1, 7), Ticks(0));
    assert_eq!(refused, Err(Refused::NoPort));
}
