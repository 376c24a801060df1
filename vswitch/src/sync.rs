//! Atomics and locks of what workers share: the standard library's, or loom's where it tries the orders in which
//! threads can meet (`RUSTFLAGS="--cfg weft_loom" cargo test -p vswitch --lib --release flows::loom`).

#[cfg(not(weft_loom))]
pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
};

#[cfg(weft_loom)]
pub(crate) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering, fence},
};
