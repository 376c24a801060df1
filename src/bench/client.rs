//! The side that asks for measurements.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::connections::{self, Sender};
use super::control::{Answer, Control, Done, MESSAGE_LIMIT, Report, Request, Token, VERSION};
use super::crew::Crew;
use super::{Direction, Outcome, Plan, Test, streams, syscall};

/// How long the server may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// How long to look for the server's explanation of why it has gone.
const EXPLANATION_LIMIT: Duration = Duration::from_millis(500);

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
        Test::UdpRate { .. } | Test::RoundTrip { .. } | Test::ConnectRate { .. } => {
            bail!("this client cannot measure that")
        }
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
    match control.receive(Instant::now() + MESSAGE_LIMIT)? {
        Answer::Ready { ports, token } if !ports.is_empty() => {
            let at = |port| SocketAddr::new(server.ip(), port);
            // A link-local address needs its scope, too.
            let at = |port| match server {
                SocketAddr::V6(mut v6) => {
                    v6.set_port(port);
                    SocketAddr::V6(v6)
                }
                SocketAddr::V4(_) => at(port),
            };
            Ok((ports.into_iter().map(at).collect(), token))
        }
        Answer::Refused { why } | Answer::Failed { why } => bail!("the server refuses: {why}"),
        other => bail!("the server says {other:?} where its ports should come"),
    }
}

fn wait_for_go(control: &mut Control) -> Result<()> {
    match control.receive(Instant::now() + MESSAGE_LIMIT)? {
        Answer::Go => Ok(()),
        Answer::Failed { why } => bail!("the server says: {why}"),
        other => bail!("the server says {other:?} where the start should come"),
    }
}

fn finish(control: &mut Control) -> Result<Report> {
    control.send(&Done {})?;
    match control.receive(Instant::now() + MESSAGE_LIMIT)? {
        Answer::Report(report) => Ok(report),
        Answer::Failed { why } => bail!("the server says: {why}"),
        other => bail!("the server says {other:?} where its figures should come"),
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
            connections.push((sender, connections::connect(addresses[0], token, sender)?));
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
