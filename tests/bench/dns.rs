//! The name server alone: how many questions one CPU answers, how soon, and whether any is lost.
//!
//! ```console
//! $ cargo bench --bench dns                       10 000 services, a million pairs of A and AAAA
//! $ cargo bench --bench dns -- --pairs 50000      fewer
//! ```
//!
//! One socket asks for A and AAAA of a name at the same time, as libraries do, and keeps some pairs under way.
//! The server's CPU time is that of the process without the client's thread.

// Its report is what it is for.
#![allow(clippy::print_stdout)]

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use clap::Parser;
use conf::cluster::Protocol;
use hdrhistogram::Histogram;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch;
use weft::dns::directory::{Port, Target};
use weft::dns::{self, Dns};

/// Asks the name server on loopback.
#[derive(Debug, Parser)]
struct Options {
    /// Pairs of questions
    #[arg(long, default_value_t = 1_000_000)]
    pairs: usize,
    /// Services that have names
    #[arg(long, default_value_t = 10_000)]
    services: usize,
    /// Pairs that are under way at a time
    #[arg(long, default_value_t = 16)]
    window: usize,
    /// Passed by cargo, without a meaning here
    #[arg(long, hide = true)]
    bench: bool,
}

const ADDRESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 53, 2, 1));
const PORT: u16 = 5300;

/// After this long a question is lost.
const PATIENCE: Duration = Duration::from_secs(5);

fn main() {
    let options = Options::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let within = runtime.enter();
    let config = conf::DnsConfig { addresses: vec![ADDRESS], ..conf::DnsConfig::default() };
    let resolver = std::sync::Arc::new(dns::resolver(&config, &[], 1));
    let began = Instant::now();
    resolver.update(|directory| {
        for ix in 0..options.services {
            let address =
                std::net::Ipv4Addr::from_bits(0x0a60_0000 + u32::try_from(ix).expect("few"));
            let ports = vec![Port { name: "http".into(), protocol: Protocol::Tcp, number: 80 }];
            let target = Target::Cluster { addresses: vec![address.into()], ports };
            directory.set_service("default", &format!("service-{ix}"), Some(target));
        }
    });
    println!("{} services taken up in {:?}", options.services, began.elapsed());
    let (stop, stopped) = watch::channel(false);
    let mut server = Dns::start(&config, &resolver, PORT, &stopped);
    server.listen(&config.addresses).expect("the server starts");

    let quiet = run(&Options { pairs: options.pairs.min(20_000), window: 1, ..options });
    println!("one pair at a time:   {quiet}");
    let busy = run(&options);
    println!("{:>3} pairs at a time:  {busy}", options.window);
    assert_eq!(quiet.lost + busy.lost, 0, "questions were lost");

    stop.send_replace(true);
    runtime.block_on(server.stopped());
    drop(within);
}

/// What came of a run.
struct Outcome {
    answered: u64,
    lost: usize,
    took: Duration,
    server: Duration,
    latency: Histogram<u64>,
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let per = |time: Duration| self.answered as f64 / time.as_secs_f64();
        write!(
            f,
            "{} answers, {} lost; {:.0}/s, {:.0}/s for each CPU of the server; p50 {} us, p99 {} us",
            self.answered,
            self.lost,
            per(self.took),
            per(self.server),
            self.latency.value_at_quantile(0.5) / 1000,
            self.latency.value_at_quantile(0.99) / 1000,
        )
    }
}

fn run(options: &Options) -> Outcome {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    socket.connect(SocketAddr::new(ADDRESS, PORT)).expect("the server's address");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    // Two identifiers for each pair under way.
    let slots = options.window * 2;
    let mut sent_at = vec![None; slots];
    let mut latency = Histogram::new(3).expect("three digits");
    let (mut asked, mut answered) = (0_usize, 0_u64);
    let server_before = server_time();
    let began = Instant::now();
    let ask = |slot: usize, number: usize, sent_at: &mut Vec<Option<Instant>>| {
        let name = format!("service-{}.default.svc.cluster.local.", number % options.services);
        for (ix, kind) in [(slot, RecordType::A), (slot + 1, RecordType::AAAA)] {
            let id = u16::try_from(ix).expect("a small window");
            let mut message = Message::new(id, MessageType::Query, OpCode::Query);
            message.add_query(Query::query(Name::from_ascii(&name).expect("a name"), kind));
            sent_at[ix] = Some(Instant::now());
            socket.send(&message.to_vec().expect("a message")).expect("sent");
        }
    };
    for slot in (0..slots).step_by(2) {
        ask(slot, asked, &mut sent_at);
        asked += 1;
    }
    let mut buffer = [0; 1500];
    let total = options.pairs as u64 * 2;
    let mut lost = 0;
    while answered < total {
        let Ok(len) = socket.recv(&mut buffer) else {
            lost = sent_at.iter().flatten().count();
            break;
        };
        let message = Message::from_vec(&buffer[..len]).expect("an answer");
        assert_eq!(message.metadata.response_code, ResponseCode::NoError);
        let slot = usize::from(message.metadata.id);
        let Some(at) = sent_at[slot].take() else { continue };
        let elapsed = u64::try_from(at.elapsed().as_nanos()).expect("short");
        latency.record(elapsed.max(1)).expect("within bounds");
        answered += 1;
        let pair = slot & !1;
        if sent_at[pair].is_none() && sent_at[pair + 1].is_none() && asked < options.pairs {
            ask(pair, asked, &mut sent_at);
            asked += 1;
        }
    }
    let took = began.elapsed();
    Outcome { answered, lost, took, server: server_time() - server_before, latency }
}

/// CPU time of the process without this thread.
fn server_time() -> Duration {
    let of = |clock| {
        let time = clock_gettime(clock);
        let seconds = u64::try_from(time.tv_sec).expect("after the start");
        Duration::new(seconds, u32::try_from(time.tv_nsec).expect("below a second"))
    };
    of(ClockId::ProcessCPUTime).saturating_sub(of(ClockId::ThreadCPUTime))
}
