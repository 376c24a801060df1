//! The side that asks for measurements.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::connections::{self, Sender};
use super::control::{Answer, Control, Done, MESSAGE_LIMIT, Report, Request, Token, VERSION};
use super::crew::Crew;
use super::{
    Direction, Outcome, Plan, Protocol, Test, connects, datagrams, round_trip, streams, syscall,
};

/// How long the server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long to look for the server's explanation of why it has gone.
const EXPLANATION_LIMIT: Duration = Duration::from_millis(500);

const OUT_OF_TURN: &str =
    "the server says something that is not its turn: use the same version of weft on both sides";

/// Measures against the [`Server`](super::Server) at `server`, from the network namespace of the calling
/// thread.
///
/// # Errors
/// When the plan exceeds a limit, no server answers, it refuses, or the traffic breaks off.
pub fn run(server: SocketAddr, plan: &Plan) -> Result<Outcome> {
    plan.check()?;
    let stream = TcpStream::connect_timeout(&server, CONNECT_LIMIT).map_err(|error| {
        anyhow!("no benchmark server answers at {server}: {error}; run `weft bench serve` there")
    })?;
    let what = || format!("measuring against {server}");
    let mut control = Control::new(stream, None).with_context(what)?;
    let outcome = match plan.test {
        Test::TcpThroughput { streams, direction } => {
            throughput(&mut control, server, plan, streams, direction)
        }
        Test::UdpRate { payload, .. } => rate(&mut control, server, plan, payload),
        Test::RoundTrip { protocol, payload } => {
            round_trip(&mut control, server, plan, protocol, payload)
        }
        Test::ConnectRate { parallel } => connects(&mut control, server, plan, parallel),
    };
    outcome.map_err(|error| explain(&mut control, error)).with_context(what)
}

/// What the server says about why it has ended the measurement, or else `error`.
fn explain(control: &mut Control, error: anyhow::Error) -> anyhow::Error {
    if !error.is::<io::Error>() {
        return error;
    }
    match control.receive(Instant::now() + EXPLANATION_LIMIT) {
        Ok(Answer::Failed { why }) => anyhow!("the server says: {why}"),
        Ok(_) | Err(_) => error,
    }
}

/// Asks for the measurement; gives the addresses to send traffic to and the token.
fn ask(control: &mut Control, server: SocketAddr, plan: &Plan) -> Result<(Vec<SocketAddr>, Token)> {
    control.send(&Request { version: VERSION, plan: *plan })?;
    let answer = hear(control).map_err(|error| {
        if error.is::<io::Error>() {
            anyhow!("{error}; is it `weft bench serve`, of the same version, that listens there?")
        } else {
            error
        }
    });
    let Answer::Ready { ports, token } = answer? else { bail!(OUT_OF_TURN) };
    let at = |port| {
        // With the scope that a link-local address has.
        let mut address = server;
        address.set_port(port);
        address
    };
    Ok((ports.into_iter().map(at).collect(), token))
}

fn wait_for_go(control: &mut Control) -> Result<()> {
    let Answer::Go = hear(control)? else { bail!(OUT_OF_TURN) };
    Ok(())
}

fn finish(control: &mut Control) -> Result<Report> {
    control.send(&Done {})?;
    let Answer::Report(report) = hear(control)? else { bail!(OUT_OF_TURN) };
    Ok(report)
}

/// The server's next message, if it is not that it gives up.
fn hear(control: &mut Control) -> Result<Answer> {
    match control.receive(Instant::now() + MESSAGE_LIMIT)? {
        Answer::Refused { why } => bail!("the server refuses: {why}"),
        Answer::Failed { why } => bail!("the server says: {why}"),
        answer @ (Answer::Ready { .. } | Answer::Go | Answer::Counted | Answer::Report(_)) => {
            Ok(answer)
        }
    }
}

