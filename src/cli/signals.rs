//! Ctrl-C: what runs is told to give up and clean up.

use anyhow::{Context, Result};
use tokio::signal::unix::{SignalKind, signal};

use crate::lab::Interrupt;

/// Sets `interrupt` on SIGINT, SIGTERM and SIGHUP, from a thread of its own. A second signal changes
/// nothing: the work of cleaning up is not to be interrupted.
pub(super) fn install(interrupt: &Interrupt) -> Result<()> {
    let interrupt = interrupt.clone();
    let (ready, installed) = std::sync::mpsc::channel();
    let listen = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut int = signal(SignalKind::interrupt())?;
            let mut term = signal(SignalKind::terminate())?;
            let mut hup = signal(SignalKind::hangup())?;
            // The receiver is there until this has been sent.
            let _ = ready.send(());
            loop {
                tokio::select! {
                    _ = int.recv() => {}
                    _ = term.recv() => {}
                    _ = hup.recv() => {}
                }
                if !interrupt.is_set() {
                    eprintln!("\ninterrupted: cleaning up");
                }
                interrupt.set();
            }
        })
    };
    let spawned = std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let ended: std::io::Result<()> = listen();
        ended
    });
    let thread = spawned.context("starting a thread for signals")?;
    if installed.recv().is_ok() {
        return Ok(());
    }
    match thread.join() {
        Ok(ended) => ended.context("listening for signals"),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
