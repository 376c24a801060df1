//! Ctrl-C: the benchmark gives up and removes what it has built.

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use weft::lab::Interrupt;

/// Sets `interrupt` on SIGINT, SIGTERM and SIGHUP. A second signal changes nothing: cleaning up is not to
/// be interrupted. Starts a thread.
pub(crate) fn install(interrupt: &Interrupt) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let signals =
        runtime.block_on(async { kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>() });
    let mut signals: Vec<Signal> = signals.context("listening for signals")?;
    let interrupt = interrupt.clone();
    let listen = move || {
        runtime.block_on(async {
            let [int, term, hup] = &mut signals[..] else { return };
            tokio::select! {
                _ = int.recv() => {}
                _ = term.recv() => {}
                _ = hup.recv() => {}
            }
            eprintln!("\ninterrupted: cleaning up");
            interrupt.set();
            std::future::pending::<()>().await;
        });
    };
    let thread = std::thread::Builder::new().name("signals".to_owned()).spawn(listen);
    thread.map(drop).context("starting a thread for signals")
}
