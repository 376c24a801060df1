//! One control side, many callers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Control;

/// A handle on the control side.
#[derive(Debug, Clone)]
pub struct SharedControl(Arc<Mutex<Control>>);

impl SharedControl {
    /// Shares `control`.
    pub fn new(control: Control) -> Self {
        Self(Arc::new(Mutex::new(control)))
    }

    /// Waits for one's turn. Only for threads that may block.
    ///
    /// After a panic elsewhere the state is still used: every change ends in `publish`, which makes the
    /// tables from scratch.
    pub fn lock(&self) -> MutexGuard<'_, Control> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the control side back, if this is the last handle.
    pub fn into_inner(self) -> Option<Control> {
        Some(Arc::into_inner(self.0)?.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}
