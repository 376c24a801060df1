//! The CNI front end: the protocol, the plugin, and what it takes to set up a pod's interface.
//!
//! A call's way, from the runtime and back:
//!
//! 1. the runtime executes `weft-cni`; [`plugin`] reads [`args`] from the environment and [`config`]
//!    from standard input
//! 2. [`handler::interpret`] says what it means, or what is wrong with it
//! 3. [`rpc`] carries it to the daemon, which interprets it again and acts, with [`netns`] and [`link`]
//!    (a DEL that it cannot answer is noted in the [`journal`])
//! 4. [`handler::add_result`] makes the [`result`], in the version that the runtime asked for; what
//!    went wrong is an [`error::CniError`]

pub mod args;
pub mod config;
mod delegate;
pub mod error;
pub mod handler;
pub mod journal;
pub mod link;
pub mod netns;
pub mod plugin;
pub mod result;
pub mod rpc;
pub mod wish;
