//! Rates, delays and losses between real namespaces. One test at a time: what runs beside them would be measured.

use std::sync::{Mutex, MutexGuard, PoisonError};

#[path = "../common/mod.rs"]
mod common;

mod bandwidth;
mod bench;
mod services_changes;
mod soak;

/// Waits until no other test of this program runs; the next may when what this returns is dropped.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}