fn throughput(
    control: &mut Control,
    server: SocketAddr,
    plan: &Plan,
    count: u16,
    direction: Direction,
) -> Result<Outcome> {
    let (addresses, token) = ask(control, server, plan)?;
    let mut connections = Vec::new();
    for sender in direction.senders() {
        for _ in 0..count {
            connections.push((sender, connections::connect(address(&addresses)?, token, sender)?));
        }
    }
    wait_for_go(control)?;
    let (mut senders, mut receivers) = (Crew::default(), Crew::default());
    let start = Instant::now();
    for (sender, stream) in connections {
        match sender {
            Sender::Client => streams::send(&mut senders, stream)?,
            Sender::Server => streams::receive(&mut receivers, stream)?,
        }
    }
    let (received, elapsed) = control.measure(start, plan, || receivers.sample())?;
    receivers.check()?;
    let retransmits = syscall::tcp_counts(senders.streams())?.retransmits;
    let out_of_order = syscall::tcp_counts(receivers.streams())?.out_of_order;
    // Until the report is here the server may still be counting: the senders go on.
    let report = finish(control)?;
    let elapsed = match direction {
        Direction::Send => report.elapsed,
        Direction::Receive => elapsed,
        // The two differ by what the clocks of busy machines are late.
        Direction::Both => elapsed.max(report.elapsed),
    };
    Ok(Outcome::Throughput {
        bytes: received.done + report.received,
        elapsed,
        retransmits: retransmits + report.retransmits,
        reordering_seen: out_of_order + report.out_of_order,
    })
}

fn rate(control: &mut Control, server: SocketAddr, plan: &Plan, payload: u16) -> Result<Outcome> {
    let (addresses, token) = ask(control, server, plan)?;
    let sockets = datagrams::open(&addresses)?;
    datagrams::greet(control, &sockets, token)?;
    wait_for_go(control)?;
    let mut senders = Crew::default();
    let start = Instant::now();
    for socket in sockets {
        datagrams::send(&mut senders, socket, payload)?;
    }
    let (sent, _) = control.measure(start, plan, || senders.sample())?;
    senders.check()?;
    let Answer::Counted = hear(control)? else { bail!(OUT_OF_TURN) };
    drop(senders);
    let report = finish(control)?;
    Ok(Outcome::Rate { sent: sent.done, received: report.received, elapsed: report.elapsed })
}

fn round_trip(
    control: &mut Control,
    server: SocketAddr,
    plan: &Plan,
    protocol: Protocol,
    payload: u16,
) -> Result<Outcome> {
    let (addresses, token) = ask(control, server, plan)?;
    // The sockets stay open until the report is here: closed earlier, they would look broken.
    match protocol {
        Protocol::Tcp => {
            let stream = connections::connect(address(&addresses)?, token, Sender::Client)?;
            wait_for_go(control)?;
            let outcome = round_trip::ask_over_tcp(&stream, payload, plan)?;
            finish(control)?;
            Ok(outcome)
        }
        Protocol::Udp => {
            let sockets = datagrams::open(&[address(&addresses)?])?;
            datagrams::greet(control, &sockets, token)?;
            wait_for_go(control)?;
            let outcome = round_trip::ask_over_udp(&sockets[0], payload, plan)?;
            finish(control)?;
            Ok(outcome)
        }
    }
}

fn connects(
    control: &mut Control,
    server: SocketAddr,
    plan: &Plan,
    parallel: u16,
) -> Result<Outcome> {
    let (addresses, _) = ask(control, server, plan)?;
    let address = address(&addresses)?;
    wait_for_go(control)?;
    let mut crew = Crew::default();
    let start = Instant::now();
    for _ in 0..parallel {
        connects::connect(&mut crew, address)?;
    }
    let (made, elapsed) = control.measure(start, plan, || crew.sample())?;
    drop(crew);
    finish(control)?;
    Ok(Outcome::Connects { count: made.done, failed: made.failed, elapsed })
}

/// The address of a measurement that has one.
fn address(addresses: &[SocketAddr]) -> Result<SocketAddr> {
    addresses.first().copied().context("the server tells no port")
}
